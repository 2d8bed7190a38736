"""Gather the masked networks: Table 1, the table below its threshold, beside the printed numbers, and both by p_2."""

import click
import numpy as np
import pandas as pd
from _command import COUNT, ListOf, Stage, option

from cxlib import runtime, tables


@click.command(cls=Stage)
@option("--networks", ListOf(str))
@option("--folder")
@option("--reference")
@option("--under-reference")
@option("--seed", COUNT)
@option("--table")
@option("--under-table")
@option("--by-ambiguity")
@option("--metrics")
def main(networks, folder, reference, under_reference, seed, table, under_table, by_ambiguity, metrics):
    """Read --folder/NETWORK.npz of every network asked for; a missing one is an error, any other is removed."""
    cells = runtime.read_cells(folder, networks)
    above = tables.masking(cells, True, np.random.default_rng(seed))
    below = tables.masking(cells, False, np.random.default_rng(seed))
    runtime.write_csv(table, tables.with_published(above, pd.read_csv(reference)))
    runtime.write_csv(under_table, tables.with_published(below, pd.read_csv(under_reference)))
    runtime.write_csv(by_ambiguity, tables.by_ambiguity(cells, np.random.default_rng(seed)))

    # Headlines: the mean over explainers and baselines.
    kept = above[above["kept_features"] != "all"]
    names = kept[["rule", "target", "kept_features", "contrast"]].agg("_".join, axis=1)
    headlines = kept.groupby(names)["relative_probability"].mean().to_dict()
    for target, group in above[above["kept_features"] == "all"].groupby("target"):
        headlines[f"{target}_unmasked"] = group["relative_probability"].mean()
    counts = {"n_images": max(above["n_images"], default=0), "n_images_below": max(below["n_images"], default=0)}
    runtime.write_json(metrics, headlines | counts)


if __name__ == "__main__":
    main()
