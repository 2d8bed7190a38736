"""Vision Transformers, from the positive part of what reaches their attention: Chefer's relevance, and LeGrad.

Neither is linear in the cotangent, for both keep a positive part inside; their maps are never negative.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from cxlib import taps
from cxlib.explainers import vit
from cxlib.explainers.vit import Cotangents


def attention_relevance(
    network: nn.Module, images: Tensor, cotangents: Cotangents, layer: str | nn.Module | None, _relu: bool
) -> Tensor:
    """Generic attention explainability (Chefer et al. 2021, arXiv:2103.15679), self-attention: (B, M, h, w).

    From R = I, block by block, R <- R + Abar R (Eq. 6), Abar the mean over heads of relu(gradient * attention) (Eq. 5);
    the row of the token that the classifier reads, of which I is left out. Several such tokens are averaged.

    A contrast's map: where attention helps the contrast's own score; no combination of the classes' maps. Nor is its
    scale free: products of blocks count more, the larger the cotangent, and vanish for `probability` of a sure class.

    Args:
        network: a Vision Transformer, or a module with one inside.
        images: (B, 3, H, W).
        cotangents: from logits (B, K) to cotangents (B, M, K).
        layer: the block at which the relevance begins, by name or module; None takes all blocks.

    Raises:
        ValueError: no transformer, or `layer` is none of its blocks.
    """
    return vit.rolled_out(network, images, cotangents, layer, relevance)


def relevance(attentions: Sequence[Tensor], gradients: Sequence[Tensor], pooled: slice) -> Tensor:
    """The relevance (B, N) of all tokens to the pooled ones; args as `vit.rollout`."""
    eye = torch.eye(attentions[0].shape[-1]).to(attentions[0])[pooled]
    # R - I itself, for a small R would be lost beside I; from the last block, so that only these rows are multiplied.
    rows = torch.zeros_like(eye)
    for attention, gradient in zip(reversed(attentions), reversed(gradients)):
        rows = rows + (rows + eye) @ (gradient * attention).clamp(min=0).mean(1)
    return rows.mean(1)


def legrad(
    network: nn.Module, images: Tensor, cotangents: Cotangents, layer: str | nn.Module | None, _relu: bool
) -> Tensor:
    """LeGrad (Bousselham et al. 2024, arXiv:2404.03214): (B, M, h, w).

    The mean over blocks l, heads and queries of relu(d s_l / d A_l), A_l being the block's attention and s_l = <c, y_l>
    the score of the logits y_l that the network would give if it ended behind block l: its own pooling, normalisation
    and head read that block's tokens. c is the contrast of the whole network's logits. The paper's last step, to
    [0, 1], is left out. It takes a forward pass for each block.

    A contrast's map: which tokens' attention would raise the contrast's own score. It scales with the cotangent, so
    that `probability` and `weighted` have one map up to p_t (1 - p_t), but is no combination of the classes' maps.

    Args:
        network: a Vision Transformer, or a module with one inside.
        images: (B, 3, H, W).
        cotangents: from logits (B, K) to cotangents (B, M, K).
        layer: the first of the blocks, by name or module; None takes all.

    Raises:
        ValueError: no transformer, or `layer` is none of its blocks.
    """
    lie = vit.tokens(network, images)
    asked: list[Tensor] = []
    summed: list[Tensor] = []
    with vit.unfused(network) as probes:
        depths = range(vit.first_block(network, layer), len(probes))
        for depth in reversed(depths):  # the whole network first
            with _ending_behind(network, depth):
                recorded = taps.record(network, images, probes[depth])
            vit.check_among_tokens(recorded.activation, lie)
            asked = asked or list(cotangents(recorded.logits).unbind(1))
            summed.append(torch.stack([recorded.pull_back(c).clamp(min=0).mean((1, 2)) for c in asked], 1))
    laid: Tensor = torch.stack(summed).mean(0)[..., lie.n_prefix :].unflatten(-1, lie.grid)
    return laid


@contextmanager
def _ending_behind(network: nn.Module, depth: int) -> Iterator[None]:
    """The blocks behind block `depth` hand on what they are given."""
    with ExitStack() as restored:
        for block in list(vit.blocks(network).values())[depth + 1 :]:
            # An attribute of the instance hides the class's forward, and goes away again.
            restored.callback(delattr, block, "forward")
            block.forward = lambda tokens, *_rest, **_options: tokens
        yield


MAPS = {"attention_relevance": attention_relevance, "legrad": legrad}
