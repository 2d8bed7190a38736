"""Judges of anybody's maps: signed maps (…, H, W) of any explainer, for any network, on any device.

| asks | name |
|---|---|
| does y_t - y_other follow the map's order? | `insertion_deletion`, `area` |
| is the pair's balance in what the map shows? (Table 1) | `blur_and_mask`, `mask_maps`, `relative_probability` |
| is the map where the two classes differ? | `measure`, `localise` |
| does the map agree with what a change of the image does? | `agreement`, `effects`, `mass` |
| does the map change when its target does? | `target_sensitivity` |
| does the map change when the network does? | `model_randomisation`, `randomised` |
| what does a map cost, in forward passes? | `passes` |
| how alike are two maps? | `SIMILARITIES` |
| what takes the place of hidden pixels? | `BASELINES`, `Blur`, `linear_imputation` |

Everything is imported on first use.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxlib.metrics.baselines import BASELINES, Blur
    from cxlib.metrics.cost import passes
    from cxlib.metrics.curves import area, insertion_deletion
    from cxlib.metrics.imputation import linear_imputation
    from cxlib.metrics.interventions import agreement, effects, mass
    from cxlib.metrics.localisation import localise, measure
    from cxlib.metrics.masking import blur_and_mask, mask_maps, relative_probability
    from cxlib.metrics.randomisation import model_randomisation, randomised
    from cxlib.metrics.similarity import SIMILARITIES, target_sensitivity

__all__ = [
    "BASELINES",
    "SIMILARITIES",
    "Blur",
    "agreement",
    "area",
    "blur_and_mask",
    "effects",
    "insertion_deletion",
    "linear_imputation",
    "localise",
    "mask_maps",
    "mass",
    "measure",
    "model_randomisation",
    "passes",
    "randomised",
    "relative_probability",
    "target_sensitivity",
]

_HOME = {
    "BASELINES": "baselines",
    "SIMILARITIES": "similarity",
    "Blur": "baselines",
    "agreement": "interventions",
    "area": "curves",
    "blur_and_mask": "masking",
    "effects": "interventions",
    "insertion_deletion": "curves",
    "linear_imputation": "imputation",
    "localise": "localisation",
    "mask_maps": "masking",
    "mass": "interventions",
    "measure": "localisation",
    "model_randomisation": "randomisation",
    "passes": "cost",
    "randomised": "randomisation",
    "relative_probability": "masking",
    "target_sensitivity": "similarity",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"cxlib.metrics.{_HOME[name]}"), name)
    if name in (module.name for module in pkgutil.iter_modules(__path__)):
        return importlib.import_module(f"cxlib.metrics.{name}")
    raise AttributeError(f"module 'cxlib.metrics' has no attribute {name!r}")
