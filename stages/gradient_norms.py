"""Norm of the input gradient against the logit, for classes spread over the ranks (Figure 6)."""

from functools import partial
from pathlib import Path

import click
import numpy as np
import pandas as pd
from _command import COUNT, SharedStage, images, option, running

from cxlib import networks, runtime
from cxlib.datasets.images import choose, load, preprocessing, read
from cxlib.review import gradient_norms
from cxlib.review.report import statistics


@click.command(cls=SharedStage)
@option("--network")
@images
@option("--max-images", COUNT)
@option("--seed", COUNT)
@option("--points")
@option("--table")
@option("--metrics")
def main(network, data, image_size, crop, max_images, seed, points, table, metrics):
    """Write a row for each image and class to --points, the second-degree fit to --table, headlines to --metrics."""
    samples = read(data, "test")
    ranks_of_classes = gradient_norms.ranks_to_explain(len(samples.classes))
    chosen = choose(range(len(samples)), max_images, seed)
    with running([network, *samples.paths]) as run:
        model = networks.fast(networks.load(network).to(run.device))

        def compute(_batch, loaded):
            y, norm = gradient_norms.gradient_norms(model, loaded[0].to(run.device), ranks_of_classes)
            return {"logits": y.double().cpu().numpy(), "norms": norm.double().cpu().numpy()}

        decode = partial(load, samples, transform=preprocessing(image_size, crop))
        parts = run.map(decode, compute, chosen, f"gradient norms {network}")
        if parts is None:
            return
        y, norm = (np.concatenate([part[name] for part in parts]) for name in ("logits", "norms"))  # (images, ranks)
        rows = {
            "image": np.repeat(chosen, len(ranks_of_classes)),
            "rank": np.tile(ranks_of_classes, len(chosen)),
            "logit": y.ravel(),
            "norm": norm.ravel(),
        }
        fit, r2 = statistics.second_degree_fit(y, norm)
        correlations = statistics.rank_correlation(y, norm)
        runtime.write_csv(points, pd.DataFrame(rows))
        fitted = {"network": Path(network).stem, "r2": r2} | dict(zip(("quadratic", "linear", "constant"), fit))
        fitted |= {"rank_correlation_mean": correlations.mean(), "rank_correlation_lowest": correlations.min()}
        about = {"n_images": len(chosen), "computed_by": run.computed_by}
        runtime.write_csv(table, pd.DataFrame([fitted | about]))
        runtime.write_metrics(metrics, {"r2": r2, "rank_correlation": correlations.mean()})


if __name__ == "__main__":
    main()
