"""Gather the perturbed networks: the table behind Figures 1 and 2, beside the published one, and headlines."""

import click
import pandas as pd
from _command import ListOf, Stage, option

from cxlib import runtime, tables


@click.command(cls=Stage)
@option("--networks", ListOf(str))
@option("--folder")
@option("--published")
@option("--table")
@option("--zeros")
@option("--beside")
@option("--metrics")
def main(networks, folder, published, table, zeros, beside, metrics):
    """Read --folder/NETWORK.npz of every network asked for; a missing one is an error, any other is removed."""
    cells = runtime.read_cells(folder, networks)
    changes, zero_gradients = tables.perturbation(cells), tables.zero_gradients(cells)
    with_published = tables.perturbation_vs_published(changes, pd.read_csv(published))
    runtime.write_csv(table, changes)
    runtime.write_csv(zeros, zero_gradients)
    runtime.write_csv(beside, with_published)

    # Headlines: the mean over epsilons, iterations and networks for each contrast.
    headlines = {
        contrast: {**group.groupby("quantity")["change"].mean().to_dict()}
        for contrast, group in changes.groupby("contrast")
    }
    for contrast, group in zero_gradients.groupby("contrast"):
        headlines[contrast]["zero_gradients_per_million"] = 1e6 * group["zero_share"].mean()
        headlines[contrast]["sign_agreement"] = group["sign_agreement"].mean()
    headlines["n_images"] = changes["n_images"].min()
    runtime.write_json(metrics, headlines | {"published": tables.closeness(with_published)})


if __name__ == "__main__":
    main()
