"""The command line: `cxlib explain IMAGE …` says why this class and not that one, `list` what there is."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from fnmatch import fnmatch
from glob import glob
from itertools import count
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torchvision
from torch import Tensor

from cxlib import networks, overlay, runtime, taps
from cxlib.contrasts import CONTRASTS, groups, paired
from cxlib.datasets.imagenet import SUFFIXES
from cxlib.datasets.images import Transform, as_shown, preprocessing
from cxlib.explainers import EXPLAINERS, LINEAR, cautions, explain, vit

#: The contrast of one class against one other: e_t - e_s.
VERSUS = "versus"
#: What --versus takes besides a class.
SECOND = "second"


class OneLine(click.Group):
    """Bad input ends in one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            with runtime.told_of_full_memory(), cautions.told_in_one_line():
                return super().invoke(ctx)
        except (ValueError, OSError, FloatingPointError) as error:
            raise click.ClickException(runtime.one_line(error)) from error


@click.group(cls=OneLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    r"""Class-contrastive explanations: why this class, but not others?

    \b
    cxlib explain bird.jpg --network resnet50
    cxlib explain bird.jpg --network resnet50 --target robin --versus brambling
    cxlib explain photos/ --network data/networks/vgg16_bn.pt --classes data/sets/cub/classes.txt
    cxlib list layers resnet50
    """


@main.command(name="explain")
@click.argument("images", nargs=-1, required=True)
@click.option("--network", required=True, help="A name of torchvision or timm, or a .pt file that the pipeline wrote.")
@click.option(
    "--weights",
    default="DEFAULT",
    show_default=True,
    help="Of a network by name: DEFAULT, a published name, a state_dict file, or random.",
)
@click.option("--weights-path", help="A folder searched for <weights>-<hash8>.pth before any download.")
@click.option("--classes", "classes_file", help="A file with the name of one class a line, in the network's order.")
@click.option("--target", help="The class to explain, by name or index.  [default: the most probable]")
@click.option(
    "--versus",
    help=f"The class that it is told apart from, likewise, or '{SECOND}', the next most probable.  [default: all]",
)
@click.option(
    "--explainer",
    "explainers",
    multiple=True,
    help="Once or more; `list explainers` shows them.  [default: gradcam; vit_gradcam for transformers]",
)
@click.option(
    "--contrast",
    "contrasts",
    multiple=True,
    help=f"Once or more; `list contrasts` shows them.  [default: weighted; {VERSUS} with --versus]",
)
@click.option("--layer", help="The layer to explain; `list layers NETWORK` shows them.  [default: the network's own]")
@click.option("--relu", is_flag=True, help="Keep only what speaks for the class, as the standard variants do.")
@click.option(
    "--image-size", type=click.IntRange(min=1), help="Pixels a side that the network sees.  [default: its own]"
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--out", default="explanations", show_default=True, help="The folder for the results.")
def explain_(
    images: tuple[str, ...],
    network: str,
    weights: str,
    weights_path: str | None,
    classes_file: str | None,
    target: str | None,
    versus: str | None,
    explainers: Sequence[str],
    contrasts: Sequence[str],
    layer: str | None,
    relu: bool,
    image_size: int | None,
    device: str,
    out: str,
) -> None:
    """Explain IMAGES: files, folders, or patterns such as 'photos/*.jpg'.

    Writes three files an image to --out: NAME.png, the picture beside its maps, for the target class and for the
    one that it is compared with (red speaks for the class, blue against it); NAME.json, the probabilities and what
    the maps amount to; NAME.npz, the maps themselves.
    """
    paths = image_files(images)
    names = names_of(paths)
    check_places(paths, names, out)
    chosen_device = runtime.device(device)
    model = build(network, weights, weights_path).to(chosen_device)
    explainers = explainers or [default_explainer(model)]
    contrasts = contrasts or [VERSUS if versus else "weighted"]
    for name in explainers:
        runtime.check_name("explainer", name, EXPLAINERS)
    for name in contrasts:
        runtime.check_name("contrast", name, [*CONTRASTS, VERSUS])
    prepare = prepared(model, weights, image_size)
    classes: list[str] = []
    for name, path in zip(runtime.progress(names, "explain", "image"), paths):
        x = prepare(as_shown(path))[None].to(chosen_device)
        logits = paired(taps.logits(model, x))
        classes = classes or class_names(model, logits.shape[1], network, weights, weights_path, classes_file)
        t, s = chosen_classes(logits[0], target, versus, classes)
        leading = torch.tensor([[t, s]], device=chosen_device)
        functions = [groups([t], [s]) if contrast == VERSUS else contrast for contrast in contrasts]
        maps = torch.stack([explain(model, x, leading, name, functions, layer, relu) for name in explainers])
        maps = maps[:, :, 0].cpu()  # (explainers, contrasts, 2, H, W)
        write(Path(out) / name, path, x[0].cpu(), maps, logits[0].cpu(), (t, s), classes, explainers, contrasts)
    click.echo(f"{len(paths)} image{'s' * (len(paths) > 1)} explained in {out}")


@main.command(name="list")
@click.argument("what", type=click.Choice(["networks", "explainers", "contrasts", "layers"]), required=False)
@click.argument("name", required=False)
def list_(what: str | None, name: str | None) -> None:
    """Show what there is: networks [PATTERN], explainers, contrasts, or the layers of a NETWORK.

    A layer with a star is the one that is explained unless --layer names another. The map of a contrast by an explainer
    with a plus is the contrast of the classes' maps; of the others, docstrings say what it means.
    """
    if what in (None, "explainers"):
        marked = {key: f"{' +'[key in LINEAR]} {function.__doc__}" for key, function in EXPLAINERS.items()}
        table("explainers", marked, what is None)
    if what in (None, "contrasts"):
        ours = "The target against the class of --versus, or the second most probable one: e_t - e_s."
        table("contrasts", {key: f.__doc__ for key, f in CONTRASTS.items()} | {VERSUS: ours}, what is None)
    if what is None:
        click.echo("networks: cxlib list networks [PATTERN]\nlayers:   cxlib list layers NETWORK")
    if what == "networks":
        pattern = name or "*"
        for network in (known for known in known_networks() if fnmatch(known, pattern)):
            click.echo(network)
    if what == "layers":
        if not name:
            raise ValueError("list layers needs the name of a network, or a .pt file")
        with nullcontext() if is_file(name) else networks.Weightless():
            list_layers(build(name, "random", None))


def table(title: str, rows: Mapping[str, str | None], titled: bool) -> None:
    """Print names with the first line of their docstrings."""
    if titled:
        click.echo(f"{title}:")
    for name, text in rows.items():
        click.echo(f"{'  ' * titled}{name:<22}{(text or '').rstrip().splitlines()[0]}")


def known_networks() -> list[str]:
    """The networks that can be built by name."""
    import timm

    ours = ["vgg16_bn_narrow", *networks.SMALL_TRANSFORMERS, *networks.HYBRIDS]
    return [*ours, *dict.fromkeys([*torchvision.models.list_models(module=torchvision.models), *timm.list_models()])]


def list_layers(model: networks.Network) -> None:
    """Print a network's layers; stars mark those explained by default."""
    own: set[torch.nn.Module] = set()
    finders: tuple[Callable[[], torch.nn.Module], ...] = (
        lambda: networks.explanation_layer(model),
        lambda: model.inner.get_submodule(vit.token_layers(model)[-1]),
    )
    for find in finders:
        try:
            own.add(find())
        except ValueError:
            continue
    for name, module in model.inner.named_modules():
        if name:
            click.echo(f"{'*' if module in own else ' '} {name:<40}{type(module).__name__}")


# --- what the options mean ---------------------------------------------------------------------------------------


def image_files(arguments: Sequence[str]) -> list[Path]:
    """The image files that arguments name: files, folders (searched through), and patterns.

    Raises:
        ValueError: an argument names no image.
    """
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        else:
            files = [path] if path.is_file() else [Path(file) for file in sorted(glob(argument, recursive=True))]  # noqa: PTH207 - Path's takes no absolute pattern
        if not files:
            raise ValueError(f"{argument} names no image: give a file, a folder with images, or a pattern")
        found += files
    return list(dict.fromkeys(found))


def names_of(paths: Sequence[Path]) -> list[str]:
    """A name for each image's results: the file's, numbered where another has it."""
    stems = {path.stem for path in paths}
    names: list[str] = []
    for path in paths:
        numbered = (f"{path.stem}_{number}" for number in count(2))
        free = (name for name in numbered if name not in stems and name not in names)
        names.append(next(free) if path.stem in names else path.stem)
    return names


def check_places(paths: Sequence[Path], names: Sequence[str], out: str) -> None:
    """Raise a ValueError where a result would be written over one of the images."""
    results = {(Path(out) / f"{name}.png").resolve() for name in names}
    if over := results & {path.resolve() for path in paths}:
        raise ValueError(f"the results in {out} would overwrite the image {min(over).name}: name another --out")


def is_file(name: str) -> bool:
    """Whether a network, or weights, are named by a file."""
    return name.endswith((".pt", ".pth"))


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


def class_names(
    model: networks.Network, n_classes: int, network: str, weights: str, folder: str | None, file: str | None
) -> list[str]:
    """The classes' names: from a file, from torchvision, from timm, or their indices.

    Without a file given, `classes.txt` beside the network's or the weights' file, or `<weights>.labels.txt` in
    their folder, is one, if it has the right number of names.

    Raises:
        ValueError: the file has another number of names than the network has classes.
    """
    if file:
        names = read_names(Path(file))
        if len(names) != n_classes:
            raise ValueError(f"{file} names {len(names)} classes, {model.name} tells {n_classes} apart")
        return names
    stem = model.name if weights == "DEFAULT" else weights
    beside = [Path(given).with_name("classes.txt") for given in (network, weights) if is_file(given)]
    if folder:
        beside.append(Path(folder, f"{stem}.labels.txt"))
    for candidate in beside:
        if candidate.is_file() and len(names := read_names(candidate)) == n_classes:
            return names
    published = network == model.name and weights != "random" and networks.published(model.name, weights, folder)
    names = networks.published_classes(model) if published else []
    return names if len(names) == n_classes else [str(index) for index in range(n_classes)]


def read_names(path: Path) -> list[str]:
    """One name a line; numbers that count the lines, and those of CUB's `1 001.Laysan_Albatross`, are left out."""
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if all(re.match(r"\d+ \d+\.\S", line) for line in lines):
        return [line.partition(".")[2] for line in lines]
    for first in (0, 1):
        names = [line.removeprefix(f"{number} ").lstrip() for number, line in enumerate(lines, first)]
        if len(set(names)) == len(lines) and not set(names) & set(lines):
            return names
    return lines


def chosen_classes(logits: Tensor, target: str | None, versus: str | None, classes: list[str]) -> tuple[int, int]:
    """The target and the class beside it: as named, or the most probable.

    Raises:
        ValueError: a name or index is none of the classes, or both are the same.
    """
    order = logits.argsort(descending=True, stable=True).tolist()
    s = None if versus in (None, SECOND) else index_of(str(versus), classes)
    t = next(k for k in order if k != s) if target is None else index_of(target, classes)
    if s is None:
        s = next(k for k in order if k != t)
    if s == t:
        raise ValueError(f"--target and --versus are the same class, {classes[t]}: name another")
    return t, s


def index_of(name: str, classes: list[str]) -> int:
    """The class with this index, this name, or the only one whose name has this part.

    Raises:
        ValueError: there is none, or there are several.
    """
    if name.isdecimal() and name not in classes:
        if int(name) >= len(classes):
            raise ValueError(f"there is no class {name}: the indices go from 0 to {len(classes) - 1}")
        return int(name)
    wanted, spelled = plain(name), [plain(known) for known in classes]
    found = [k for k, known in enumerate(spelled) if known == wanted]
    found = found or [k for k, known in enumerate(spelled) if wanted in known]
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(f"{classes[k]} ({k})" for k in found[:5])
        raise ValueError(
            f"{name!r} may be any of {len(found)} classes: {some}{', …' * (len(found) > 5)}; give the index"
        )
    near = ", ".join(classes[spelled.index(word)] for word in get_close_matches(wanted, spelled, n=5, cutoff=0.5))
    raise ValueError(f"no class {name!r}; near it: {near or 'none, see --classes'}")


def plain(name: str) -> str:
    """A class name as people type it."""
    return name.replace("_", " ").strip().lower()


# --- results -------------------------------------------------------------------------------------------------------


def write(
    stem: Path,
    source: Path,
    image: Tensor,
    maps: Tensor,
    logits: Tensor,
    chosen: tuple[int, int],
    classes: list[str],
    explainers: Sequence[str],
    contrasts: Sequence[str],
) -> None:
    """Write stem.png, stem.json and stem.npz of one image: maps (explainers, contrasts, 2, H, W)."""
    p = logits.double().softmax(0)
    named = {
        role: {"index": k, "name": classes[k], "probability": float(p[k]), "logit": float(logits[k])}
        for role, k in zip(("target", "versus"), chosen)
    }
    top = p.topk(min(5, len(p)))
    amounts = {
        f"{explainer} {contrast}": {role: told(maps[e, c, r]) for r, role in enumerate(named)}
        for e, explainer in enumerate(explainers)
        for c, contrast in enumerate(contrasts)
    }
    summary = {
        "image": str(source),
        **named,
        "most_probable": {
            str(rank): {"index": int(k), "name": classes[int(k)], "probability": float(value)}
            for rank, (value, k) in enumerate(zip(top.values, top.indices), 1)
        },
        "maps": amounts,
    }
    axes = {"explainers": np.array(explainers), "contrasts": np.array(contrasts)}
    grid = {
        "images": image.permute(1, 2, 0).numpy()[None],
        "maps": maps.numpy()[None],
        "names": np.array([[classes[k].replace(" ", "_") for k in chosen]]),
        "probabilities": p[list(chosen)].numpy()[None],
        "labels": np.array([""]),
    }
    places = [runtime.atomic(f"{stem}.{suffix}") for suffix in ("json", "npz", "png")]
    with places[0] as numbers, places[1] as arrays, places[2] as picture:  # all of them, or none
        runtime.write_json(numbers, summary)
        runtime.write_arrays(arrays, maps=maps.numpy(), image=image.numpy(), classes=np.array(chosen), **axes)
        overlay.over_images(grid | axes, picture)


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


if __name__ == "__main__":
    main(prog_name="cxlib")
