"""Gather the followed networks: every image at every step (section 4.3), and headlines by sureness."""

import click
from _command import ListOf, Stage, option

from cxlib import runtime, tables


@click.command(cls=Stage)
@option("--networks", ListOf(str))
@option("--folder")
@option("--table")
@option("--metrics")
def main(networks, folder, table, metrics):
    """Read --folder/NETWORK.npz of every network asked for; a missing one is an error, any other is removed."""
    steps = tables.saturation(runtime.read_cells(folder, networks))
    runtime.write_csv(table, steps)
    runtime.write_json(metrics, tables.dominance(steps))


if __name__ == "__main__":
    main()
