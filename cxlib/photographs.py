"""From a photograph and two classes to maps, numbers and a picture: what the command line and the app share."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from PIL import Image
from torch import Tensor

from cxlib import networks, pictures, runtime, taps
from cxlib.classnames import is_file
from cxlib.contrasts import CONTRASTS, groups, paired
from cxlib.datasets.images import Transform, preprocessing
from cxlib.explainers import EXPLAINERS, explain, vit

#: The contrast of one class against one other: e_t - e_s.
VERSUS = "versus"
#: How many of the most probable classes are told.
MOST_PROBABLE = 5


class Explained(NamedTuple):
    """A photograph and why the network says the one class and not the other."""

    image: Tensor
    """(3, H, W) in [0, 1], as the network sees it."""
    logits: Tensor
    """(K,)."""
    chosen: tuple[int, int]
    """The target and the class that it is told apart from."""
    maps: Tensor
    """(explainers, contrasts, 2, H, W), of the target and of the other."""
    classes: Sequence[str]
    explainers: Sequence[str]
    contrasts: Sequence[str]
    layer: str | None
    """The layer that was asked for; None is the network's own."""


def explained(
    model: networks.Network,
    image: Tensor,
    said: Tensor,
    chosen: tuple[int, int],
    classes: Sequence[str],
    explainers: Sequence[str],
    contrasts: Sequence[str],
    layer: str | None = None,
    relu: bool = False,
) -> Explained:
    """Why a network says one of two classes and not the other.

    Args:
        model: the network; the result lies on the CPU wherever it is.
        image: (3, H, W) in [0, 1], on the network's device.
        said: the network's `logits` of it (K,).
        chosen: indices of the target and of the class that it is told apart from.
        classes: the names of all classes.
        explainers: names in `EXPLAINERS`.
        contrasts: names in `CONTRASTS`, or `VERSUS`.
        layer: the layer to explain; None takes the network's own.
        relu: keep only what speaks for the class.

    Raises:
        ValueError: an explainer that cannot explain this network, or a layer that it does not have.
    """
    leading = torch.tensor([chosen], device=image.device)
    functions = [groups([chosen[0]], [chosen[1]]) if contrast == VERSUS else contrast for contrast in contrasts]
    maps = [explain(model, image[None], leading, name, functions, layer, relu)[:, 0] for name in explainers]
    return Explained(image.cpu(), said.cpu(), chosen, torch.stack(maps).cpu(), classes, explainers, contrasts, layer)


def logits(model: networks.Network, image: Tensor) -> Tensor:
    """The logits (K,) of an image (3, H, W); of one logit with a sigmoid, those of its two classes."""
    return paired(taps.logits(model, image[None]))[0]


def check(explainers: Sequence[str], contrasts: Sequence[str]) -> None:
    """Raise a ValueError where a name is none of ours."""
    for name in explainers:
        runtime.check_name("explainer", name, EXPLAINERS)
    for name in contrasts:
        runtime.check_name("contrast", name, [*CONTRASTS, VERSUS])


def summary(result: Explained, source: str) -> dict[str, Any]:
    """An explanation in numbers: the classes' probabilities, and what each map amounts to."""
    p = result.logits.double().softmax(0)
    named = {
        role: {"index": k, "name": result.classes[k], "probability": float(p[k]), "logit": float(result.logits[k])}
        for role, k in zip(("target", "versus"), result.chosen)
    }
    return {
        "image": source,
        "layer": result.layer,
        **named,
        "most_probable": {
            str(rank): {"index": k, "name": result.classes[k], "probability": float(p[k])}
            for rank, k in enumerate(most_probable(result.logits), 1)
        },
        "maps": {
            f"{explainer} {contrast}": {role: told(result.maps[e, c, r]) for r, role in enumerate(named)}
            for e, explainer in enumerate(result.explainers)
            for c, contrast in enumerate(result.contrasts)
        },
    }


