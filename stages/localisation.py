"""Gather the localisation of all networks: tables with intervals, and headlines."""

import click
import numpy as np
from _command import COUNT, ListOf, Stage, option

from cxlib import runtime, tables


@click.command(cls=Stage)
@option("--networks", ListOf(str))
@option("--folder")
@option("--p-2-edges", ListOf(float))
@option("--seed", COUNT)
@option("--table")
@option("--p-2-table")
@option("--metrics")
def main(networks, folder, p_2_edges, seed, table, p_2_table, metrics):
    """Read --folder/NETWORK.npz of every network asked for; a missing one is an error, any other is removed."""
    cells = runtime.read_cells(folder, networks)
    localised = tables.localisation(cells, np.random.default_rng(seed))
    by_p_2 = tables.localisation_by_p_2(cells, p_2_edges, np.random.default_rng(seed))
    runtime.write_csv(table, localised)
    runtime.write_csv(p_2_table, by_p_2)

    # Headlines: means over targets and networks; each explainer's gain, and the mean over explainers of the rest.
    means = localised[localised["target"] == "mean"]
    headlines = {}
    for contrast, group in means.groupby("contrast"):
        value = group.groupby(["explainer", "mass", "quantity"])["value"].mean()
        headlines[contrast] = {f"gain_{name}": gain for name, gain in value[:, "evidence", "gain"].items()}
        headlines[contrast] |= {"hit": value["mean", "evidence", "hit"]}
        headlines[contrast] |= {"gain_exchanged": value["mean", "exchanged", "gain"]}
    for quantity, group in localised[localised["explainer"] == "gaussian"].groupby("quantity"):
        if quantity != "share":
            headlines[f"gaussian_{quantity}"] = group["value"].mean()
    if not localised.empty:
        headlines["area"] = localised["area"].mean()
    headlines["discriminative"] = all(bool(cell["discriminative"]) for cell in cells.values())
    for name, above in (("n_images", True), ("n_images_below", False)):
        headlines[name] = max(int((cell["above"] == above).sum()) for cell in cells.values())
    runtime.write_json(metrics, headlines)


if __name__ == "__main__":
    main()
