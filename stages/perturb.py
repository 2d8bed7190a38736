"""Gradient-sign perturbation of one network: every contrast, epsilon and number of iterations (Figures 1 and 2)."""

from collections import Counter

import click
import numpy as np
import torch
from _command import COUNT, POSITIVE, SIZE, SharedStage, option, several
from _experiment import network_options, running

from cxlib import networks, runs, runtime, taps
from cxlib.datasets.images import choose, load, preprocessing, read
from cxlib.review import perturbation


@click.command(cls=SharedStage)
@network_options
@several("--contrasts")
@several("--epsilons", SIZE)
@several("--n-iterations", POSITIVE)
@option("--precision", click.Choice(runtime.PRECISIONS))
@option("--dose-images", COUNT)
@option("--max-images", COUNT)
@option("--seed", COUNT)
@option("--out")
def main(
    network, data, image_size, crop, contrasts, epsilons, n_iterations, precision, dose_images, max_images, seed, out
):
    """Write each image's changes of accuracy, p_t and y_t, target = label, to --out.

    With --dose-images, so many training images say at which epsilon the contrasts are to be compared.
    """
    precision = getattr(torch, precision)
    samples = read(data, "test")
    chosen = choose(range(len(samples)), max_images, seed)
    with running([network], samples.take(chosen)) as run:
        model = networks.fast(networks.load(network).to(run.device))
        settings = contrasts, epsilons, n_iterations

        def compute(_batch, x, labels):
            pixels, zeros = Counter(), Counter()

            def count_zeros(contrast, epsilon, n, gradient):
                pixels[contrast, epsilon, n] += gradient.numel()
                zeros[contrast, epsilon, n] += int((gradient == 0).sum())

            # No more images at once than these: there may be room for no more.
            grid = perturbation.perturbation_grid(model, x, labels, *settings, count_zeros, precision, len(x))
            changes = torch.stack([torch.stack(change, -1).cpu() for change in grid.values()], 1)  # (B, settings, 3)
            counts = torch.tensor([[(zeros[setting], pixels[setting]) for setting in grid]])
            agreement = perturbation.sign_agreement(model, x, labels, contrasts, precision)  # (contrasts, B)
            return {"changes": changes, "counts": counts, "agreement": agreement.T}

        best = float("nan")
        if dose_images:
            train = read(data, "train")
            x, labels = load(train, choose(range(len(train)), dose_images, seed), preprocessing(image_size, crop))
            best = dose(run, model, x, labels, epsilons)
        results = run.map(samples, compute, chosen)
        if results is None:
            return
        shape = tuple(map(len, settings))
        zeros, pixels = results["counts"].sum(0).T
        run.write(
            out,
            chosen,
            changes=np.moveaxis(results["changes"], 0, -1).reshape(*shape, 3, -1),
            zero_share=(zeros / pixels).reshape(shape),
            sign_agreement=results["agreement"].mean(0),  # (contrasts,)
            contrasts=contrasts,
            epsilons=epsilons,
            dose=best,
            n_iterations=n_iterations,
            quantities=perturbation.Changes._fields,
        )


def dose(run, model, x, labels, epsilons):
    """`perturbation.dose` of training images x."""

    def compute(_batch, loaded):
        images, targets = loaded[0].to(run.device), loaded[1]
        with torch.no_grad():
            p_t = taps.logits(model, images).softmax(1).cpu().gather(1, targets[:, None])[:, 0]
        grid = perturbation.perturbation_grid(model, images, targets, ["original"], epsilons, [1], most=len(images))
        gains = [grid["original", epsilon, 1].p_t.cpu() for epsilon in epsilons]
        return {"p_t": p_t.numpy(), "gains": torch.stack(gains, 1).numpy()}

    found = runs.Fitting(compute, run.machine.batch_size)(range(len(labels)), (x, labels))
    return perturbation.dose(torch.from_numpy(found["p_t"]), torch.from_numpy(found["gains"]).T, epsilons)


if __name__ == "__main__":
    main()
