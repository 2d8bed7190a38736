"""Draw the localisation of all networks: explainers and contrasts against their controls, and by p_2."""

import click
import pandas as pd
from _command import Stage, option

from cxlib import figures, runtime


@click.command(cls=Stage)
@option("--table")
@option("--p-2-table")
@option("--out")
def main(table, p_2_table, out):
    """Draw --table and --p-2-table into the PNG --out."""
    with runtime.atomic(out) as partial:
        figures.localisation(pd.read_csv(table), pd.read_csv(p_2_table), partial)


if __name__ == "__main__":
    main()
