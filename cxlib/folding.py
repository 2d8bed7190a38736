"""Batch norm folded into the convolutions before it, for evaluation alone: fewer passes over memory, same function."""

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(network: nn.Module) -> nn.Module:
    """The network with every batch norm that follows a convolution made part of that convolution.

    Exact up to rounding. All other modules are shared, the network itself is left alone. A network that is not in
    evaluation mode, or that torch.fx cannot follow, is returned as it is.
    """
    if any(module.training for module in network.modules()):
        return network
    try:
        traced = fx.symbolic_trace(network)
    except Exception:  # whatever a network's code raises when it is given a proxy of its input
        return network
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        (before,) = node.all_input_nodes
        if before.op != "call_module" or len(before.users) > 1 or _calls(traced, before.target) > 1:
            continue
        convolution = modules[before.target]
        if isinstance(convolution, nn.Conv2d) and modules[node.target].track_running_stats:
            traced.set_submodule(before.target, fuse_conv_bn_eval(convolution, modules[node.target]))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.recompile()
    return traced


def _calls(traced: fx.GraphModule, target: str) -> int:
    """How often a module is called: one that is shared must keep its weights."""
    return sum(node.op == "call_module" and node.target == target for node in traced.graph.nodes)
