"""The leaderboard: explainers by contrasts under every judge, and what the contrast adds to each."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd

from cxlib.review.ledger.statistics import crossed
from cxlib.review.ledger.tables import Arrays, evidence

#: Of `plots/intervention.csv`, what the leaderboard has, by the name that it has there.
REPAINTED = {"rank": "repainting", "found": "repainting_found"}
COLUMNS = [
    *("network", "explainer", "contrast", "measure", "value", "low", "high"),
    *("margin", "margin_low", "margin_high", "n_images"),
]


def leaderboard(cells: Mapping[str, Arrays], repainted: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """One row for each (network, explainer, contrast, measure), with 95 % BCa intervals over images.

    `margin` is what a contrast adds to `original` on the same images. What an explainer costs is counted and not
    estimated: `passes` has no interval. Rows of `repainted` are those of the networks and explainers that were judged.

    Args:
        cells: for each network the arrays of the judging stage.
        repainted: what `tables.intervention` returns, of any networks.
        rng: draws the resamples.

    Raises:
        ValueError: a network was judged without the contrast original.
    """
    parts = []
    for network, cell in cells.items():
        explainers, contrasts = cell["explainers"].tolist(), cell["contrasts"].tolist()
        if "original" not in contrasts:
            raise ValueError(f"{network} was judged without the contrast 'original', which the others are held against")
        asked = repainted[(repainted["network"] == network) & repainted["explainer"].isin(explainers)]
        asked = asked[asked["quantity"].isin(list(REPAINTED)) & (asked["contrast"] != "perfect")]
        parts.append(asked.assign(measure=asked["quantity"].map(REPAINTED))[COLUMNS])
        reference, rows = contrasts.index("original"), []
        for measure, values in measures(cell).items():
            estimate = crossed(values[None], partial(_beside, reference=reference), rng)
            for e, c in np.ndindex(values.shape[1:]):
                value, margin = ([bound[e, c, k] for bound in estimate[:3]] for k in range(2))
                margin = [np.nan] * 3 if c == reference else margin
                rows.append((network, explainers[e], contrasts[c], measure, *value, *margin, len(values)))
        for (e, c), passes in np.ndenumerate(cell["passes"]):
            added = np.nan if c == reference else passes - cell["passes"][e, reference]
            exact = (passes, np.nan, np.nan, added, np.nan, np.nan)
            rows.append((network, explainers[e], contrasts[c], "passes", *exact, len(cell["area"])))
        parts.append(pd.DataFrame(rows, columns=COLUMNS))
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def measures(cell: Arrays) -> dict[str, np.ndarray]:
    """What the judges say of every image, (B, explainers, contrasts) each, by measure.

    - insertion_deletion: area of y_t1 - y_t2 as the map's highest pixels come, minus that as they go; of a map that
      says nothing it is zero.
    - relative_probability: the same of sigmoid(y_t1 - y_t2).
    - beyond_shifted: insertion_deletion minus that of the same map moved by half the image.
    - localisation: share of the evidence inside the parts that tell t1 from t2, minus their share of the area.
    - alike: correlation of the maps of t1 and t2.
    - head, all: how much of the map's order is left, up to its sign, when the classifier, or all layers, are new.
    """
    gained = np.subtract(*np.moveaxis(cell["areas"], -2, 0))  # (B, explainers, contrasts, orders, followed)
    (lead, relative), moved = (np.moveaxis(gained[..., order, :], -1, 0) for order in range(2))
    inside = evidence(cell["share"], cell["evidence_signs"]).mean(-1)
    head, every = np.moveaxis(np.abs(cell["randomised"]), -1, 0)
    return {
        "insertion_deletion": lead,
        "relative_probability": relative,
        "beyond_shifted": lead - moved[0],
        "localisation": inside - cell["area"][:, None, None],
        "alike": cell["alike"],
        "head": head,
        "all": every,
    }


def _beside(means: np.ndarray, reference: int) -> np.ndarray:
    """Means (R, explainers, contrasts) beside what they are above the reference's: (R, explainers, contrasts, 2)."""
    return np.stack([means, means - means[..., [reference]]], -1)
