"""Gather the perturbed networks: the table behind Figures 1 and 2, beside the published one, and headlines."""

import click
import pandas as pd
from _command import Stage, option, several

from cxlib import runtime
from cxlib.review.report import tables


@click.command(cls=Stage)
@several("--networks")
@option("--folder")
@option("--published")
@option("--table")
@option("--zeros")
@option("--beside")
@option("--metrics")
def main(networks, folder, published, table, zeros, beside, metrics):
    """Read --folder/NETWORK.npz of every network asked for; a missing one is an error, any other is removed."""
    cells = runtime.read_cells(folder, networks)
    changes = tables.perturbation(cells)
    with_published = tables.perturbation_vs_published(changes, pd.read_csv(published))
    runtime.write_csv(table, changes)
    runtime.write_csv(zeros, tables.zero_gradients(cells))
    runtime.write_csv(beside, with_published)

    # Headlines: the mean over epsilons, iterations and networks.
    shown = changes[changes["contrast"].isin(["original", "weighted", "probability"])]
    means = shown.groupby(["quantity", "contrast"])["change"].mean()
    headlines = {quantity: means[quantity].to_dict() for quantity in means.index.levels[0]}
    close = {quantity: numbers["correlation"] for quantity, numbers in tables.closeness(with_published).items()}
    runtime.write_metrics(metrics, headlines | ({"correlation_with_published": close} if close else {}))


if __name__ == "__main__":
    main()
