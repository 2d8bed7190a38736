"""Model-parameter randomisation (Adebayo et al., NeurIPS 2018): a map that survives new weights explains no network.

Layers get new parameters from the top down: each with all above it (*cascading*), or each alone (*independent*).
A layer is initialised anew by its own `reset_parameters`, as Quantus does, batch norms with their running statistics;
parameters of a module that has none, as a class token, are shuffled.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cxlib import runtime
from cxlib.metrics.similarity import SIMILARITIES, check_maps


class Randomised(NamedTuple):
    """How alike maps are to those of networks with new parameters.

    Attributes:
        layers: L names, from the top.
        similarities: by the measure's name, (L, ...) float64 on the CPU, where ... are the maps' axes before H and W.
        silent: (L, ...), whether the changed network's map is zero, so that its likeness says nothing: between layers
            that were not made for each other every ReLU may be off.
    """

    layers: list[str]
    similarities: dict[str, Tensor]
    silent: Tensor


def model_randomisation(
    network: nn.Module,
    images: Tensor,
    explainer: Callable[[nn.Module, Tensor], Tensor],
    seed: int,
    layers: Sequence[str] | None = None,
    cascading: bool = True,
    similarities: Sequence[str] = ("rank_correlation", "absolute_rank_correlation", "ssim"),
) -> Randomised:
    """Compare the maps of a network with those of its copies in which layers have new parameters.

    Args:
        network: it is left alone.
        images: (B, 3, H, W).
        explainer: from a network and the images to signed maps (..., H, W), for the same targets each time; it names
            its layer, for a module of the network is none of the copy's.
        seed: of the new parameters.
        layers: as `randomised` takes them.
        cascading: likewise.
        similarities: names in `similarity.SIMILARITIES`.

    Raises:
        ValueError: unknown layers or names, maps that are not finite, or too small for SSIM.
    """
    for name in similarities:
        runtime.check_name("similarity", name, SIMILARITIES)
    before = explainer(network, images)
    check_maps(before)
    names, measured, silent = [], [], []
    for layer, changed in randomised(network, seed, layers, cascading):
        after = explainer(changed, images)
        names.append(layer)
        silent.append((after == 0).all(-1).all(-1).cpu())
        measured.append([SIMILARITIES[name](before, after).cpu() for name in similarities])
    by_name = {name: torch.stack(values) for name, values in zip(similarities, zip(*measured))}
    return Randomised(names, by_name, torch.stack(silent))


def randomised(
    network: nn.Module, seed: int, layers: Sequence[str] | None = None, cascading: bool = True
) -> Iterator[tuple[str, nn.Module]]:
    """Copies of a network in which layers have new parameters, from the top.

    What a module gets depends on the seed and its place in the network alone: the same in both orders, for any
    `layers`, on any device.

    Args:
        network: it is left alone.
        seed: of the new parameters.
        layers: modules by name, with all that is in them; None takes `blocks`. Their order is the network's own,
            whatever theirs.
        cascading: each layer with all that the network has above it, named or not; or alone, but for what others of
            the layers have of it.

    Yields:
        The layer's name and the copy; cascading, the same one each time, as it goes on changing.

    Raises:
        ValueError: an unknown layer.
    """
    network = getattr(network, "_orig_mod", network)  # a compiled network has no copy
    places = {name: place for place, (name, _module) in enumerate(network.named_modules())}
    chosen = blocks(network) if layers is None else layers
    for layer in chosen:
        runtime.check_name("layer", layer, places)
    if not chosen:
        raise ValueError("an empty list randomises no layer: name one or more")
    stops = sorted(set(chosen), key=places.__getitem__, reverse=True)
    parts: dict[str, list[str]] = {layer: [] for layer in stops}
    for name, module in network.named_modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        if cascading:  # with the first stop, from the top, that it is not below
            holders = [layer for layer in stops if places[layer] <= places[name]][:1]
        else:  # with the smallest layer that it is in
            holders = sorted((layer for layer in stops if f"{name}.".startswith(layer and f"{layer}.")), key=len)[-1:]
        for layer in holders:
            parts[layer].append(name)
    changed = copy.deepcopy(network)
    for layer, names in parts.items():
        changed = changed if cascading else copy.deepcopy(network)
        for name in names:
            with runtime.seeded(seed, places[name]):
                _reset(changed.get_submodule(name))
        yield layer, changed


def blocks(network: nn.Module) -> list[str]:
    """The names of a network's blocks, in its order: layers outside of any sequence, and the members of sequences.

    A sequence is a `Sequential` or `ModuleList` that is in no other's member. A module that holds parameters beside its
    blocks, as a transformer does its class token, is one more.
    """
    return list(_blocks("", network))


def _blocks(name: str, module: nn.Module) -> Iterator[str]:
    sequences = (nn.Sequential, nn.ModuleList)
    if not any(isinstance(inner, sequences) and any(inner.children()) for inner in module.modules()):
        yield from [name] if any(True for _ in module.parameters()) else []
        return
    if any(True for _ in module.parameters(recurse=False)):
        yield name
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}".removeprefix(".")
        if not isinstance(module, sequences):
            yield from _blocks(full, child)
        elif any(True for _ in child.parameters()):
            yield full


@torch.no_grad()
def _reset(module: Any) -> None:
    """New parameters for what this module itself holds, drawn on the CPU, so that they are the same on any device."""
    own = list(module.parameters(recurse=False))
    if hasattr(module, "reset_parameters"):
        device = own[0].device
        module.cpu().reset_parameters()
        module.to(device)
        return
    for parameter in own:
        order = torch.randperm(parameter.numel()).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))
