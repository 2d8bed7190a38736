"""Gather the perturbed networks: the table behind Figures 1 and 2, and its headlines."""

import click
from _command import ListOf, Stage, option

from cxlib import runtime, tables


@click.command(cls=Stage)
@option("--networks", ListOf(str))
@option("--folder")
@option("--table")
@option("--zeros")
@option("--metrics")
def main(networks, folder, table, zeros, metrics):
    """Read --folder/NETWORK.npz of every network asked for; a missing one is an error, any other is removed."""
    cells = runtime.read_cells(folder, networks)
    changes, zero_gradients = tables.perturbation(cells), tables.zero_gradients(cells)
    runtime.write_csv(table, changes)
    runtime.write_csv(zeros, zero_gradients)

    # Headlines: the mean over epsilons, iterations and networks for each contrast.
    headlines = {
        contrast: {**group.groupby("quantity")["change"].mean().to_dict()}
        for contrast, group in changes.groupby("contrast")
    }
    for contrast, group in zero_gradients.groupby("contrast"):
        headlines[contrast]["zero_gradients_per_million"] = 1e6 * group["zero_share"].mean()
    runtime.write_json(metrics, {**headlines, "n_images": changes["n_images"].min()})


if __name__ == "__main__":
    main()
