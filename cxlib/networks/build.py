"""Build a torchvision or timm network by name, with its weights and its explanation layer.

Every network that `build` or `load` returns takes images in [0, 1] and normalises inside, is in eval mode and
frozen, so that an explanation's gradient is with respect to the image a person sees.
"""

import io
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torchvision
from PIL.Image import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models.vgg import make_layers
from torchvision.transforms._presets import ImageClassification

from cxlib import runtime
from cxlib.networks.weights import find, read

_Kind = TypeVar("_Kind", bound=nn.Module)

#: The trunk of a network in `HYBRIDS`, by the name of its layer.
TRUNK = "patch_embed.backbone"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Network(nn.Module):
    """A classifier that takes images in [0, 1]: normalisation, then the named architecture.

    Attributes:
        name: the architecture's name, as given to `build`.
        options: builder options that its weights ask for.
        inner: the torchvision or timm network; its layer names are the ones `explanation_layer` takes.
        mean, std: (3, 1, 1), the normalisation. `mean` is the colour that the network sees as zero.
        preparation: `image_size` and `crop` of the images that it was trained or tested with, as
            `datasets.images.preprocessing` takes them; None where its weights' publisher says it (`transform`).
    """

    mean: Tensor
    std: Tensor
    preparation: dict[str, Any] | None = None

    def __init__(
        self,
        name: str,
        inner: nn.Module,
        options: dict[str, Any],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        super().__init__()
        self.name, self.options, self.inner = name, options, inner
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, 3, H, W) in [0, 1].

        Raises:
            ValueError: the architecture wants images of another size.
        """
        try:
            logits: Tensor = self.inner((images - self.mean) / self.std)
            return logits
        except (AssertionError, RuntimeError) as error:
            if runtime.is_full_memory(error):
                raise
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{self.name} refuses images of shape {tuple(images.shape)}: {reason}") from error


class Weightless(TorchFunctionMode):
    """Inside, layers are built without memory for their weights: for what is asked of names and shapes alone.

    Unlike inside ``torch.device("meta")``, architectures may compute with numbers while they are built.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        fills = function in (torch.empty, torch.zeros, torch.ones, torch.full, torch.randn)
        return function(*args, **(kwargs or {}) | ({"device": "meta"} if fills else {}))


class NarrowVGG(nn.Module):
    """VGG-16-BN with every width divided by eight, for training on a CPU: the same forty-four feature layers.

    It has one hidden layer in place of two, and no dropout: it is too small to need any.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        widths: list[str | int] = [8, 8, "M", 16, 16, "M", 32, 32, 32, "M", 64, 64, 64, "M", 64, 64, 64, "M"]
        self.features = make_layers(widths, batch_norm=True)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(nn.Linear(64 * 49, 512), nn.ReLU(True), nn.Linear(512, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of normalised images (B, 3, H, W)."""
        logits: Tensor = self.classifier(self.avgpool(self.features(images)).flatten(1))
        return logits


#: Small Vision Transformers by name: options of timm's, with the mean and standard deviation of their images.
SMALL_TRANSFORMERS: dict[str, tuple[dict[str, Any], tuple[float, ...], tuple[float, ...]]] = {
    # For training on a CPU.
    "vit_mini": (
        {"img_size": 48, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4, "mlp_ratio": 2},
        IMAGENET_MEAN,
        IMAGENET_STD,
    ),
    # CIFAR-10's 32 pixels.
    "vit_cifar10": (
        {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 4, "num_heads": 4, "mlp_ratio": 2},
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
    ),
}


#: Vision Transformers behind the trunk of a convolutional network (Dosovitskiy et al. 2021, section 3.1, "hybrid"): the
#: trunk's architecture, its last stage, and options of timm's. Their weights are the trunk's; the rest is random.
HYBRIDS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "vit_lite0": (
        "tf_efficientnet_lite0",
        3,
        {"img_size": 144, "embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 2},
    ),
}


