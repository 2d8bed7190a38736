"""Batch norm folded into the convolution before it: the same function, up to rounding, in fewer passes over memory."""

import copy
from collections import Counter
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cxlib.networks.lean import ClippedInPlace, SamePadded


def folded(network: nn.Module) -> nn.Module:
    """A network in eval mode without the batch norms that a convolution alone feeds.

    For evaluation and input gradients only: layers change their names and meaning, so that explanations of a layer
    need the network itself, which is left alone. All other modules are shared with it. What `torch.fx` cannot trace
    stays as it is, part by part; so does a network with hooks, which a trace would lose.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return network
    if any(module._forward_hooks or module._forward_pre_hooks for module in network.modules()):
        return network
    try:
        traced = fx.GraphModule(network, _Tracer().trace(network))
    except Exception:  # tracing raises whatever the network's own code raises on a proxy
        parts = copy.copy(network)
        parts._modules = {name: child and folded(child) for name, child in network._modules.items()}
        return parts
    modules: dict[Any, Any] = dict(traced.named_modules())
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for node in traced.graph.nodes:
        norm: Any = modules[node.target] if calls[node.target] == 1 else None
        if not _is(norm, "BatchNorm2d", "BatchNormAct2d") or norm.running_var is None:
            continue
        feeding = node.args[0]
        convolution: Any = modules[feeding.target] if calls[feeding.target] == 1 else None
        if _is(convolution, "Conv2d", "Conv2dSame") and len(feeding.users) == 1:
            traced.set_submodule(feeding.target, fuse_conv_bn_eval(convolution, norm))
            if hasattr(norm, "act"):  # timm's activation, in the batch norm's place
                traced.set_submodule(node.target, norm.act)
                continue
            node.replace_all_uses_with(feeding)
            traced.graph.erase_node(node)
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced


class _Tracer(fx.Tracer):
    """Stops at batch norms and convolutions, timm's too, which else are written out as what they compute."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.BatchNorm2d | nn.Conv2d) or super().is_leaf_module(module, name)


def _is(module: Any, *names: str) -> bool:
    """Whether a module is one of these of torch or timm, not a subclass that may compute something else."""
    return type(module).__name__ in names and type(module).__module__.startswith(("torch.nn.", "timm.layers."))


def fast(network: nn.Module) -> nn.Module:
    """The same function for evaluation and input gradients, up to rounding.

    Batch norms folded, layers of `lean` in place of those that copy, weights frozen and channels last in memory.

    The network itself is left alone. What this returned before is returned as it is, so that it is done once.
    """
    if getattr(network, "is_fast", False):
        return network
    quick = folded(copy.deepcopy(getattr(network, "_orig_mod", network)).eval())  # a compiled network has no copy
    for module in quick.modules():
        # On a CPU alone, where it was measured.
        if _is(module, "Conv2dSame") and module.dilation == (1, 1) and module.weight.device.type == "cpu":
            module.__class__ = SamePadded
        elif _is(module, "ReLU6") and module.inplace:
            module.__class__ = ClippedInPlace
    quick.requires_grad_(False).to(memory_format=torch.channels_last).is_fast = True  # type: ignore[call-overload]
    return quick
