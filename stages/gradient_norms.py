"""Norm of the input gradient against the logit, for classes spread over the ranks (Figure 6)."""

from pathlib import Path

import click
import numpy as np
import pandas as pd
from _command import COUNT, SharedStage, option
from _experiment import network_options, running

from cxlib import networks, runtime
from cxlib.datasets.images import choose, read
from cxlib.review import gradient_norms
from cxlib.review.ledger import statistics


@click.command(cls=SharedStage)
@network_options
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
    with running([network], samples.take(chosen)) as run:
        model = networks.fast(networks.load(network).to(run.device))

        def compute(_batch, x, _labels):
            measured = gradient_norms.gradient_norms(model, x, ranks_of_classes)
            return {name: values.double() for name, values in measured._asdict().items()}

        results = run.map(samples, compute, chosen)
        if results is None:
            return
        y, norm = results["logits"], results["norms"]  # (images, ranks)
        rows = {
            "image": np.repeat(chosen, len(ranks_of_classes)),
            "rank": np.tile(ranks_of_classes, len(chosen)),
            "logit": y.ravel(),
            "probability": results["probabilities"].ravel(),
            "norm": norm.ravel(),
            "centred_norm": results["centred_norms"].ravel(),
        }
        fit, r2 = statistics.second_degree_fit(y, norm)
        correlations = statistics.rank_correlation(y, norm)
        fitted = {"network": Path(network).stem, "r2": r2} | dict(zip(("quadratic", "linear", "constant"), fit))
        fitted |= {"rank_correlation_mean": correlations.mean(), "rank_correlation_lowest": correlations.min()}
        about = {"n_images": len(chosen), "computed_by": runtime.computed_by(run.device)}
        # First the headlines, whose NaN is an error: nothing is left half written.
        runtime.write_metrics(metrics, {"rank_correlation": correlations.mean()})
        runtime.write_csv(points, pd.DataFrame(rows))
        runtime.write_csv(table, pd.DataFrame([fitted | about]))


if __name__ == "__main__":
    main()