def build(
    name: str, weights: str | None = None, num_classes: int | None = None, folder: str | Path | None = None
) -> Network:
    """A network by name, in eval mode and frozen, for images in [0, 1].

    Args:
        name: `vgg16_bn_narrow`, a name in `SMALL_TRANSFORMERS` or `HYBRIDS`, or any classification builder of
            torchvision or model of timm.
        weights: None for random weights, or as `weights.find` takes them.
        num_classes: size of the head; a head of another size than the weights' is replaced by a new one,
            drawn from torch's current random state. None keeps the weights' own, or 1000.
        folder: where to look for weights before any download.

    Raises:
        ValueError: unknown network, weights that cannot be found or do not fit.
    """
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"transform_input": weights is not None}
    if weights is None:
        network = _skeleton(name, num_classes or 1000, options)
    elif name in HYBRIDS:
        network = _skeleton(name, num_classes or 1000, options)
        trunk, state = network.inner.get_submodule(TRUNK), find(HYBRIDS[name][0], weights, folder)
        ours = {key: state[key] for key in trunk.state_dict() if key in state}
        _load(trunk, ours, f"the weights {weights!r} do not fit {name}")
    else:
        head = last_layer(_skeleton(name, 2, options).inner)
        state = find(name, weights, folder)
        n_classes = _rows(state, head, f"the weights {weights!r} do not fit {name}")
        network = _skeleton(name, n_classes, options)
        _load(network.inner, state, f"the weights {weights!r} do not fit {name}")
        if num_classes and num_classes != n_classes:
            for name in heads(network):
                _replace_head(network.inner, name, num_classes)
    return freeze(network)


def freeze(network: _Kind) -> _Kind:
    """The network in eval mode, its parameters without gradient."""
    return network.eval().requires_grad_(False)


def save(network: Network, path: str | Path) -> None:
    """Write a network to a file that `load` reads; the same weights give the same bytes."""
    # A state_dict of its own, filled in place: MNASNet needs the version that lies in its metadata.
    state = network.inner.state_dict()
    for key, value in state.items():
        state[key] = value.cpu().contiguous()
    content = {"name": network.name, "options": network.options, "preparation": network.preparation}
    # Through a buffer: torch.save would write the file's name into the archive.
    buffer = io.BytesIO()
    torch.save(content | {"state_dict": state}, buffer)
    with runtime.atomic(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def load(path: str | Path) -> Network:
    """A network that `save` wrote, in eval mode and frozen.

    Raises:
        ValueError: the file is no such network.
    """
    content = read(Path(path))
    if set(content) != {"name", "options", "preparation", "state_dict"}:
        raise ValueError(
            f"{path} is not a network written by cxlib as it is today: train it again, or pass a state_dict as weights"
        )
    with Weightless(), runtime.seeded(0):
        head = last_layer(_skeleton(content["name"], 2, content["options"]).inner)
    n_classes = _rows(content["state_dict"], head, f"{path} does not fit {content['name']}")
    network = _skeleton(content["name"], n_classes, content["options"])
    network.preparation = content["preparation"]
    _load(network.inner, content["state_dict"], f"{path} does not fit {content['name']}")
    return freeze(network)


def transform(name: str, weights: str | None = None) -> Callable[[Image], Tensor]:
    """How a network's weights want their images: from a PIL image to (3, H, W) in [0, 1].

    Size, crop and interpolation are those that torchvision or timm publish with the weights; the normalisation
    is left out, for `build`'s networks do it inside. Weights that torchvision does not know by name (a file, or
    None) are prepared as the first that it published, in most families resize 256 and crop 224.

    Raises:
        ValueError: unknown network.
    """
    neutral: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    prepare: Callable[[Image], Tensor]
    if name == "vgg16_bn_narrow":
        prepare = ImageClassification(crop_size=224, **neutral)
    elif name in SMALL_TRANSFORMERS or name in HYBRIDS:
        size = SMALL_TRANSFORMERS[name][0]["img_size"] if name in SMALL_TRANSFORMERS else HYBRIDS[name][2]["img_size"]
        prepare = ImageClassification(crop_size=size, resize_size=size, **neutral)
    elif name in torchvision.models.list_models(module=torchvision.models):
        known = torchvision.models.get_model_weights(name)
        prepare = (known[weights] if weights in known.__members__ else next(iter(known))).transforms(**neutral)
    else:
        _check_timm(name)
        from timm import data, models

        published = models.get_pretrained_cfg(name).to_dict()  # type: ignore[union-attr]
        prepare = data.create_transform(**data.resolve_data_config(pretrained_cfg=published) | neutral)
    return lambda image: prepare(image.convert("RGB"))


def published_classes(network: Network) -> list[str]:
    """The class names of the weights that torchvision or timm publish for a network; none where they do not say."""
    if network.name in torchvision.models.list_models(module=torchvision.models):
        return list(torchvision.models.get_model_weights(network.name).DEFAULT.meta["categories"])
    import timm
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(network.inner) if timm.is_model(network.name) else None
    if subset is None:
        return []
    info = ImageNetInfo(subset)
    return [info.index_to_description(index).split(",")[0] for index in range(info.num_classes())]


def _skeleton(name: str, num_classes: int, options: dict[str, Any]) -> Network:
    """The architecture with random weights."""
    if name == "vgg16_bn_narrow":
        return Network(name, NarrowVGG(num_classes), options)
    if name in torchvision.models.list_models(module=torchvision.models):
        extra = {"aux_logits": False, "init_weights": False} if options else {}
        inner = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options, **extra)
        published = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        return Network(name, inner, options, published.mean, published.std)
    import timm  # only now: it takes seconds, and most runs need torchvision alone

    if name in SMALL_TRANSFORMERS:
        shape, mean, std = SMALL_TRANSFORMERS[name]
        # Images of another size get their positions by interpolation.
        small = timm.models.VisionTransformer(num_classes=num_classes, dynamic_img_size=True, **shape)
        return Network(name, small, options, mean, std)
    if name in HYBRIDS:
        architecture, stage, shape = HYBRIDS[name]
        trunk = timm.create_model(architecture, features_only=True, out_indices=(stage,))
        embed = partial(timm.layers.HybridEmbed, backbone=trunk)
        inner = timm.models.VisionTransformer(num_classes=num_classes, patch_size=1, embed_layer=embed, **shape)
        cfg = timm.models.get_pretrained_cfg(architecture)
        return Network(name, inner, options, cfg.mean, cfg.std)  # type: ignore[union-attr]
    _check_timm(name)
    inner = timm.create_model(name, num_classes=num_classes)
    return Network(name, inner, options, inner.pretrained_cfg["mean"], inner.pretrained_cfg["std"])  # type: ignore[arg-type, index]


