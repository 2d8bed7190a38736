"""Gather the compared variants of all Vision Transformers: tables by p_2 and by block, and headlines."""

import click
import numpy as np
from _command import COUNT, Stage, option, several

from cxlib import runtime
from cxlib.review.report import tables


@click.command(cls=Stage)
@several("--networks")
@option("--seed", COUNT)
@option("--folder")
@option("--table")
@option("--blocks-table")
@option("--metrics")
def main(networks, seed, folder, table, blocks_table, metrics):
    """Read --folder/NETWORK.npz of every network asked for; a missing one is an error, any other is removed."""
    cells = runtime.read_cells(folder, networks)
    compared = tables.transformers(cells, np.random.default_rng(seed))
    runtime.write_csv(table, compared)
    runtime.write_csv(blocks_table, tables.transformer_blocks(cells, np.random.default_rng(seed)))

    # Headlines: how alike the maps of t1 and t2 are, and what the contrast adds, on ambiguous images.
    shown = compared[(compared["p_2"] == tables.BINS[0]) & compared["quantity"].isin(["between", "gain_margin"])]
    headlines: dict[str, dict] = {}
    means = shown.groupby(["explainer", "quantity", "variant"])["value"].mean()
    for (explainer, quantity, variant), value in means.items():
        name = f"t1_t2_correlation_{variant}" if quantity == "between" else quantity
        if variant != "standard":
            headlines.setdefault(explainer, {})[name] = value
    runtime.write_metrics(metrics, headlines)


if __name__ == "__main__":
    main()
