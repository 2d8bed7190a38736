"""Paint SynthBirds, a bird data set in CUB-200-2011's layout."""

import click
from _command import COUNT, POSITIVE, Stage, option

from cxlib import runtime
from cxlib.datasets.synthbirds import generate


@click.command(cls=Stage)
@option("--out")
@option("--species-per-family", int)
@option("--train-per-species", POSITIVE)
@option("--test-per-species", POSITIVE)
@option("--image-size", POSITIVE)
@option("--ambiguity", float)
@option("--seed", COUNT)
def main(out, **settings):
    """Paint the data set into the folder --out."""
    with runtime.atomic(out) as partial:
        generate(partial, **settings)


if __name__ == "__main__":
    main()
