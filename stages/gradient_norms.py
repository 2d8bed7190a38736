"""Norm of the input gradient against the logit, for classes spread over the ranks (Figure 6)."""

import click
import numpy as np
import pandas as pd
import torch
from _command import COUNT, POSITIVE, SharedStage, option, workplace

from cxlib import networks, norms, runs, runtime
from cxlib.datasets import images
from cxlib.folding import folded


@click.command(cls=SharedStage)
@option("--network")
@option("--data")
@option("--image-size", POSITIVE)
@option("--crop", bool)
@option("--max-images", COUNT)
@option("--batch-size", POSITIVE)
@option("--device")
@option("--threads", POSITIVE)
@option("--seed", COUNT)
@option("--table")
@option("--metrics")
def main(network, data, image_size, crop, max_images, batch_size, device, threads, seed, table, metrics):
    """Write a row for each image and class to --table, the second-degree fit to --metrics."""
    samples, prepare = images.read(data, "test"), images.preprocessing(image_size, crop)
    ranks_of_classes = norms.ranks_to_explain(len(samples.classes))
    chosen = images.choose(range(len(samples)), max_images, seed)
    with runs.joined() as ranks, workplace(ranks, [network, *samples.paths]) as folder:
        device = runtime.device(device, threads)
        model = folded(networks.load(network)).to(device, memory_format=torch.channels_last)

        def compute(batch):
            x, _ = images.load(samples, batch, prepare, device)
            y, norm = norms.gradient_norms(model, x, ranks_of_classes)
            return {"logits": y.double().cpu().numpy(), "norms": norm.double().cpu().numpy()}

        parts = runs.map_batches(compute, chosen, batch_size, ranks, folder, f"gradient norms {network}")
        if parts is None:
            return
        y, norm = (np.concatenate([part[name] for part in parts]) for name in ("logits", "norms"))  # (images, ranks)
        coefficients, r2 = norms.second_degree_fit(y, norm)
        rows = {
            "image": np.repeat(chosen, len(ranks_of_classes)),
            "rank": np.tile(ranks_of_classes, len(chosen)),
            "logit": y.ravel(),
            "norm": norm.ravel(),
        }
        correlations = norms.rank_correlation(y, norm)
        runtime.write_csv(table, pd.DataFrame(rows))
        runtime.write_json(
            metrics,
            {
                "fit": dict(zip(("quadratic", "linear", "constant"), coefficients)),
                "r2": r2,
                "rank_correlation_mean": correlations.mean(),
                "rank_correlation_lowest": correlations.min(),
                "n_images": len(chosen),
            },
        )


if __name__ == "__main__":
    main()
