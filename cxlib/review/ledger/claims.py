"""The ledger: what the review says, sentence by sentence, judged on values of single images.

Four kinds of row. A *comparison* is a margin that the sentence says is positive: it holds, is refuted, or is not
shown. A *difference* is one that the sentence says there is, of either sign: it holds, or is not shown. An
*equivalence* is a margin that the sentence says is small: it holds where two one-sided tests put it inside a stated
bound, and is refuted where its interval lies outside. An *identity* is exact by construction, and has no verdict.
`statements` makes the margins that are judged here.

Every network has its own rows, and all of them together have theirs: over images crossed with networks where all saw
the same ones, else over all images, those of one picture kept together. Intervals are 95 % BCa bootstrap intervals;
p-values are Holm's over the rows of one network, or of all together; no verdict rests on fewer than `FEWEST` images.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cxlib.review.ledger.statistics import crossed, holm, inside

#: Below this many images there is no verdict: the interval's own coverage is not to be trusted.
FEWEST = 30
#: The level of Holm's p-values.
LEVEL = 0.05
ALL = "all networks"
COMPARISON, DIFFERENCE, EQUIVALENCE, IDENTITY = "comparison", "difference", "equivalence", "identity"
HOLDS, REFUTED, NOT_SHOWN = "holds", "refuted", "not shown"
#: How the note of a row begins that the sentence does not speak of.
NOT_SAID = "not said"

#: The review's sentences: where it says so, and in short what it says.
STATEMENTS = {
    "claim_1": ("3.1", "weighted moves p_t and accuracy together and more than original, original moves y_t more"),
    "3.1_literal": ("3.1", "weighted and max raise p_t and accuracy, original and mean raise y_t"),
    "3.1_max": ("3.1", "(ours) max raises p_t and accuracy more than original"),
    "3.1_mean": ("3.1, 3.3", "mean and original are extremely similar"),
    "published_weighted": ("Fig. 1, 2", "the printed weighted bars, which are back-propagation from p_t"),
    "3.2_alike": ("3.2.1", "original maps of t1 and t2 are consistent"),
    "3.2_complementary": ("3.2.1", "weighted maps of t1 and t2 are almost complementary"),
    "3.2_negative_area": ("3.2.1", "original GradCAM has larger negative than positive areas"),
    "fullgrad_negative": ("later version", "FullGrad's maps are fully negative"),
    "claim_2": ("3.2.2", "weighted highlights what decides between the two dominant classes"),
    "3.2_direction": ("Table 1", "positive features kept raise their class, negative ones lower it"),
    "3.2_baselines": ("3.2.2", "the three baselines give slightly different results"),
    "3.2_xgradcam": ("3.2.2", "XGradCAM is slightly better on negative features and for t2"),
    "3.2_equal": ("3.2.2", "equal blurring has a minor impact"),
    "3.3_inverse": ("3.3", "max maps of t1 and t2 are inverse"),
    "3.3_detail": ("3.3", "weighted is max with more detail: they part as rivals grow in number"),
    "claim_3": ("3.2, 4", "the contrast carries over to other explainers"),
    "3.4_vit": ("3.4, 3.5", "on a Vision Transformer the contrast has no significant effect"),
    "3.4_layers": ("3.4", "other layers of a Vision Transformer give no spatially coherent maps"),
    "3.5_rollout": ("3.5", "rollout localises better than GradCAM on a Vision Transformer"),
    "4.1_bn": ("4.1", "without batch norm the results differ"),
    "4.2_expected": ("4.2", "weighted is better by a measure without p"),
    "4.3_dominating": ("4.3", "where p_1 >> p_2 weighted falls back to original"),
    "4.3_weights": ("4.3, Fig. 6", "explanation weights grow with the logit; a dominating class has the largest"),
    "4.3_normalise": ("4.3", "normalising before weighing should be considered"),
    "4.3_saturation": ("4.3", "as p_t goes to 1 the gradient from p_t goes to zero"),
    "eq_4": ("2.1", "from p_t is proportional to weighted"),
    "6_gradcam++": ("6", "GradCAM++ is incompatible with starting from the softmax"),
}


def _mean(means: np.ndarray) -> np.ndarray:
    return means


class Margin(NamedTuple):
    """One margin before it is judged.

    Attributes:
        statement: a key of `STATEMENTS`.
        network: its name, or `ALL`.
        name: what is compared.
        values: (networks, images, ...), of which the statistic takes means.
        kind: comparison, difference, equivalence or identity.
        statistic: from means (R, ...) to the margin (R,).
        bound: of an equivalence.
        published: the same margin of the printed numbers; NaN where nothing is printed.
        note: why it is true, or trivial, by construction.
        images: labels of the pictures, by which networks that saw the same ones are brought together.
    """

    statement: str
    network: str
    name: str
    values: np.ndarray
    kind: str = COMPARISON
    statistic: Callable[[np.ndarray], np.ndarray] = _mean
    bound: float = 0.0
    published: float = float("nan")
    note: str = ""
    images: Sequence[Hashable] | None = None


def pooled(margins: Sequence[Margin]) -> Iterator[Margin]:
    """The margins that several networks have, over all their images together."""
    groups: dict[tuple[str, str], list[Margin]] = {}
    for margin in margins:
        groups.setdefault((margin.statement, margin.name), []).append(margin)
    for first, *others in groups.values():
        members = [first, *others]
        if not others or any(margin.network == ALL or margin.images is None for margin in members):
            continue
        values = np.concatenate([margin.values for margin in members], 1)
        images = [image for margin in members for image in margin.images or ()]
        notes = {margin.note for margin in members}
        yield first._replace(network=ALL, values=values, images=images, note=notes.pop() if len(notes) == 1 else "")


def judge(margins: Sequence[Margin], rng: np.random.Generator) -> pd.DataFrame:
    """The ledger, one row a margin, in the order of `STATEMENTS`.

    Args:
        margins: of all statements.
        rng: draws the bootstraps' resamples.
    """
    order = list(STATEMENTS)
    margins = sorted([*pooled(margins), *margins], key=lambda margin: order.index(margin.statement))
    rows = []
    for margin in margins:
        n_images = margin.values.shape[1] if margin.images is None else len(set(margin.images))
        if margin.kind == EQUIVALENCE:
            estimate = inside(margin.values.mean(0), margin.bound, rng, margin.images)
        else:
            estimate = crossed(margin.values, margin.statistic, rng, margin.images)
        p = float("nan") if n_images < FEWEST or margin.kind == IDENTITY else float(estimate.p_value)
        bounds = [float(value) for value in estimate[:3]]
        rows.append((margin.statement, STATEMENTS[margin.statement][0], margin.network, margin.name, margin.kind,
                     *bounds, margin.bound, margin.published, n_images, p, margin.note))  # fmt: skip
    columns = ["statement", "section", "network", "margin", "kind", "mean", "low", "high", "bound", "published"]
    ledger = pd.DataFrame(rows, columns=[*columns, "n_images", "p_value", "note"])
    adjusted = ledger.groupby("network")["p_value"].transform(lambda p: holm(p.to_numpy(float)))
    ledger.insert(len(ledger.columns) - 1, "p_holm", adjusted)
    ledger["verdict"] = [_verdict(row) for row in ledger.itertuples()]
    return ledger


def _verdict(row: Any) -> str:
    if row.kind == IDENTITY:
        return IDENTITY
    significant = row.p_holm < LEVEL
    if row.kind == DIFFERENCE:
        return HOLDS if significant else NOT_SHOWN
    if row.kind == EQUIVALENCE:
        outside = row.low > row.bound or row.high < -row.bound
        return HOLDS if significant else REFUTED if outside and row.n_images >= FEWEST else NOT_SHOWN
    return NOT_SHOWN if not significant else HOLDS if row.mean > 0 else REFUTED


def decisive(ledger: pd.DataFrame) -> pd.DataFrame:
    """The rows that decide: a margin on all networks together where there is such a row, else on each."""
    margins = pd.MultiIndex.from_frame(ledger[["statement", "margin"]])
    together = ledger["network"] == ALL
    return ledger[together | ~margins.isin(margins[together])]


#: The margin of each claim that its headline gives.
LEADING = {"claim_1": "p_t_weighted_minus_original", "claim_2": "t2_equal_kept", "claim_3": "gradcam"}


def headlines(ledger: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """For each statement whether it holds, and the leading margin of claims 1 to 3, mean over the rows that decide.

    A statement holds when all of its rows that are tested hold: a margin that is on all networks together there, any
    other on each; what is noted as `NOT_SAID` stands beside. One without such a row, identities aside, does not hold;
    one of identities alone does.
    """
    result: dict[str, dict[str, Any]] = {}
    for statement, judged in decisive(ledger).groupby("statement", sort=False):
        said = ~judged["note"].fillna("").str.startswith(NOT_SAID)
        tested = judged[said & (judged["kind"] != IDENTITY) & (judged["n_images"] >= FEWEST)]
        identities = (judged["kind"] == IDENTITY).all()
        result[str(statement)] = {"holds": bool(identities or (len(tested) and (tested["verdict"] == HOLDS).all()))}
        leading = judged[judged["margin"] == LEADING.get(str(statement))]
        if len(leading):
            result[str(statement)]["margin"] = float(leading["mean"].mean())
    return result
