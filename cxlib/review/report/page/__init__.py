"""The report: one self-contained HTML page, from the tables, the figures and what was explored.

`build` fills `page.html`, whose style and scripts stand beside it, and which asks the network for nothing: figures are
data URIs, and the charts are drawn by a bundle of Vega-Lite that a Python package brings along. The same input, with
the same packages, gives the same bytes.
"""

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import vl_convert
from markupsafe import Markup, escape

from cxlib.overlay import COLOURS, LABELS
from cxlib.review.ledger.claims import FEWEST, LEVEL
from cxlib.review.report.page import explorer, forest
from cxlib.review.report.page.sections import FIGURES, SECTIONS, TABLES, pictures, printed_name

__all__ = ["FIGURES", "TABLES", "build"]

#: What a name of the review looks like in print: p_t, y_t, p_1, t1.
_SYMBOL = re.compile(r"\b([py])_([t12])\b|\b(t)([123])\b")


def build(
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, bytes],
    explored: Mapping[str, Mapping[str, np.ndarray]],
    settings: str,
    versions: Mapping[str, str],
    ledger_hash: str,
) -> str:
    """The page as HTML.

    Args:
        tables: by the names of `TABLES`, as the summaries write them.
        figures: WebP files by the names of `FIGURES`, and others of which `sections.pictures` knows what they are.
        explored: by network, what the stage `explore` writes.
        settings: the parameters of the run, as YAML.
        versions: of the packages that computed it, by name.
        ledger_hash: of the file that the ledger was read from.

    Raises:
        ValueError: a table lacks a column that is shown.
    """
    claims = tables["claims"]
    try:
        statements = forest.statements(claims)
        filled = {key: part for key, part in SECTIONS.items() if len(tables[part.table])}
        charts = {key: part.chart(tables[part.table]) for key, part in filled.items() if part.chart}
        grids = {key: part.grid(tables[part.table]) for key, part in filled.items() if part.grid}
    except KeyError as error:
        raise ValueError(f"a table is not what the report is made of: it lacks {error}") from error
    scripts = ("page.js", "charts.js", "explorer.js")
    return (
        _environment()
        .get_template("page.html")
        .render(
            statements=statements,
            counts=forest.counts(statements),
            leading=[row for row in statements if row.leading],
            networks=list(dict.fromkeys(claims["network"])),
            level=LEVEL,
            fewest=FEWEST,
            sections=SECTIONS,
            filled=filled,
            pictures=pictures(figures),
            grids=grids,
            figures={name: _data_uri(content, "image/webp") for name, content in figures.items()},
            charts=_script(charts),
            tables=_script({part.table: _columns(tables[part.table]) for part in SECTIONS.values()}),
            explored=_script({name: explorer.packed(cell) for name, cell in explored.items()}),
            colours=_script(COLOURS),
            labels=_script(LABELS),
            settings=settings,
            versions=versions,
            ledger_hash=ledger_hash,
            style=_inline("style.css", "style"),
            vega=_closed(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"), "script"),
            scripts=[_inline(name, "script") for name in scripts],
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"symbols": symbols, "words": words, "aside": aside, "number": forest.number}
    return environment


def words(name: str) -> str:
    """A margin's name as it is read."""
    return printed_name(name).replace(" minus ", " − ")


def symbols(text: str) -> Markup:
    """HTML of a text in which p_t, t1 and their like have subscripts, and what stands in back quotes is code."""
    subscripted = _SYMBOL.sub(r"\1\3<sub>\2\4</sub>", str(escape(text)))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", subscripted))  # what was not escaped is ours


def aside(text: str) -> Markup:
    """HTML of a number, of which the part in brackets is small."""
    return Markup(re.sub(r"([(\[].*[)\]])", r"<small>\1</small>", str(escape(text))))


def _columns(table: pd.DataFrame) -> dict[str, list[Any]]:
    """A table by its columns, as JSON holds it; what is missing is null."""
    return {
        str(name): [None if pd.isna(value) else value for value in column.tolist()] for name, column in table.items()
    }


def _script(content: object) -> Markup:
    """JSON for a script element."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return Markup(text.replace("</", "<\\/"))


def _inline(name: str, element: str) -> Markup:
    return _closed(Path(__file__).with_name(name).read_text(encoding="utf-8"), element)


def _closed(text: str, element: str) -> Markup:
    """A style or script that does not end its element before its own end."""
    return Markup(text.replace(f"</{element}", f"<\\/{element}"))


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
