"""Figure 6: does a class with a larger logit have a larger input gradient?"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from cxlib import taps


def ranks_to_explain(n_classes: int) -> list[int]:
    """The ranks by logit that the review explains: the top 50, every 20th in between, and the last 50."""
    if n_classes <= 100:
        return list(range(n_classes))
    return [*range(50), *range(50, n_classes - 50, 20), *range(n_classes - 50, n_classes)]


def gradient_norms(network: nn.Module, images: Tensor, ranks: Sequence[int], chunk: int) -> tuple[Tensor, Tensor]:
    """Logit and norm of its gradient at the *normalised* input, as published, for classes by rank of their logit.

    Args:
        network: maps images (B, 3, H, W) in [0, 1] to logits (B, K); its `std`, if any, is that of the normalisation.
        images: (B, 3, H, W) in [0, 1].
        ranks: R ranks of logits, 0 the largest.
        chunk: how many classes' gradients are held at once.

    Returns:
        logits (B, R) and norms (B, R).
    """
    recorded = taps.record(network, images)
    order = recorded.logits.argsort(dim=-1, descending=True, stable=True)
    classes = order[:, list(ranks)]  # (B, R)
    std = getattr(network, "std", torch.ones(3, 1, 1)).to(images.device)
    norms = []
    for part in classes.split(chunk, 1):
        cotangents = nn.functional.one_hot(part, recorded.logits.shape[-1]).to(recorded.logits)
        # d/dx_normalised = std * d/dx
        norms.append((recorded.pull_back(cotangents) * std).flatten(2).norm(dim=-1))
    return recorded.logits.gather(-1, classes), torch.cat(norms, 1)


def second_degree_fit(logits: np.ndarray, norms: np.ndarray) -> tuple[np.ndarray, float]:
    """Least-squares polynomial of degree two over all points (highest power first) and its R^2."""
    x, y = logits.ravel(), norms.ravel()
    coefficients = np.polyfit(x, y, 2)
    residual = y - np.polyval(coefficients, x)
    return coefficients, float(1 - residual.var() / y.var())


def rank_correlation(logits: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of logit and norm within each image, ties sharing a rank: (B, R), (B, R) -> (B,)."""
    first, second = (pd.DataFrame(values).rank(axis=1) for values in (logits, norms))
    return first.corrwith(second, axis=1).to_numpy()
