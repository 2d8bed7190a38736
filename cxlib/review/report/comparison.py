"""Two reviews beside each other: which verdicts differ, and which numbers moved beyond their tolerance.

A review maps names of files to what they hold: `plots/*.csv` to data frames, `metrics/*.json` to nested dictionaries.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

Review = Mapping[str, Any]

#: A number with an interval may move by this share of the other interval's half width; rounding is no movement.
HALF_WIDTH, ROUNDING = 0.25, 1e-6
#: Any other number may move by the larger of the two; a count (named `n`, or `n_…`) not at all.
ABSOLUTE, RELATIVE = 0.01, 0.02
TOLERANCE = (
    f"{HALF_WIDTH:g} of the other interval's half width (at least {ROUNDING:g}) where there is an interval, "
    f"else {ABSOLUTE:g} or {RELATIVE:.0%}, whichever is larger; counts: 0"
)

#: The file of verdicts, and what a verdict is of.
LEDGER, OF = "plots/claims.csv", ["statement", "network", "margin"]
#: Columns of numbers that were chosen, not measured.
SETTINGS = {"section", "epsilon", "n_iterations", "image", "step", "block", "epoch", "n", "classes"}
#: Columns that say what computed a row.
PROVENANCE = {"computed_by"}


@dataclass(frozen=True)
class Verdict:
    """A verdict that differs; None where there is no such row."""

    of: str
    here: str | None
    there: str | None


@dataclass(frozen=True)
class Moved:
    """A number that moved by more than is allowed."""

    key: str
    here: float
    there: float
    allowed: float


@dataclass(frozen=True)
class File:
    """One file's numbers: how many both have, how many of them differ within the tolerance, those beyond, worst first.

    And how many only one has.
    """

    name: str
    compared: int
    digits: int
    moved: list[Moved]
    only_here: int
    only_there: int


@dataclass(frozen=True)
class Comparison:
    """How many verdicts agree, those that do not, the files that both reviews have, and those that only one has."""

    agree: int
    verdicts: list[Verdict]
    files: list[File]
    only_here: list[str]
    only_there: list[str]

    @property
    def summary(self) -> str:
        """One line of counts."""
        compared, digits = (sum(getattr(file, name) for file in self.files) for name in ("compared", "digits"))
        return (
            f"{self.agree} verdict{'s agree' if self.agree != 1 else ' agrees'}, "
            f"{len(self.verdicts)} differ{'s' if len(self.verdicts) == 1 else ''}; {compared} numbers compared, "
            f"{sum(len(file.moved) for file in self.files)} moved beyond their tolerance, "
            f"{digits} digits-only difference{'s' if digits != 1 else ''}"
        )


def check(review: Review, name: str) -> None:
    """Look for the verdicts of a review, which the message calls `name`.

    Raises:
        ValueError: it has no ledger, or one without verdicts.
    """
    if LEDGER not in review:
        raise ValueError(f"{name} has no {LEDGER}")
    absent = [column for column in [*OF, "verdict"] if column not in review[LEDGER]]
    if absent:
        raise ValueError(f"{LEDGER} of {name} holds no verdicts, it lacks: {', '.join(absent)}")


def compare(here: Review, there: Review) -> Comparison:
    """Compare two reviews, by the tolerances of the second.

    A verdict is that of a row of the ledger, matched by `OF`, or a boolean of the metrics; no verdict twice is none.

    Rows of any other table are matched by all columns that either table has text in and those in `SETTINGS`, rows that
    are alike in these by their order. A table with a column `image` is compared by its means over images and steps,
    for each combination of its texts. The interval `low`, `high` is that of the nearest column before it that measures
    something, `X_low`, `X_high` that of `X`, and in metrics that of all numbers beside it; its ends may move as far.

    Raises:
        ValueError: one has no ledger, or one without verdicts.
    """
    check(here, "the first")
    check(there, "the second")
    first, second = _verdicts(here), _verdicts(there)
    pairs = [(of, first.get(of), second.get(of)) for of in first | second]
    return Comparison(
        agree=sum(a == b != "" for _, a, b in pairs),
        verdicts=[Verdict(of, a, b) for of, a, b in pairs if a != b],
        files=[_file(name, here[name], there[name]) for name in sorted(here.keys() & there.keys())],
        only_here=sorted(here.keys() - there.keys()),
        only_there=sorted(there.keys() - here.keys()),
    )


def _verdicts(review: Review) -> dict[str, str]:
    ledger = review[LEDGER]
    verdicts = dict(zip(_labels(ledger, OF), ledger["verdict"].fillna("").astype(str)))
    for name, metrics in review.items():
        if not isinstance(metrics, pd.DataFrame):
            leaves = [(path, leaf) for path, leaf, _ in _leaves(metrics) if isinstance(leaf, bool)]
            verdicts |= {f"{name}: {path}": str(leaf).lower() for path, leaf in leaves}
    return verdicts


def _file(name: str, here: Any, there: Any) -> File:
    if isinstance(here, pd.DataFrame):
        shared = [column for column in here if column in there]
        texts = [c for c in shared if not (_is_number(here[c]) and _is_number(there[c])) and c not in PROVENANCE]
        keys = OF if name == LEDGER else [column for column in shared if column in {*texts, *SETTINGS}]
        first, second = (_table_numbers(table, keys, texts) for table in (here, there))
    else:
        first, second = _metrics_numbers(here), _metrics_numbers(there)
    # What is empty in both is no number: a margin, say, in the rows that have none.
    both = first.join(second, how="inner", lsuffix="_here").dropna(subset=["value_here", "value"], how="all")
    a, b, half_width = (both[column].to_numpy(float) for column in ("value_here", "value", "half_width"))
    allowed = np.where(
        np.isnan(half_width),
        np.maximum(ABSOLUTE, RELATIVE * np.abs(b)),
        np.maximum(HALF_WIDTH * half_width, ROUNDING),
    )
    allowed[both["is_count"].to_numpy(bool) | ~np.isfinite(b)] = 0
    with np.errstate(invalid="ignore", divide="ignore"):
        distance = np.where(a == b, 0, np.abs(a - b))
        distance[np.isnan(distance)] = np.inf  # empty in one of the two
        excess = np.where(distance > 0, distance / allowed, 0)
    moved = excess > 1 + 1e-9
    worst = np.lexsort((-distance, -excess))[: moved.sum()]
    return File(
        name,
        compared=len(both),
        digits=int(((distance > 0) & ~moved).sum()),
        moved=[Moved(both.index[i], float(a[i]), float(b[i]), float(allowed[i])) for i in worst],
        only_here=int(first.loc[first.index.difference(second.index), "value"].count()),
        only_there=int(second.loc[second.index.difference(first.index), "value"].count()),
    )


def _table_numbers(table: pd.DataFrame, keys: Sequence[str], texts: Sequence[str]) -> pd.DataFrame:
    """All that a table measures, a row a number."""
    chosen = {*keys, *texts, *SETTINGS, *PROVENANCE}
    measured = [column for column in table if column not in chosen and _is_number(table[column])]
    labels = _labels(table, keys)
    if "image" in table:
        groups = table[measured].groupby(_labels(table, texts, numbered=False))
        table = groups.mean().assign(n_rows=groups.size())
        measured, labels = list(table), list(table.index)
    half_width = pd.DataFrame(np.nan, table.index, measured)
    for column, low, high in _intervals(measured):
        for name in (column, low, high):
            half_width[name] = (table[high] - table[low]) / 2
    return pd.DataFrame(
        {
            "value": table[measured].to_numpy(float).ravel(),
            "half_width": half_width.to_numpy(float).ravel(),
            "is_count": np.tile([_is_count(column) for column in measured], len(table)),
        },
        index=[f"{label}: {column}" if label else column for label in labels for column in measured],
    )


def _metrics_numbers(metrics: Any) -> pd.DataFrame:
    """All numbers of nested dictionaries."""
    rows = {
        path: (leaf, half_width, _is_count(path.rpartition(".")[2]))
        for path, leaf, half_width in _leaves(metrics)
        if isinstance(leaf, int | float) and not isinstance(leaf, bool)
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "half_width", "is_count"])


def _intervals(measured: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """The columns that have an interval, with its lower and its upper end."""
    for column in measured:
        if f"{column}_low" in measured and f"{column}_high" in measured:
            yield column, f"{column}_low", f"{column}_high"
    if "low" in measured and "high" in measured:
        before = [column for column in measured[: measured.index("low")] if not _is_count(column)]
        yield from [(before[-1], "low", "high")] if before else []


def _leaves(tree: Any, path: str = "", half_width: float = np.nan) -> Iterator[tuple[str, Any, float]]:
    """Every value of nested dictionaries and lists, where it stands, and half the width of the interval beside it."""
    if not isinstance(tree, dict | list):
        yield path, tree, half_width
        return
    branches = tree if isinstance(tree, dict) else dict(enumerate(tree))
    low, high = branches.get("low"), branches.get("high")
    beside = (high - low) / 2 if isinstance(low, int | float) and isinstance(high, int | float) else np.nan
    for name, branch in branches.items():
        yield from _leaves(branch, f"{path}.{name}" if path else str(name), beside)


def _labels(table: pd.DataFrame, columns: Sequence[str], numbered: bool = True) -> list[str]:
    """What tells the rows of a table apart; with their number where these columns do not."""
    parts = [[f"{c}={_text(value)}" if c in SETTINGS else _text(value) for value in table[c]] for c in columns]
    labels = pd.Series([", ".join(row) for row in zip(*parts)] if parts else [""] * len(table), dtype=object)
    again = labels.groupby(labels).cumcount() + 1
    return [f"{label} #{i}".lstrip() if numbered and i > 1 else label for label, i in zip(labels, again)]


def _text(value: Any) -> str:
    """A value by which rows are matched: 0.1, "0.10" and, in a column with gaps, 1.0 and 1 are the same."""
    if pd.isna(value) or value == "":
        return "–"
    try:
        return f"{float(value):.12g}"
    except ValueError:
        return str(value)


def _is_number(column: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(column))


def _is_count(name: str) -> bool:
    return name == "n" or name.startswith("n_")
