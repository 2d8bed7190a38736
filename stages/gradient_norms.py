"""Norm of the input gradient against the logit, for classes spread over the ranks (Figure 6)."""

import click
import numpy as np
import pandas as pd
import torch
from _command import COUNT, POSITIVE, Stage, option

from cxlib import networks, norms, runtime
from cxlib.datasets import images


@click.command(cls=Stage)
@option("--network")
@option("--data")
@option("--image-size", POSITIVE)
@option("--crop", bool)
@option("--max-images", COUNT)
@option("--batch-size", POSITIVE)
@option("--chunk", POSITIVE)
@option("--device")
@option("--seed", COUNT)
@option("--table")
@option("--metrics")
def main(network, data, image_size, crop, max_images, batch_size, chunk, device, seed, table, metrics):
    """Write a row for each image and class to --table, the second-degree fit to --metrics."""
    device = runtime.device(device)
    model = networks.load(network).to(device, memory_format=torch.channels_last)
    samples = images.read(data, "test")
    ranks = norms.ranks_to_explain(len(samples.classes))
    chosen = images.choose(range(len(samples)), max_images, seed)
    prepare, what = images.preprocessing(image_size, crop), f"gradient norms {model.name}"
    results = []
    for _, x, _ in images.batches(samples, chosen, prepare, batch_size, device, what):
        results.append(norms.gradient_norms(model, x, ranks, chunk))
    y, norm = (torch.cat(values).double().cpu().numpy() for values in zip(*results))  # (images, ranks)
    coefficients, r2 = norms.second_degree_fit(y, norm)
    rows = {
        "image": np.repeat(chosen, len(ranks)),
        "rank": np.tile(ranks, len(chosen)),
        "logit": y.ravel(),
        "norm": norm.ravel(),
    }
    runtime.write_csv(table, pd.DataFrame(rows))
    runtime.write_json(
        metrics,
        {
            "fit": dict(zip(("quadratic", "linear", "constant"), coefficients)),
            "r2": r2,
            "rank_correlation_mean": norms.rank_correlation(y, norm).mean(),
            "n_images": len(chosen),
        },
    )


if __name__ == "__main__":
    main()
