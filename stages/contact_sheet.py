"""Draw the contact sheet of SynthBirds: a few test images of every species, family by family."""

import click
from _command import Stage, option

from cxlib import figures, runtime


@click.command(cls=Stage)
@option("--data")
@option("--out")
def main(data, out):
    """Draw the birds in the folder --data into the PNG --out."""
    with runtime.atomic(out) as partial:
        figures.contact_sheet(data, partial)


if __name__ == "__main__":
    main()
