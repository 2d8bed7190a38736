"""Vision Transformers: GradCAM on tokens (section 3.4) and gradient-weighted attention rollout (section 3.5).

For torchvision's `VisionTransformer`, timm's plain ones (vit, deit, eva, beit) and those of Hugging Face's
`transformers` (ViT, DeiT, BEiT, DINOv2, CLIP and what else is built like them), bare or inside another module.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from cxlib import taps
from cxlib.explainers import cam
from cxlib.networks import explanation_layer, nested

#: From logits (B, K) to M cotangents an image (B, M, K).
Cotangents = Callable[[Tensor], Tensor]

# A row of (A + I)/2 without ReLU may sum to nothing; the smallest sum that is divided by.
TINY = 1e-7

# Names that differ between libraries: of what holds the blocks, and of a block's attention and first normalisation.
_CONTAINERS = ("blocks", "encoder.layers", "encoder.layer", "layers", "model.layer")
_ATTENTIONS = ("self_attention", "attn", "attention", "self_attn")
_NORMALISATIONS = ("norm1", "ln_1", "layernorm_before", "layer_norm1")
# Hugging Face's: the tokens that stand before the patches.
_PREFIX = ("cls_token", "class_embedding", "distillation_token", "register_tokens")


# --- what is said about a transformer ------------------------------------------------------------------------


class Tokens(NamedTuple):
    """How a transformer's tokens (B, N, C) lie: the first ones stand for no patch, the others row by row.

    Attributes:
        n_prefix: class, distillation and register tokens.
        grid: (h, w) patches.
        pooled: the tokens that the classifier reads.
    """

    n_prefix: int
    grid: tuple[int, int]
    pooled: slice


def transformer(network: nn.Module) -> nn.Module:
    """The Vision Transformer inside a network.

    Raises:
        ValueError: there is none.
    """
    for module in network.modules():
        grid = getattr(getattr(module, "patch_embed", None), "dynamic_feat_size", None)
        if isinstance(module, VisionTransformer) or (grid and hasattr(module, "num_prefix_tokens")):
            return module
        if _embedding(module) and _container(module):
            return module
    *_, inner = nested(network)
    kind = type(inner).__name__
    raise ValueError(f"{kind} is no plain Vision Transformer (vit, deit): explain it with gradcam or gradient")


def tokens(network: nn.Module, images: Tensor) -> Tokens:
    """How the tokens of images (B, 3, H, W) lie in a network's transformer.

    Hugging Face's DINOv2 is classified by its class token and the patches' average: the class token stands for both.

    Raises:
        ValueError: there is no transformer.
    """
    inner: Any = transformer(network)
    if isinstance(inner, VisionTransformer):
        height, width = (size // inner.patch_size for size in images.shape[-2:])
        return Tokens(1, (height, width), slice(0, 1))
    embedding = _embedding(inner)
    if embedding:
        return _huggingface_tokens(network, inner, embedding, images)
    n_prefix, grid = inner.num_prefix_tokens, inner.patch_embed.dynamic_feat_size(tuple(images.shape[-2:]))
    if inner.global_pool == "token":
        # A distilled deit averages the heads of its class and its distillation token; registers are not read.
        return Tokens(n_prefix, tuple(grid), slice(0, 2 if hasattr(inner, "head_dist") else 1))
    return Tokens(n_prefix, tuple(grid), slice(n_prefix, None))


def _huggingface_tokens(network: nn.Module, inner: Any, embedding: nn.Conv2d, images: Tensor) -> Tokens:
    named = dict(inner.embeddings.named_parameters(recurse=False))
    prefix = [named[name] for name in _PREFIX if name in named]
    n_prefix = sum(token.shape[-2] if token.ndim > 1 else 1 for token in prefix)
    height, width = (
        (size - kernel) // stride + 1
        for size, kernel, stride in zip(images.shape[-2:], embedding.kernel_size, embedding.stride)
    )
    if not n_prefix or getattr(inner.config, "use_mean_pooling", False):
        return Tokens(n_prefix, (height, width), slice(n_prefix, None))
    distilled = any(hasattr(module, "distillation_classifier") for module in network.modules())
    return Tokens(n_prefix, (height, width), slice(0, 2 if distilled else 1))


def _embedding(module: Any) -> nn.Conv2d | None:
    """The convolution that makes patches tokens, as Hugging Face's transformers name it; None elsewhere."""
    layers = getattr(module, "embeddings", None)
    named = layers.named_modules() if isinstance(layers, nn.Module) else ()
    return next((layer for name, layer in named if "patch_embed" in name and isinstance(layer, nn.Conv2d)), None)


