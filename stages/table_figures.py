"""Draw Table 1 beside the printed values, and how it changes with p_2."""

import click
import pandas as pd
from _command import Stage, option

from cxlib import figures, runtime


@click.command(cls=Stage)
@option("--table")
@option("--by-ambiguity")
@option("--out")
@option("--by-ambiguity-out")
def main(table, by_ambiguity, out, by_ambiguity_out):
    """Read the CSV files of the tables, write a PNG of each."""
    with runtime.atomic(out) as temporary:
        figures.table_1(pd.read_csv(table), temporary)
    with runtime.atomic(by_ambiguity_out) as temporary:
        figures.by_ambiguity(pd.read_csv(by_ambiguity), temporary)


if __name__ == "__main__":
    main()
