"""Gather the followed networks: every image at every step (section 4.3), by sureness, and headlines."""

import click
from _command import Stage, option, several

from cxlib import runtime
from cxlib.review.report import tables


@click.command(cls=Stage)
@several("--networks")
@option("--folder")
@option("--steps")
@option("--table")
@option("--metrics")
def main(networks, folder, steps, table, metrics):
    """Read --folder/NETWORK.npz of every network asked for; a missing one is an error, any other is removed."""
    followed = tables.saturation(runtime.read_cells(folder, networks))
    by_sureness = tables.dominance(followed)
    runtime.write_csv(steps, followed)
    runtime.write_csv(table, by_sureness)
    # Headlines: of the surest images, whose softmax gradient float32 spares least.
    surest = by_sureness.iloc[-1]
    runtime.write_metrics(metrics, {name: surest[name] for name in ("y_t_gain_probability", "y_t_gain_weighted")})


if __name__ == "__main__":
    main()
