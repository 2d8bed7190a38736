"""Gradient-sign perturbation of one network: every contrast, epsilon and number of iterations (Figures 1 and 2)."""

from collections import Counter

import click
import numpy as np
import torch
from _command import COUNT, POSITIVE, ListOf, Stage, option

from cxlib import networks, perturbation, runtime
from cxlib.datasets import images


@click.command(cls=Stage)
@option("--network")
@option("--data")
@option("--image-size", POSITIVE)
@option("--crop", bool)
@option("--contrasts", ListOf(str))
@option("--epsilons", ListOf(float))
@option("--n-iterations", ListOf(int))
@option("--max-images", COUNT)
@option("--batch-size", POSITIVE)
@option("--device")
@option("--seed", COUNT)
@option("--out")
def main(network, data, image_size, crop, contrasts, epsilons, n_iterations, max_images, batch_size, device, seed, out):
    """Write each image's changes of accuracy, p_t and y_t, target = label, to --out."""
    device = runtime.device(device)
    model = networks.load(network).to(device, memory_format=torch.channels_last)
    samples = images.read(data, "test")
    chosen = images.choose(range(len(samples)), max_images, seed)
    pixels, zeros = Counter(), Counter()

    def count_zeros(contrast, epsilon, n, gradient):
        pixels[contrast, epsilon, n] += gradient.numel()
        zeros[contrast, epsilon, n] += int((gradient == 0).sum())

    changes = []
    prepare, what = images.preprocessing(image_size, crop), f"perturb {model.name}"
    for _, x, labels in images.batches(samples, chosen, prepare, batch_size, device, what):
        grid = perturbation.perturbation_grid(model, x, labels, contrasts, epsilons, n_iterations, count_zeros)
        changes.append(torch.stack([torch.stack(change).cpu() for change in grid.values()]))  # (settings, 3, B)

    shape = (len(contrasts), len(epsilons), len(n_iterations))
    runtime.write_arrays(
        out,
        changes=torch.cat(changes, -1).unflatten(0, shape).numpy(),  # (contrasts, epsilons, iterations, 3, images)
        zero_share=np.array([zeros[setting] / pixels[setting] for setting in grid]).reshape(shape),
        contrasts=np.array(contrasts),
        epsilons=np.array(epsilons),
        n_iterations=np.array(n_iterations),
        quantities=np.array(perturbation.Changes._fields),
        images=np.array(chosen),
    )


if __name__ == "__main__":
    main()
