"""Draw our changes under perturbation beside the published ones."""

import click
import pandas as pd
from _command import Stage, option

from cxlib import figures, runtime


@click.command(cls=Stage)
@option("--table")
@option("--out")
def main(table, out):
    """Draw the --table of both into the PNG --out."""
    with runtime.atomic(out) as partial:
        figures.perturbation_vs_published(pd.read_csv(table), partial)


if __name__ == "__main__":
    main()
