"""Batch norm folded into the convolution before it: the same function, up to rounding, in fewer passes over memory."""

import copy
from collections import Counter

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(network: nn.Module) -> nn.Module:
    """A copy of a network in eval mode whose batch norms are gone where a convolution alone feeds them.

    For evaluation and input gradients only: layers change their names and meaning, so that explanations of a layer
    need the network itself. A network, or a part of it, that `torch.fx` cannot trace is copied as it is.
    """
    network = copy.deepcopy(network)
    for name, child in network.named_children():
        setattr(network, name, _folded(child))
    return network


def _folded(module: nn.Module) -> nn.Module:
    try:
        traced = fx.symbolic_trace(module)
    except Exception:  # tracing raises whatever the module's own code raises on a proxy
        return folded(module)
    modules = dict(traced.named_modules())
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for node in traced.graph.nodes:
        norm = modules[node.target] if calls[node.target] == 1 else None
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None:
            continue
        feeding = node.args[0]
        convolution = modules[feeding.target] if calls[feeding.target] == 1 else None
        if type(convolution) is nn.Conv2d and len(feeding.users) == 1:
            traced.set_submodule(feeding.target, fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(feeding)
            traced.graph.erase_node(node)
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced.requires_grad_(False)
