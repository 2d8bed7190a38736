"""Gradient-sign perturbation of one network: every contrast, epsilon and number of iterations (Figures 1 and 2)."""

from collections import Counter

import click
import numpy as np
import torch
from _command import COUNT, POSITIVE, ListOf, SharedStage, option, workplace

from cxlib import networks, perturbation, runs, runtime
from cxlib.datasets import images
from cxlib.folding import folded


@click.command(cls=SharedStage)
@option("--network")
@option("--data")
@option("--image-size", POSITIVE)
@option("--crop", bool)
@option("--contrasts", ListOf(str))
@option("--epsilons", ListOf(float))
@option("--n-iterations", ListOf(int))
@option("--precision", click.Choice(runtime.PRECISIONS))
@option("--max-images", COUNT)
@option("--batch-size", POSITIVE)
@option("--device")
@option("--threads", POSITIVE)
@option("--seed", COUNT)
@option("--out")
def main(network, data, image_size, crop, contrasts, epsilons, n_iterations, precision, **options):
    """Write each image's changes of accuracy, p_t and y_t, target = label, to --out."""
    precision = getattr(torch, precision)
    samples, prepare = images.read(data, "test"), images.preprocessing(image_size, crop)
    chosen = images.choose(range(len(samples)), options["max_images"], options["seed"])
    with runs.joined() as ranks, workplace(ranks, [network, *samples.paths]) as folder:
        device = runtime.device(options["device"], options["threads"])
        model = folded(networks.load(network)).to(device, memory_format=torch.channels_last)

        def compute(batch):
            pixels, zeros = Counter(), Counter()

            def count_zeros(contrast, epsilon, n, gradient):
                pixels[contrast, epsilon, n] += gradient.numel()
                zeros[contrast, epsilon, n] += int((gradient == 0).sum())

            x, labels = images.load(samples, batch, prepare, device)
            grid = perturbation.perturbation_grid(
                model, x, labels, contrasts, epsilons, n_iterations, count_zeros, precision
            )
            changes = torch.stack([torch.stack(change).cpu() for change in grid.values()])  # (settings, 3, B)
            counts = [(zeros[setting], pixels[setting]) for setting in grid]
            agreement = perturbation.sign_agreement(model, x, labels, contrasts, precision)
            return {"changes": changes.numpy(), "counts": np.array(counts), "agreement": agreement.cpu().numpy()}

        what = f"perturb {network}"
        parts = runs.map_batches(compute, chosen, options["batch_size"], ranks, folder, what)
        if parts is None:
            return
        shape = (len(contrasts), len(epsilons), len(n_iterations))
        changes = np.concatenate([part["changes"] for part in parts], -1)
        zeros, pixels = np.sum([part["counts"] for part in parts], 0).T
        runtime.write_arrays(
            options["out"],
            changes=changes.reshape(*shape, *changes.shape[1:]),  # (contrasts, epsilons, iterations, 3, images)
            zero_share=(zeros / pixels).reshape(shape),
            sign_agreement=np.concatenate([part["agreement"] for part in parts], -1).mean(-1),  # (contrasts,)
            contrasts=np.array(contrasts),
            epsilons=np.array(epsilons),
            n_iterations=np.array(n_iterations),
            quantities=np.array(perturbation.Changes._fields),
            images=np.array(chosen),
        )


if __name__ == "__main__":
    main()
