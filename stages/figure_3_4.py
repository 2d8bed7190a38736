"""Draw Figure 3 or 4: maps of the dominant classes under different contrasts."""

import click
import numpy as np
from _command import Stage, option

from cxlib import figures, runtime


@click.command(cls=Stage)
@option("--maps")
@option("--out")
def main(maps, out):
    """Draw --maps into the PNG --out."""
    with runtime.atomic(out) as partial:
        figures.figure_3_4(dict(np.load(maps)), partial)


if __name__ == "__main__":
    main()
