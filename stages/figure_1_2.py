"""Draw Figures 1 and 2: changes under gradient-sign perturbation."""

import click
import pandas as pd
from _command import Stage, option

from cxlib import figures, runtime


@click.command(cls=Stage)
@option("--table")
@option("--out")
def main(table, out):
    """Draw the --table of changes into the PNG --out."""
    with runtime.atomic(out) as partial:
        figures.figure_1_2(pd.read_csv(table), partial)


if __name__ == "__main__":
    main()
