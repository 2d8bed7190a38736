"""Make a data set: paint SynthBirds, download or sort the published ones; or check one that is there."""

from pathlib import Path

import click
from _command import COUNT, POSITIVE, SHARE, Stage, option

from cxlib import fetch, runtime
from cxlib.datasets import imagenet as ilsvrc2012
from cxlib.datasets import images
from cxlib.synthbirds import species


@click.group()
def main():
    """Make the data set --out, unless --path names another folder: that one is checked, and taken as it is."""


def is_taken(path, out):
    """Whether --path is another folder than --out; then --out says what was found there."""
    if Path(path).resolve() == Path(out).resolve():
        return False
    told = f"{path}: {len(images.read(path, 'test'))} test images, taken as they are"
    with runtime.atomic(Path(out, "taken.txt")) as partial:
        partial.write_text(f"{told}\n")
    click.echo(told)
    return True


def place(function):
    """The options of every data set."""
    return option("--path")(option("--out")(function))


@main.command(cls=Stage)
@place
@option("--species-per-family", int)
@option("--train-per-species", POSITIVE)
@option("--test-per-species", POSITIVE)
@option("--image-size", POSITIVE)
@option("--ambiguity", SHARE)
@option("--seed", COUNT)
def synthbirds(path, out, **settings):
    """Paint SynthBirds, a bird data set in CUB-200-2011's layout."""
    if not is_taken(path, out):
        with runtime.atomic(out) as partial:
            species.generate(partial, **settings)


@main.command(cls=Stage)
@place
def photographs(path, out):
    """The ImageNet photographs that the package foolbox ships, in class folders."""
    if not is_taken(path, out):
        click.echo(f"{out} is complete: {fetch.foolbox_photographs(out)} images")


def downloaded(name, get):
    """The command of a data set that is downloaded; an interrupted one goes on."""

    @main.command(name, cls=Stage, help=f"{(get.__doc__ or '').partition(';')[0]}.")
    @place
    @option("--archives")
    @option("--url")
    @option("--md5")
    def command(path, out, archives, url, md5):
        if not is_taken(path, out):
            click.echo(f"{out} is complete: {get(out, archives, url, md5)} images")


downloaded("cub", fetch.cub_200_2011)
downloaded("food101", fetch.food_101)


@main.command(cls=Stage)
@place
@option("--archives")
@option("--devkit-md5")
@option("--validation-md5")
def imagenet(path, out, archives, devkit_md5, validation_md5):
    """Sort ILSVRC2012's validation images out of the two official archives, which registered users may download."""
    if not is_taken(path, out):
        checksums = {ilsvrc2012.DEVKIT: devkit_md5, ilsvrc2012.VALIDATION: validation_md5}
        click.echo(f"{out} is complete: {fetch.ilsvrc2012_validation(out, archives, checksums)} images")


if __name__ == "__main__":
    main()
