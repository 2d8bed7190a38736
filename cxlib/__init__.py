"""Class-contrastive explanations: why this class, *but not others*?

The public face. Everything is imported on first use, so that ``import cxlib`` costs nothing and a script
that needs one module does not load the others.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxlib import adapters, contrasts, datasets, metrics, networks, outputs
    from cxlib.contrasts import CONTRASTS
    from cxlib.explainers import EXPLAINERS, explain

__all__ = ["CONTRASTS", "EXPLAINERS", "adapters", "contrasts", "datasets", "explain", "metrics", "networks", "outputs"]

_HOME = {"CONTRASTS": "cxlib.contrasts", "EXPLAINERS": "cxlib.explainers", "explain": "cxlib.explainers"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in (module.name for module in pkgutil.iter_modules(__path__)):
        return importlib.import_module(f"cxlib.{name}")
    raise AttributeError(f"module 'cxlib' has no attribute {name!r}")
