"""Gather the networks' tests: accuracy, and how many test images are ambiguous enough to explain."""

import click
from _command import Stage, option, several

from cxlib import runtime
from cxlib.review.report import tables


@click.command(cls=Stage)
@several("--networks")
@option("--threshold", float)
@option("--folder")
@option("--table")
@option("--curves")
@option("--metrics")
def main(networks, threshold, folder, table, curves, metrics):
    """Read --folder/NETWORK.npz of every network asked for; a missing one is an error, any other is removed."""
    reports = runtime.read_cells(folder, networks)
    tested = tables.tested(reports, threshold)
    runtime.write_csv(table, tested)
    runtime.write_csv(curves, tables.training(reports))
    runtime.write_metrics(metrics, {"accuracy": dict(zip(tested["network"], tested["test_accuracy"]))})


if __name__ == "__main__":
    main()