def _check_timm(name: str) -> None:
    import timm

    if not timm.is_model(name):
        known = [*SMALL_TRANSFORMERS, *torchvision.models.list_models(module=torchvision.models), *timm.list_models()]
        near = ", ".join(get_close_matches(name, known, n=5)) or "none"
        raise ValueError(f"neither torchvision nor timm has a network {name!r}; near it: {near}")


def _rows(state: dict[str, Tensor], head: str, message: str) -> int:
    """The number of classes that a state_dict's last layer tells apart."""
    if f"{head}.weight" not in state:
        raise ValueError(f"{message}: there is no {head}.weight")
    return len(state[f"{head}.weight"])


def _load(inner: nn.Module, state: dict[str, Tensor], message: str) -> None:
    try:
        inner.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{message}: {str(error).splitlines()[-1].strip()[:200]}") from error


def last_layer(inner: nn.Module) -> str:
    """The classifier's last layer, by name: the last linear or convolutional one."""
    names: list[str] = [name for name, module in inner.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return names[-1]


def heads(network: Network) -> list[str]:
    """The layers whose size is the number of classes, by name: one, or several whose logits are added or averaged."""
    ours = network.inner.state_dict()
    with Weightless(), runtime.seeded(0):
        one_more = _skeleton(network.name, 1 + len(ours[f"{last_layer(network.inner)}.weight"]), network.options)
    theirs = one_more.inner.state_dict()
    return list(dict.fromkeys(key.rpartition(".")[0] for key in ours if ours[key].shape != theirs[key].shape))


def _replace_head(inner: nn.Module, name: str, num_classes: int) -> None:
    old = inner.get_submodule(name)
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    else:
        assert isinstance(old, nn.Conv2d)
        new = nn.Conv2d(old.in_channels, num_classes, old.kernel_size, bias=old.bias is not None)  # type: ignore[arg-type]
    inner.set_submodule(name, new)