def _container(module: nn.Module) -> str | None:
    """The name of what holds a transformer's blocks; None where there is none, or its parts have no attention."""
    modules = dict(module.named_modules())
    for name in _CONTAINERS:
        first = next(modules[name].children(), None) if name in modules else None
        if first is not None and _attention(first) is not None:
            return name
    return None


def _attention(block: nn.Module) -> Any:
    return next((getattr(block, name) for name in _ATTENTIONS if hasattr(block, name)), None)


def as_map(values: Tensor, lie: Tokens) -> Tensor:
    """Tokens (..., N, C) as (..., C, h, w), those that stand for no patch left out."""
    laid: Tensor = values[..., lie.n_prefix :, :].mT.unflatten(-1, lie.grid)
    return laid


def check_read(network: nn.Module, gradients: Tensor, laid_out: Tensor) -> None:
    """Check that of gradients at a layer of tokens something is left where they are laid out as a map.

    Raises:
        ValueError: only tokens that stand for no patch have a gradient.
    """
    if gradients.any() and not laid_out.any():
        raise ValueError(
            "behind the layer only the class token is read, so that no patch has a gradient:"
            f" choose an earlier layer, such as {token_layers(network)[-1]}"
        )


def token_layers(network: nn.Module) -> list[str]:
    """Names of the layers at which `vit_gradcam` can explain: each block's first normalisation, in order.

    Raises:
        ValueError: there is no transformer.
    """
    return [
        f"{name}.{next((part for part in _NORMALISATIONS if hasattr(block, part)), _NORMALISATIONS[0])}"
        for name, block in blocks(network).items()
    ]


def blocks(network: nn.Module) -> dict[str, nn.Module]:
    """The blocks by name, as `networks.explanation_layer` takes it."""
    inner = transformer(network)
    *_, whole = nested(network)
    prefix = next(name for name, module in whole.named_modules() if module is inner)
    container = _container(inner) or "blocks"
    return {
        ".".join(filter(None, (prefix, container, name))): block
        for name, block in inner.get_submodule(container).named_children()
    }


# --- attention matrices ----------------------------------------------------------------------------------------


@contextmanager
def unfused(network: nn.Module) -> Iterator[list[nn.Module]]:
    """Every block's attention as plain matrix products inside; restored behind, also after an exception.

    Yields:
        a module for each block, in order, whose output is the attention matrix (B, heads, N, N) that the block
        multiplies its values by.

    Raises:
        ValueError: there is no transformer, or a block has no such matrix.
    """
    probes: list[nn.Module] = []
    looked_up: dict[nn.Module, nn.Module] = {}  # a probe for each part that asks Hugging Face's register
    key = f"cxlib-{id(looked_up)}"
    with ExitStack() as restored:
        for name, block in blocks(network).items():
            attention = _attention(block)
            asking = _asking(attention)
            if isinstance(attention, nn.MultiheadAttention):
                probes.append(nn.Identity())
                # An attribute of the instance hides the class's forward, and goes away again.
                restored.callback(delattr, attention, "forward")
                attention.forward = _plain(attention, probes[-1])  # type: ignore[method-assign]
            elif hasattr(attention, "fused_attn") and hasattr(attention, "attn_drop"):
                probes.append(attention.attn_drop)
                restored.callback(setattr, attention, "fused_attn", attention.fused_attn)
                attention.fused_attn = False
            elif asking:
                part, register = asking
                probes.append(nn.Identity())
                looked_up[part] = probes[-1]
                if key not in register:
                    register[key] = _registered(looked_up)
                    restored.callback(register.pop, key)
                if part.config._attn_implementation != key:  # one configuration serves all blocks
                    restored.callback(setattr, part.config, "_attn_implementation", part.config._attn_implementation)
                    part.config._attn_implementation = key
            else:
                raise ValueError(
                    f"the attention matrix of {name} ({type(block).__name__}) is out of reach: use vit_gradcam"
                )
        yield probes


