"""Draw one figure from its table, or from its maps."""

from functools import partial

import click
import pandas as pd
from _command import Stage, option
from _picture import write

from cxlib import runtime
from cxlib.review.report import figures


@click.command(cls=Stage)
@click.argument("name", type=click.Choice(list(figures.FIGURES)))
@option("--table")
@option("--out")
@option("--shown")
def main(name, table, out, shown):
    """Draw the figure NAME of a --table (CSV), or of maps (NPZ), into the PNG --out, for the report into --shown."""
    content = runtime.read_arrays(table) if table.endswith(".npz") else pd.read_csv(table)
    try:
        write(partial(figures.FIGURES[name], content), out, shown)
    except (KeyError, AttributeError) as error:
        raise ValueError(f"{table} is not what {name} is drawn from: it lacks {error}") from error


if __name__ == "__main__":
    main()
