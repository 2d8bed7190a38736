"""Gather the masked networks: Table 1, the table below its threshold, beside the printed numbers, and both by p_2."""

import click
import numpy as np
import pandas as pd
from _command import COUNT, Stage, option, several

from cxlib import runtime
from cxlib.review.report import tables


@click.command(cls=Stage)
@several("--networks")
@option("--seed", COUNT)
@option("--folder")
@option("--published")
@option("--under-published")
@option("--table")
@option("--under-table")
@option("--by-ambiguity")
@option("--metrics")
def main(networks, seed, folder, published, under_published, table, under_table, by_ambiguity, metrics):
    """Read --folder/NETWORK.npz of every network asked for; a missing one is an error, any other is removed."""
    cells = runtime.read_cells(folder, networks)
    above = tables.masking(cells, True, np.random.default_rng(seed))
    below = tables.masking(cells, False, np.random.default_rng(seed))
    runtime.write_csv(table, tables.with_published(above, pd.read_csv(published)))
    runtime.write_csv(under_table, tables.with_published(below, pd.read_csv(under_published)))
    runtime.write_csv(by_ambiguity, tables.by_ambiguity(cells, np.random.default_rng(seed)))

    # Headlines: the mean over explainers and baselines under the fair rule.
    kept = above[(above["rule"] == "equal_kept") & above["contrast"].isin(["original", "weighted"])]
    means = kept.groupby(["target", "kept_features", "contrast"])["relative_probability"].mean()
    headlines: dict[str, dict] = {"n_images": max(above["n_images"], default=0)}
    for (target, features, contrast), value in means.items():
        headlines.setdefault(f"{target}_{features}_kept", {})[contrast] = value
    runtime.write_metrics(metrics, headlines)


if __name__ == "__main__":
    main()
