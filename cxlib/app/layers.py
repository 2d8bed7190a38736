"""Which layers of a network to choose from: its own, and before it the last ones of finer resolutions."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from graphlib import TopologicalSorter
from typing import Any, NamedTuple

from torch import Tensor, nn

from cxlib import taps
from cxlib.explainers import cam, vit
from cxlib.explainers.layout import layout
from cxlib.networks import Network, explanation_layer

#: The explainers that look at one layer; the others need none.
TAKERS = (*cam.MAPS, "vit_gradcam")
#: With fewer places a side a map is too coarse to see what it lies on; of a small image one for so many pixels will do.
READABLE, PIXELS = 10, 16
#: How many resolutions finer than the network's own are offered, each with half again as many places a side or more.
FINER, FINER_BY = 3, 1.5


class Layer(NamedTuple):
    """A layer that can be explained."""

    name: str
    size: tuple[int, int]
    """Places of its map (h, w)."""


def offered(network: Network, images: Tensor) -> list[Layer]:
    """The layers to choose from, the network's own first; none where no rule finds a map.

    Of each finer resolution it is the last layer that everything passes: no shortcut leads around it, so that its map
    misses nothing. In most networks these are the last activations before a down-sampling. Of a transformer they are
    the first normalisations of its blocks, from the last one on.

    Args:
        network: with frozen parameters.
        images: (B, 3, H, W), as the network takes them; only their size matters.
    """
    try:
        grid = vit.tokens(network, images).grid
        return [Layer(name, grid) for name in reversed(vit.token_layers(network))]
    except ValueError:  # no transformer
        return _up_to_the_own(network, images)


def readable(layers: Sequence[Layer], side: int) -> Layer:
    """The layer to begin with, for images with so many pixels a side: the first in which a person can see something."""
    enough = min(READABLE, side // PIXELS)
    return next((layer for layer in layers if min(layer.size) >= enough), layers[-1])


def _up_to_the_own(network: Network, images: Tensor) -> list[Layer]:
    try:
        own = explanation_layer(network)
    except ValueError:  # no spatial map
        return []
    names = {module: name for name, module in network.inner.named_modules()}
    answers = _answers(network, images)
    passed = on_every_path(next(reversed(answers.values())).grad_fn)
    found: list[Layer] = []
    for module, answer in reversed(answers.items()):
        size = _size(network, module, images, answer)
        if size is None:
            continue
        finer = found and answer.grad_fn in passed and min(size) >= FINER_BY * min(found[-1].size)
        if module is own or finer:
            found.append(Layer(names[module], size))
    return found[: 1 + FINER]


def _answers(network: Network, images: Tensor) -> dict[nn.Module, Tensor]:
    """What each module answers at its last run, in the order in which they end, within one graph from the images on."""
    answers: dict[nn.Module, Tensor] = {}

    def hear(module: nn.Module, answer: Any) -> None:
        answers.pop(module, None)
        if isinstance(answer, Tensor):
            answers[module] = answer

    with ExitStack() as stack:
        for module in network.inner.modules():
            stack.enter_context(taps.heard(module, partial(hear, module)))
        taps.record(network, images)
    return answers


def _size(network: Network, module: nn.Module, images: Tensor, answer: Tensor) -> tuple[int, int] | None:
    """The places (h, w) of a layer's map, which has the images' proportions; None where it is no map."""
    maps = layout(network, module, images, answer)(answer)
    if maps.ndim != 4 or len(maps) != len(images):
        return None
    (h, w), (height, width) = maps.shape[-2:], images.shape[-2:]
    return (h, w) if abs(h * width - w * height) < max(height, width) else None  # up to a place


def on_every_path(end: Any) -> set[Any]:
    """The nodes of an autograd graph with one start that lie on every path from its end to there."""
    graph: dict[Any, list[Any]] = {}
    ahead = [end]
    while ahead:
        node = ahead.pop()
        if node not in graph:
            graph[node] = [before for before, _ in node.next_functions if before is not None]
            ahead += graph[node]
    order = [*TopologicalSorter(graph).static_order()][::-1]  # from the end on
    place = {node: number for number, node in enumerate(order)}
    found, furthest = set(), 0
    for number, node in enumerate(order):
        if furthest == number:  # no step from before it leads past it
            found.add(node)
        furthest = max([furthest, *(place[before] for before in graph[node])])
    return found
