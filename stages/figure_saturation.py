"""Draw what float32 leaves of the softmax gradient, by p_t (section 4.3)."""

import click
import pandas as pd
from _command import Stage, option

from cxlib import figures, runtime, tables


@click.command(cls=Stage)
@option("--table")
@option("--out")
def main(table, out):
    """Draw the --table of steps into the PNG --out."""
    steps = pd.read_csv(table)
    with runtime.atomic(out) as partial:
        figures.saturation(steps.assign(group=tables.sureness(steps)), tables.SURENESS, partial)


if __name__ == "__main__":
    main()
