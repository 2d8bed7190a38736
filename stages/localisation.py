"""Gather the localisation of all networks: tables with intervals, and headlines."""

import click
import numpy as np
from _command import COUNT, Stage, option, several

from cxlib import runtime
from cxlib.review.report import tables


@click.command(cls=Stage)
@several("--networks")
@several("--p-2-edges", float)
@option("--seed", COUNT)
@option("--folder")
@option("--table")
@option("--p-2-table")
@option("--metrics")
def main(networks, p_2_edges, seed, folder, table, p_2_table, metrics):
    """Read --folder/NETWORK.npz of every network asked for; a missing one is an error, any other is removed."""
    cells = runtime.read_cells(folder, networks)
    localised = tables.localisation(cells, np.random.default_rng(seed))
    by_p_2 = tables.localisation_by_p_2(cells, p_2_edges, np.random.default_rng(seed))
    runtime.write_csv(table, localised)
    runtime.write_csv(p_2_table, by_p_2)

    # Headlines: what the maps have in the telling parts above their share of the area, means over targets and networks.
    gains = localised[localised["quantity"] == "gain"]
    means = gains[(gains["target"] == "mean") & (gains["explainer"] == "mean") & (gains["mass"] == "evidence")]
    headlines = means.groupby("contrast")["value"].mean().to_dict()
    control = gains[gains["explainer"] == "gaussian"]
    headlines |= {"gaussian": control["value"].mean()} if len(control) else {}
    runtime.write_metrics(metrics, {"gain": headlines, "n_images": max(localised["n_images"], default=0)})


if __name__ == "__main__":
    main()
