"""Gather the compared variants of all Vision Transformers: tables by p_2 and by block, and headlines."""

import click
import numpy as np
from _command import COUNT, ListOf, Stage, option

from cxlib import runtime, tables


@click.command(cls=Stage)
@option("--networks", ListOf(str))
@option("--folder")
@option("--seed", COUNT)
@option("--table")
@option("--blocks-table")
@option("--metrics")
def main(networks, folder, seed, table, blocks_table, metrics):
    """Read --folder/NETWORK.npz of every network asked for; a missing one is an error, any other is removed."""
    cells = runtime.read_cells(folder, networks)
    compared = tables.transformers(cells, np.random.default_rng(seed))
    runtime.write_csv(table, compared)
    runtime.write_csv(blocks_table, tables.transformer_blocks(cells, np.random.default_rng(seed)))

    # Headlines: images above the threshold's bin of p_2, mean over networks, positive features kept by the fair rule.
    shown = compared[(compared["p_2"] == tables.BINS[0]) & compared["rule"].isin(["none", "equal_kept"])]
    shown = shown[shown["quantity"].isin(["alike", "between", "gain", "gain_margin", "positive_kept", "margin"])]
    headlines = {}
    for explainer, rows in shown.groupby("explainer"):
        targets = rows["target"].where(rows["quantity"].isin(["positive_kept", "margin"]), "")
        names = rows["quantity"].str.cat([targets, rows["variant"]], "_").str.replace("__", "_").str.replace(" ", "_")
        headlines[explainer] = rows.groupby(names)["value"].mean().to_dict()
    headlines["accuracy"] = {name: cell["accuracy"].item() for name, cell in cells.items()}
    headlines["n_images"] = max(int((cell["p_2"] > tables.EDGES[0]).sum()) for cell in cells.values())
    runtime.write_json(metrics, headlines)


if __name__ == "__main__":
    main()
