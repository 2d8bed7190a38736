"""Networks made fast: batch norms in the convolutions before them, and layers of `lean` in place of those that copy."""

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cxlib.networks.lean import ClippedInPlace, SamePadded


def fast(network: nn.Module, layer: nn.Module | None = None) -> nn.Module:
    """The same function for evaluation and explanations, up to rounding.

    A batch norm that a convolution alone feeds is folded into it and gives way to what is left of it: timm's
    activation, or an identity. Layers of `lean` replace those that copy, weights are frozen and channels last in
    memory. Modules keep their names; but new parameters, as for randomisation, are for the network itself.

    The network itself is left alone. What this returned before is returned as it is, so that it is done once. A network
    with hooks is not folded, for they would see other outputs; nor what `torch.fx` cannot trace, part by part.

    Args:
        network: in any mode.
        layer: a module of the network whose output has to stay what it is. By default, and at a convolution that a
            batch norm follows, it is the norm's.
    """
    if getattr(network, "is_fast", False):
        return network
    network = getattr(network, "_orig_mod", network)  # a compiled network has no copy
    kept = next((name for name, module in network.named_modules() if module is layer), None)
    quick = copy.deepcopy(network).eval()
    if not any(module._forward_hooks or module._forward_pre_hooks for module in quick.modules()):
        _fold(quick, None if kept is None else quick.get_submodule(kept))
    for module in quick.modules():
        # On a CPU alone, where it was measured.
        if _is(module, "Conv2dSame") and module.dilation == (1, 1) and module.weight.device.type == "cpu":
            module.__class__ = SamePadded
        elif _is(module, "ReLU6") and module.inplace:
            module.__class__ = ClippedInPlace
    quick.requires_grad_(False).to(memory_format=torch.channels_last).is_fast = True  # type: ignore[call-overload]
    return quick


def _fold(network: nn.Module, kept: nn.Module | None) -> None:
    """Fold batch norms of a network in eval mode where they stand, but for what would change the output of `kept`."""
    inside = set(kept.modules()) if kept else set()
    names = Counter(module for _, module in network.named_modules(remove_duplicate=False))
    for feeding, following in list(_pairs(network)):
        convolution, norm = (cast(Any, network.get_submodule(name)) for name in (feeding, following))
        if names[convolution] > 1 or names[norm] > 1 or (convolution in inside and norm not in inside):
            continue
        network.set_submodule(feeding, fuse_conv_bn_eval(convolution, norm))
        network.set_submodule(following, getattr(norm, "act", nn.Identity().eval()))


def _pairs(network: nn.Module) -> Iterator[tuple[str, str]]:
    """The names of convolutions whose output a batch norm alone takes, and of these norms; each of them runs once."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return
    try:
        nodes = _Tracer().trace(network).nodes
    except Exception:  # tracing raises whatever the network's own code raises on a proxy
        for name, child in network.named_children():
            yield from ((f"{name}.{feeding}", f"{name}.{following}") for feeding, following in _pairs(child))
        return
    modules: dict[Any, Any] = dict(network.named_modules())
    runs = Counter(node.target for node in nodes if node.op == "call_module")
    once = {node: modules[node.target] for node in nodes if node.op == "call_module" and runs[node.target] == 1}
    # A module whose weights the network's own code looks at has to stay.
    looked_at = {str(node.target).rpartition(".")[0] for node in nodes if node.op == "get_attr"}
    for node, norm in once.items():
        if not _is(norm, "BatchNorm2d", "BatchNormAct2d") or norm.running_var is None:
            continue
        feeding = node.args[0]
        alone = _is(once.get(feeding), "Conv2d", "Conv2dSame") and len(feeding.users) == 1
        if alone and looked_at.isdisjoint((node.target, feeding.target)):
            yield feeding.target, node.target


class _Tracer(fx.Tracer):
    """Stops at batch norms and convolutions, timm's too, which else are written out as what they compute."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.BatchNorm2d | nn.Conv2d) or super().is_leaf_module(module, name)


def _is(module: Any, *names: str) -> bool:
    """Whether a module is one of these of torch or timm, not a subclass that may compute something else."""
    return type(module).__name__ in names and type(module).__module__.startswith(("torch.nn.", "timm.layers."))
