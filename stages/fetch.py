"""Get the published data sets; by hand, before the profile `paper`, which looks for them where this puts them."""

import click
from _command import Stage

from cxlib.datasets import fetch


@click.group(context_settings={"show_default": True})
def main():
    """Get the published data sets."""


@main.command(cls=Stage)
@click.option("--url", default=fetch.CUB_URL)
@click.option("--md5", default=fetch.CUB_MD5)
@click.option("--out", default="data/CUB_200_2011")
def cub(url, md5, out):
    """Download CUB-200-2011 and unpack it into the folder --out; run it again to go on after an interruption."""
    click.echo(f"{out} is complete: {fetch.cub_200_2011(out, url, md5)} images")


@main.command(cls=Stage)
@click.option("--archives", default="data/imagenet")
@click.option("--out", default="data/imagenet")
def imagenet(archives, out):
    """Sort ILSVRC2012's validation images, from the two official archives in --archives, into --out."""
    click.echo(f"{out} is complete: {fetch.ilsvrc2012_validation(out, archives)} images")


if __name__ == "__main__":
    main()
