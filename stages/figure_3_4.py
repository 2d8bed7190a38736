"""Draw Figure 3 or 4: maps of the dominant classes under different contrasts."""

import click
from _command import Stage, option

from cxlib import figures, runtime


@click.command(cls=Stage)
@option("--maps")
@option("--out")
def main(maps, out):
    """Draw --maps into the PNG --out."""
    with runtime.atomic(out) as partial:
        figures.figure_3_4(runtime.read_arrays(maps), partial)


if __name__ == "__main__":
    main()
