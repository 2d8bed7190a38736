"""Draw what ReLU and the contrast change in a Vision Transformer's maps: by p_2, and by block."""

import click
import pandas as pd
from _command import Stage, option

from cxlib import figures, runtime


@click.command(cls=Stage)
@option("--table")
@option("--blocks-table")
@option("--out")
def main(table, blocks_table, out):
    """Draw --table and --blocks-table into the PNG --out."""
    with runtime.atomic(out) as partial:
        figures.transformers(pd.read_csv(table), pd.read_csv(blocks_table), partial)


if __name__ == "__main__":
    main()
