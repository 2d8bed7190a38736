"""Follow the softmax gradient and its closed form on one network, step by step (section 4.3)."""

from functools import partial

import click
import numpy as np
import torch
from _command import COUNT, POSITIVE, SharedStage, images, option, running

from cxlib import networks, runtime
from cxlib.datasets.images import choose, load, preprocessing, read
from cxlib.review import saturation


@click.command(cls=SharedStage)
@option("--network")
@images
@option("--epsilon", float)
@option("--n-iterations", POSITIVE)
@option("--max-images", COUNT)
@option("--seed", COUNT)
@option("--out")
def main(network, data, image_size, crop, epsilon, n_iterations, max_images, seed, out):
    """Write each image's values at every step of both paths, target = label, to --out."""
    samples = read(data, "test")
    chosen = choose(range(len(samples)), max_images, seed)
    with running([network, *samples.paths]) as run:
        model = networks.fast(networks.load(network).to(run.device))

        def compute(_batch, loaded):
            x, labels = loaded[0].to(run.device), loaded[1]
            traces = [saturation.follow(model, x, labels, path, epsilon, n_iterations) for path in saturation.PATHS]
            fields = zip(saturation.Trace._fields, *traces)
            return {name: torch.stack(values).cpu().numpy() for name, *values in fields}

        decode = partial(load, samples, transform=preprocessing(image_size, crop))
        parts = run.map(decode, compute, chosen, f"saturation {network}")
        if parts is None:
            return
        runtime.write_arrays(
            out,
            **{name: np.concatenate([part[name] for part in parts], 1) for name in saturation.Trace._fields},
            paths=np.array(saturation.PATHS),
            images=np.array(chosen),
            computed_by=np.array(run.computed_by),
        )


if __name__ == "__main__":
    main()