def _plain(attention: nn.MultiheadAttention, probe: nn.Module) -> Callable[..., tuple[Tensor, None]]:
    """Self-attention of `attention` as matrix products, the matrix passing through `probe`."""

    def forward(query: Tensor, _key: Tensor, _value: Tensor, **_options: bool) -> tuple[Tensor, None]:
        projected = F.linear(query, attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = projected.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, C/heads)
        matrix = probe((q * attention.head_dim**-0.5 @ k.mT).softmax(-1))
        return attention.out_proj((matrix @ v).transpose(1, 2).flatten(2)), None

    return forward


def _asking(attention: nn.Module | None) -> tuple[Any, MutableMapping[str, Any]] | None:
    """The part of an attention that looks its arithmetic up in Hugging Face's register, and that register."""
    for part in () if attention is None else attention.modules():
        register = getattr(sys.modules[type(part).__module__], "ALL_ATTENTION_FUNCTIONS", None)
        if register is not None and hasattr(getattr(part, "config", None), "_attn_implementation"):
            return part, register
    return None


def _registered(probes: Mapping[nn.Module, nn.Module]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Attention as Hugging Face's register wants it, in matrix products, the matrix passing through the probe."""

    def attend(
        module: nn.Module,
        query: Tensor,  # (B, heads, N, C/heads), as key and value
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **_options: Any,
    ) -> tuple[Tensor, Tensor]:
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        scores = scores if attention_mask is None else scores + attention_mask  # BEiT's bias of relative positions
        wide = torch.promote_types(scores.dtype, torch.float32)
        matrix = probes[module](scores.softmax(-1, dtype=wide).to(value.dtype))
        return (matrix @ value).transpose(1, 2).contiguous(), matrix

    return attend


# --- explainers ------------------------------------------------------------------------------------------------


def vit_gradcam(
    network: nn.Module, images: Tensor, cotangents: Cotangents, layer: str | nn.Module | None, relu: bool
) -> Tensor:
    """GradCAM with the tokens as an h x w map and the features as channels (section 3.4): (B, M, h, w).

    The layer is any whose output is tokens (B, N, C); None takes the last block's first normalisation, for behind
    the last attention a class token no longer sees the patches.

    Raises:
        ValueError: no transformer, a layer without tokens, or one behind which no patch influences the logits.
    """
    lie = tokens(network, images)
    recorded = taps.record(network, images, explanation_layer(network, layer or token_layers(network)[-1]))
    n_tokens = lie.n_prefix + lie.grid[0] * lie.grid[1]
    if recorded.activation.ndim != 3 or recorded.activation.shape[1] != n_tokens:
        shape = tuple(recorded.activation.shape)
        raise ValueError(f"vit_gradcam needs a layer with output (B, {n_tokens}, C), got shape {shape}")
    gradients = recorded.pull_back(cotangents(recorded.logits))
    activation, laid_out = (as_map(values, lie) for values in (recorded.activation[:, None], gradients))
    check_read(network, gradients, laid_out)
    maps = cam.gradcam(activation, laid_out)
    return maps.clamp(min=0) if relu else maps


def attention_rollout(
    network: nn.Module, images: Tensor, cotangents: Cotangents, layer: str | nn.Module | None, relu: bool
) -> Tensor:
    """Gradient-weighted attention rollout (section 3.5): (B, M, h, w).

    In each block A = mean over heads of (gradient * attention), then (A + I)/2 with rows that sum to one; the
    product of all blocks says how much of each patch (column) reaches the token that the classifier reads (row),
    the class token. Where it reads several (two heads of a distilled network, or the patches' average) their rows
    are averaged, without what a patch keeps of itself.

    `relu` keeps only the positive part of each head's gradient * attention (Chefer et al.), where the sums are at
    least 1/2. Without it a row may sum to less than nothing, and the division then turns its signs, as published;
    sums closer to zero than `TINY` become `TINY`.

    It is not linear in the cotangent: a contrast's map follows the attention that the contrast's own score goes
    through, and as the cotangent shrinks, I takes all.

    Args:
        network: a Vision Transformer, or a module with one inside.
        images: (B, 3, H, W).
        cotangents: from logits (B, K) to cotangents (B, M, K).
        layer: the block at which the rollout begins, by name or module; None takes all blocks.
        relu: the standard variant.

    Raises:
        ValueError: no transformer, or `layer` is none of its blocks.
    """
    return rolled_out(network, images, cotangents, layer, partial(rollout, relu=relu))


def published_rollout(
    network: nn.Module, images: Tensor, cotangents: Cotangents, layer: str | nn.Module | None, relu: bool
) -> Tensor:
    """Attention rollout in the arithmetic of the review's code, to compare with its Figure 5b: (B, M, h, w).

    It differs from `attention_rollout` in three places: a block's attention is multiplied by the gradient of the block
    as far from the *other* end; the heads are averaged before `relu`, not behind it; and A + I is divided by
    ``sum(-1)`` without keepdim, so that the sum of row j divides column j. The review keeps the positive part and
    starts from p_t, contrast `probability`.

    Args and raises as `attention_rollout`.
    """
    return rolled_out(network, images, cotangents, layer, partial(rollout, relu=relu, published=True))


def rollout(
    attentions: Sequence[Tensor], gradients: Sequence[Tensor], pooled: slice, relu: bool, published: bool = False
) -> Tensor:
    """The rolled-out attention (B, N) of the pooled tokens to all.

    Args:
        attentions: (B, heads, N, N) of each block, from first to last.
        gradients: likewise.
        pooled: the rows that are averaged.
        relu: keep the positive part of gradient * attention.
        published: as `published_rollout` has it.
    """
    eye = torch.eye(attentions[0].shape[-1]).to(attentions[0])
    rows = eye[pooled]
    # From the last block to the first, so that only these rows are multiplied.
    for attention, gradient in zip(reversed(attentions), gradients if published else reversed(gradients)):
        weighted = gradient * attention
        if published:
            weighted = weighted.mean(1, keepdim=True)
        mixed = ((weighted.clamp(min=0) if relu else weighted).mean(1) + eye) / 2
        total = mixed.sum(-1, keepdim=True)
        divisor = torch.where(total.abs() < TINY, TINY, total)
        rows = rows @ (mixed / (divisor.mT if published else divisor))
    return rows.masked_fill(eye[pooled].bool(), 0).mean(1)


MAPS: dict[str, Callable[[nn.Module, Tensor, Cotangents, str | nn.Module | None, bool], Tensor]] = {
    "vit_gradcam": vit_gradcam,
    "attention_rollout": attention_rollout,
}
#: Kept for comparison with printed maps; no experiment runs over it as it does over `MAPS`.
PUBLISHED = {"published_rollout": published_rollout}


def rolled_out(
    network: nn.Module,
    images: Tensor,
    cotangents: Cotangents,
    layer: str | nn.Module | None,
    combine: Callable[[Sequence[Tensor], Sequence[Tensor], slice], Tensor],
) -> Tensor:
    """Maps (B, M, h, w) of what `combine` makes of attentions, gradients and the pooled tokens, as `rollout` does."""
    lie = tokens(network, images)
    with unfused(network) as probes:
        traced = taps.record_each(network, images, probes[first_block(network, layer) :])
    check_among_tokens(traced.activations[0], lie)
    maps = [
        combine(traced.activations, traced.pull_back(cotangent), lie.pooled)
        for cotangent in cotangents(traced.logits).unbind(1)
    ]
    laid: Tensor = torch.stack(maps, 1)[..., lie.n_prefix :].unflatten(-1, lie.grid)
    return laid


def check_among_tokens(attention: Tensor, lie: Tokens) -> None:
    """Check that a matrix (B, heads, N, N) has all tokens on both sides.

    Raises:
        ValueError: it has not.
    """
    if attention.shape[-2:] != (lie.n_prefix + lie.grid[0] * lie.grid[1],) * 2:
        shape = tuple(attention.shape)
        raise ValueError(f"attention among all tokens is needed, got matrices of shape {shape}")


def first_block(network: nn.Module, layer: str | nn.Module | None) -> int:
    """The place of a block that is named or given; 0 for None.

    Raises:
        ValueError: it is no block.
    """
    if layer is None:
        return 0
    names, modules = list(blocks(network)), list(blocks(network).values())
    if layer in names:
        return names.index(layer)
    if layer in modules:
        return modules.index(layer)
    what = repr(layer) if isinstance(layer, str) else type(layer).__name__
    raise ValueError(f"a rollout begins at a block, {what} is none: choose from {names[0]} to {names[-1]}")
