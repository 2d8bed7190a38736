"""The review's claims, judged on values of single images: margins with 95 % bootstrap intervals.

Every margin is written so that the claim says it is positive; a claim holds when the lower bound of each of its
margins is above zero, on at least `FEWEST` images.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from cxlib.review.report import tables
from cxlib.review.report.statistics import bootstrap, bootstrap_mean, correlation
from cxlib.review.report.tables import BETTER, Arrays, evidence

FORWARD, OPPOSITE = "weighted_minus_original", "original_minus_weighted"
AGREEMENT = "p_t_and_accuracy_agreement"
#: Claim 2's second ground; and what stands in its place, and proves nothing, where the data does not know the parts
#: that tell two classes apart: how much of the map lies on the bird's parts at all.
LOCALISATION, ON_THE_BIRD = f"localisation_{FORWARD}", f"on_the_bird_{FORWARD}"
ALL = "all networks"
#: A bootstrap over fewer images says nothing; over a single one the interval is a point.
FEWEST = 10


class Margin(NamedTuple):
    """One margin: its mean over images and interval, and the same margin of the published numbers (NaN: none)."""

    claim: int
    network: str
    margin: str
    mean: float
    low: float
    high: float
    published: float
    n_images: int


def perturbation_margins(
    cells: Mapping[str, Arrays], published: pd.DataFrame, rng: np.random.Generator
) -> list[Margin]:
    """Claim 1: weighted moves p_t and accuracy together and more than original does, original moves y_t more.

    Averages over epsilons and numbers of iterations; each network on its own, and all of them together. The
    agreement is the correlation of p_t's and accuracy's mean changes over all settings and contrasts of a network.

    Args:
        cells: for each network the arrays of the perturbation stage.
        published: the digitised Figures 1 and 2.
        rng: draws the bootstrap's resamples.

    Raises:
        ValueError: the networks were given different images.
    """
    differences, changes = {}, {}  # network -> (images, quantities), (images, quantities, settings)
    first = next(iter(cells))
    for network, cell in cells.items():
        if not np.array_equal(cell["images"], cells[first]["images"]):
            raise ValueError(f"{first} and {network} perturbed different images: run one of them again")
        contrasts = list(cell["contrasts"])
        weighted, original = (cell["changes"][contrasts.index(name)] for name in ("weighted", "original"))
        direction = np.array([-1.0 if quantity == "y_t" else 1.0 for quantity in cell["quantities"]])
        differences[network] = (weighted - original).mean((0, 1)).T * direction
        changes[network] = np.moveaxis(cell["changes"], (-1, -2), (0, 1)).reshape(*differences[network].shape, -1)
    quantities = [str(quantity) for quantity in cells[first]["quantities"]]
    names = [f"y_t_{OPPOSITE}" if quantity == "y_t" else f"{quantity}_{FORWARD}" for quantity in quantities]
    margins = []
    for network, values in {ALL: np.mean(list(differences.values()), 0), **differences}.items():
        alike = list(cells) if network == ALL else [network]
        printed = [_published_change(published, alike, quantity) for quantity in quantities]
        margins += _margins(1, network, names, values, printed, rng)
        stacked = np.stack([changes[name] for name in alike], 1)  # (images, networks, quantities, settings)
        mean, low, high = map(float, bootstrap(stacked, lambda means: _agreement(means, quantities), rng))
        margins.append(
            Margin(1, network, AGREEMENT, mean, low, high, _published_agreement(published, alike), len(values))
        )
    return margins


def masking_margins(cells: Mapping[str, Arrays], published: pd.DataFrame, rng: np.random.Generator) -> list[Margin]:
    """Claims 2 and 3: keeping positive (negative) features raises (lowers) the target more under weighted.

    Claim 2 has a margin for each target and rule, claim 3 one for each explainer, over both rules; kept positive
    and negative features, baselines and the other axes are averaged.

    Args:
        cells: for each network the arrays of the masking stage.
        published: the printed Table 1.
        rng: draws the bootstrap's resamples.
    """
    margins = []
    for network, cell in cells.items():
        gained = tables.margins(cell)[cell["above"]][..., list(cell["contrasts"]).index("weighted"), :]
        difference = gained.mean((3, 4))  # (images, explainers, targets, rules)
        if len(difference) == 0:
            raise ValueError(f"{network}: no test image is above the threshold of p_2, so claim 2 cannot be judged")
        targets, explainers, rules = (list(map(str, cell[axis])) for axis in ("targets", "explainers", "rules"))
        margins += _margins(
            2,
            network,
            [f"{target}_{rule}" for target in targets for rule in rules],
            difference.mean(1).reshape(len(difference), -1),
            [_published_margin(published, "target", target) for target in targets for _ in rules],
            rng,
        )
        margins += _margins(
            3,
            network,
            explainers,
            difference.mean((2, 3)),
            [_published_margin(published, "explainer", explainer) for explainer in explainers],
            rng,
        )
    return margins


def localisation_margins(cells: Mapping[str, Arrays], rng: np.random.Generator) -> list[Margin]:
    """Claim 2's other ground: more of the weighted map's evidence lies in the parts that tell t1 from t2.

    The margin is that of share - area, paired over images, mean over explainers and targets: `LOCALISATION`, or
    `ON_THE_BIRD` where the regions are all the parts of the bird. Nothing of it is published.

    Args:
        cells: for each network the arrays of the localisation stage.
        rng: draws the bootstrap's resamples.

    Raises:
        ValueError: a contrast is missing, or no image is above the threshold.
    """
    margins = []
    for network, cell in cells.items():
        contrasts = list(cell["contrasts"])
        if missing := {"original", "weighted"} - set(contrasts):
            raise ValueError(f"{network} was localised without the contrast {min(missing)!r}, which claim 2 needs")
        side = cell["above"]
        if not side.any():
            raise ValueError(f"{network}: no test image above the threshold of p_2 shows what tells t1 from t2")
        share = evidence(cell["share"][side], cell["evidence_signs"][side])  # (images, explainers, contrasts, targets)
        difference = share[:, :, contrasts.index("weighted")] - share[:, :, contrasts.index("original")]
        name = LOCALISATION if cell["discriminative"] else ON_THE_BIRD
        margins += _margins(2, network, [name], difference.mean((1, 2))[:, None], [float("nan")], rng)
    return margins


#: The margin of each claim that its headline gives.
LEADING = {1: f"p_t_{FORWARD}", 2: "t2_published", 3: "gradcam"}


def verdicts(margins: Iterable[Margin]) -> dict[str, dict]:
    """Headlines of the claims: for each `holds`, and its leading margin with its interval, of each network.

    Claim 1's margins are those over all networks. Claim 2 stands on two grounds, Table 1 and localisation: each has its
    own verdict (`holds_table1`, `holds_localisation`), and the claim needs both. Where the data does not know what
    tells two classes apart there is no second ground: `ON_THE_BIRD` is reported and not required.
    """
    result: dict[str, dict] = {}
    for margin in margins:
        if margin.claim == 1 and margin.network != ALL:
            continue
        claim = result.setdefault(f"claim_{margin.claim}", {"holds": True})
        if margin.margin == LEADING[margin.claim]:
            numbers = {"mean": margin.mean, "low": margin.low, "high": margin.high}
            claim[margin.margin if margin.claim == 1 else f"{margin.network}_{margin.margin}"] = numbers
        if margin.margin == ON_THE_BIRD:
            continue
        holds = bool(margin.low > 0) and margin.n_images >= FEWEST
        claim["holds"] &= holds
        if margin.claim == 2:
            ground = "holds_localisation" if margin.margin == LOCALISATION else "holds_table1"
            claim[ground] = claim.get(ground, True) and holds
    return result


def _margins(
    claim: int, network: str, names: list[str], values: np.ndarray, published: list[float], rng: np.random.Generator
) -> list[Margin]:
    """One margin a column of (images, margins)."""
    interval = bootstrap_mean(values, rng)
    return [
        Margin(claim, network, name, float(mean), float(low), float(high), printed, len(values))
        for name, mean, low, high, printed in zip(names, *interval, published)
    ]


def _agreement(means: np.ndarray, quantities: list[str]) -> np.ndarray:
    """Correlation of p_t's and accuracy's changes over the settings, mean over networks.

    From (R, networks, quantities, settings) to (R,).
    """
    p_t, accuracy = (means[:, :, quantities.index(name)] for name in ("p_t", "accuracy"))
    return correlation(p_t, accuracy).mean(-1)


def _published_agreement(published: pd.DataFrame, networks: list[str]) -> float:
    rows = published[published["network"].isin(networks)]
    if rows.empty:
        return float("nan")
    wide = rows.pivot_table("change", ["network", "epsilon", "n_iterations", "contrast"], "quantity")
    return float(
        np.mean([correlation(*group[["p_t", "accuracy"]].to_numpy().T) for _, group in wide.groupby("network")])
    )


def _published_change(published: pd.DataFrame, networks: list[str], quantity: str) -> float:
    rows = published[published["network"].isin(networks) & (published["quantity"] == quantity)]
    change = rows.groupby("contrast")["change"].mean()
    if change.empty:
        return float("nan")
    return float(change["weighted"] - change["original"]) * (-1 if quantity == "y_t" else 1)


def _published_margin(published: pd.DataFrame, axis: str, value: str) -> float:
    rows = published[(published[axis] == value) & published["kept_features"].isin(list(BETTER))]
    if rows.empty:
        return float("nan")
    wide = rows.pivot_table("relative_probability", ["explainer", "target", "baseline", "kept_features"], "contrast")
    better = wide.index.get_level_values("kept_features").map(BETTER).to_numpy()
    return float(((wide["weighted"] - wide["original"]) * better).mean())
