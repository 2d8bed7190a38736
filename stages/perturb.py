"""Gradient-sign perturbation of one network: every contrast, epsilon and number of iterations (Figures 1 and 2)."""

from collections import Counter
from functools import partial

import click
import numpy as np
import torch
from _command import COUNT, POSITIVE, SharedStage, images, option, running, several

from cxlib import networks, runtime
from cxlib.datasets.images import choose, load, preprocessing, read
from cxlib.review import perturbation


@click.command(cls=SharedStage)
@option("--network")
@images
@several("--contrasts")
@several("--epsilons", float)
@several("--n-iterations", POSITIVE)
@option("--precision", click.Choice(runtime.PRECISIONS))
@option("--max-images", COUNT)
@option("--seed", COUNT)
@option("--out")
def main(network, data, image_size, crop, contrasts, epsilons, n_iterations, precision, max_images, seed, out):
    """Write each image's changes of accuracy, p_t and y_t, target = label, to --out."""
    precision = getattr(torch, precision)
    samples = read(data, "test")
    chosen = choose(range(len(samples)), max_images, seed)
    with running([network, *samples.paths]) as run:
        model = networks.fast(networks.load(network).to(run.device))
        settings = contrasts, epsilons, n_iterations

        def compute(_batch, loaded):
            pixels, zeros = Counter(), Counter()

            def count_zeros(contrast, epsilon, n, gradient):
                pixels[contrast, epsilon, n] += gradient.numel()
                zeros[contrast, epsilon, n] += int((gradient == 0).sum())

            x, labels = loaded[0].to(run.device), loaded[1]
            grid = perturbation.perturbation_grid(model, x, labels, *settings, count_zeros, precision)
            changes = torch.stack([torch.stack(change).cpu() for change in grid.values()])  # (settings, 3, B)
            counts = [(zeros[setting], pixels[setting]) for setting in grid]
            agreement = perturbation.sign_agreement(model, x, labels, contrasts, precision)
            return {"changes": changes.numpy(), "counts": np.array(counts), "agreement": agreement.cpu().numpy()}

        decode = partial(load, samples, transform=preprocessing(image_size, crop))
        parts = run.map(decode, compute, chosen, f"perturb {network}")
        if parts is None:
            return
        shape = tuple(map(len, settings))
        changes = np.concatenate([part["changes"] for part in parts], -1)
        zeros, pixels = np.sum([part["counts"] for part in parts], 0).T
        runtime.write_arrays(
            out,
            changes=changes.reshape(*shape, *changes.shape[1:]),  # (contrasts, epsilons, iterations, 3, images)
            zero_share=(zeros / pixels).reshape(shape),
            sign_agreement=np.concatenate([part["agreement"] for part in parts], -1).mean(-1),  # (contrasts,)
            contrasts=np.array(contrasts),
            epsilons=np.array(epsilons),
            n_iterations=np.array(n_iterations),
            quantities=np.array(perturbation.Changes._fields),
            images=np.array(chosen),
            computed_by=np.array(run.computed_by),
        )


if __name__ == "__main__":
    main()
