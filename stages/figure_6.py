"""Draw Figure 6: norm of the input gradient against the logit."""

import json
from pathlib import Path

import click
import pandas as pd
from _command import Stage, option

from cxlib import figures, runtime


@click.command(cls=Stage)
@option("--table")
@option("--metrics")
@option("--out")
def main(table, metrics, out):
    """Draw the --table of norms and the fit in --metrics into the PNG --out."""
    fit = json.loads(Path(metrics).read_text())
    with runtime.atomic(out) as partial:
        figures.figure_6(pd.read_csv(table), fit["fit"], fit["r2"], partial)


if __name__ == "__main__":
    main()
