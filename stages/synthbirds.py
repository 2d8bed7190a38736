"""Paint SynthBirds, a bird data set in CUB-200-2011's layout."""

import click
from _command import Stage, option

from cxlib import runtime
from cxlib.datasets.synthbirds import generate


@click.command(cls=Stage)
@option("--out")
@option("--species-per-family", int)
@option("--train-per-species", int)
@option("--test-per-species", int)
@option("--image-size", int)
@option("--ambiguity", float)
@option("--seed", int)
def main(out, **settings):
    """Paint the data set into the folder --out."""
    with runtime.atomic(out) as partial:
        generate(partial, **settings)


if __name__ == "__main__":
    main()