def most_probable(logits: Tensor) -> list[int]:
    """The most probable classes, `MOST_PROBABLE` at most."""
    return [int(k) for k in logits.topk(min(MOST_PROBABLE, len(logits))).indices]


def told(values: Tensor) -> dict[str, float]:
    """A map (H, W) in numbers: its range, the share that speaks for the class, and where it does so most."""
    row, column = divmod(int(values.argmax()), values.shape[1])
    total = float(values.abs().sum())
    return {
        "highest": float(values.max()),
        "lowest": float(values.min()),
        "positive_share": float(values.clamp(min=0).sum()) / total if total else 0.0,
        "peak_row": row,
        "peak_column": column,
    }


def picture(result: Explained, network: str) -> Image.Image:
    """An explanation as a picture, with the two classes among the probabilities and the network's name below."""
    p = result.logits.double().softmax(0)
    others = [k for k in most_probable(result.logits) if k not in result.chosen]
    shown = sorted([*result.chosen, *others[: MOST_PROBABLE - 2]], key=lambda k: -float(p[k]))
    names = spelled(result.classes, shown)
    return pictures.why_not(
        result.image,
        result.maps,
        (names[result.chosen[0]], names[result.chosen[1]]),
        {names[k]: float(p[k]) for k in shown},
        result.explainers,
        result.contrasts,
        f"{network}{f', layer {result.layer}' if result.layer else ''}",
    )


def spelled(classes: Sequence[str], shown: Sequence[int]) -> dict[int, str]:
    """Names of classes as they are printed; a number, or a name that several have, says which class it is."""
    names = {k: common(classes[k].replace("_", " ")) for k in shown}
    counts = Counter(names.values())
    return {
        k: f"class {k}" if name == str(k) else f"{name} ({k})" if counts[name] > 1 else name
        for k, name in names.items()
    }


def common(name: str) -> str:
    """The common name of a species that is named in both ways, such as Agelaius tricolor (Tricolored Blackbird)."""
    both = re.fullmatch(r"[A-Z][a-z]+ [a-z]+ \((.+)\)", name)
    return both[1] if both else name


def write(stem: Path, source: Path, result: Explained, network: str) -> None:
    """Write stem.png, the picture, stem.json, the numbers, and stem.npz, the maps: all of them, or none."""
    places = [runtime.atomic(f"{stem}.{suffix}") for suffix in ("json", "npz", "png")]
    with places[0] as numbers, places[1] as arrays, places[2] as drawn:
        runtime.write_json(numbers, summary(result, str(source)))
        runtime.write_arrays(
            arrays,
            maps=result.maps.numpy(),
            image=result.image.numpy(),
            classes=result.chosen,
            explainers=result.explainers,
            contrasts=result.contrasts,
        )
        picture(result, network).save(drawn)


# --- networks and what they see -----------------------------------------------------------------------------------


def build(network: str, weights: str, folder: str | None) -> networks.Network:
    """A network by name, or from a file that `networks.save` wrote."""
    if is_file(network):
        return networks.load(network)
    return networks.build(network, None if weights == "random" else weights, folder=folder)


def default_explainer(model: networks.Network) -> str:
    """GradCAM, on tokens for a transformer."""
    try:
        vit.transformer(model)
    except ValueError:
        return "gradcam"
    return "vit_gradcam"


def prepared(model: networks.Network, weights: str, image_size: int | None) -> Transform:
    """From a picture to what the network sees: both sides resized to `image_size`, or as its weights ask for."""
    if image_size:
        return preprocessing(image_size, crop=False)
    return preprocessing(**model.preparation) if model.preparation else networks.transform(model.name, weights)


def known_networks() -> list[str]:
    """The networks that can be built by name."""
    import timm

    ours = ["vgg16_bn_narrow", *networks.SMALL_TRANSFORMERS, *networks.HYBRIDS]
    return [*ours, *dict.fromkeys([*torchvision.models.list_models(module=torchvision.models), *timm.list_models()])]
