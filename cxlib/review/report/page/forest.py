"""The ledger as the page shows it: statements with their verdict, and each margin's place on a line around zero."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cxlib.review.ledger.claims import (
    HOLDS,
    IDENTITY,
    LEADING,
    NOT_SAID,
    NOT_SHOWN,
    REFUTED,
    STATEMENTS,
    decisive,
    headlines,
)

#: What is said of a statement of whose margins some hold and some do not.
IN_PART = "in part"
#: Verdicts of statements, as they are counted.
VERDICTS = {
    HOLDS: "every margin that decides holds",
    IN_PART: "some margins hold, others do not",
    NOT_SHOWN: "neither shown nor refuted: the intervals leave it open, or too few images were tested",
    REFUTED: "the data say the opposite",
    IDENTITY: "exact by construction, shown once",
}
#: Half the width of a margin's line, in units of its drawing.
HALF = 100


class Margin(NamedTuple):
    """A row of the ledger; places lie between -`HALF` and `HALF`, and zero is zero on every line."""

    name: str
    network: str
    kind: str
    mean: float
    low: float
    high: float
    bound: float
    published: float | None
    n_images: int
    note: str
    verdict: str
    decides: bool
    at: dict[str, float]


class Statement(NamedTuple):
    """A sentence of the review, and its margins, those that decide first."""

    name: str
    section: str
    sentence: str
    verdict: str
    margins: list[Margin]

    @property
    def deciding(self) -> list[Margin]:
        """The margins that decide."""
        return [margin for margin in self.margins if margin.decides]

    @property
    def holding(self) -> int:
        """How many of them hold."""
        return sum(margin.verdict == HOLDS for margin in self.deciding)

    @property
    def leading(self) -> Margin | None:
        """The one that its headline gives; None where it has no headline."""
        return next((margin for margin in self.deciding if margin.name == LEADING.get(self.name)), None)


def statements(ledger: pd.DataFrame) -> list[Statement]:
    """The statements of a ledger (as `claims.judge` gives it), in their order."""
    held, deciding = headlines(ledger), set(decisive(ledger).index)
    found = []
    for name, rows in ledger.groupby("statement", sort=False):
        section, sentence = STATEMENTS[str(name)]
        margins = [_margin(row, row.Index in deciding) for row in rows.itertuples()]
        margins.sort(key=lambda margin: not margin.decides)
        verdict = _verdict(margins, held[str(name)]["holds"])
        found.append(Statement(str(name), section, sentence, verdict, margins))
    return found


def counts(statements: Sequence[Statement]) -> dict[str, int]:
    """How many statements have each verdict."""
    counted = Counter(statement.verdict for statement in statements)
    return {verdict: counted[verdict] for verdict in VERDICTS if counted[verdict]}


def number(value: float, sign: bool = False) -> str:
    """A number with three decimals, or two digits where these would say nothing; the minus is a minus sign."""
    small = value != 0 and abs(value) < 5e-4
    text = f"{value:{'+' if sign else ''}{'.1e' if small else '.3f'}}"
    return text.replace("-", "−") if not small else text.replace("-", "−", 1) if value < 0 else text


def _verdict(margins: Sequence[Margin], holds: bool) -> str:
    said = [margin for margin in margins if margin.decides and not margin.note.startswith(NOT_SAID)]
    given = {margin.verdict for margin in said}
    if given == {IDENTITY}:
        return IDENTITY
    if holds:
        return HOLDS
    if HOLDS in given:
        return IN_PART
    return REFUTED if REFUTED in given else NOT_SHOWN


def _margin(row: Any, decides: bool) -> Margin:
    published = None if pd.isna(row.published) else float(row.published)
    values = {"mean": row.mean, "low": row.low, "high": row.high, "bound": row.bound}
    values |= {} if published is None else {"published": published}
    # Margins are of different quantities: each line has its own scale.
    scale = np.nanmax(np.abs(list(values.values()))) or 1.0
    at = {key: round(HALF * float(value) / scale, 1) for key, value in values.items()}
    note = "" if pd.isna(row.note) else str(row.note)
    return Margin(row.margin, row.network, row.kind, row.mean, row.low, row.high, row.bound, published,
                  row.n_images, note, row.verdict, decides, at)  # fmt: skip
