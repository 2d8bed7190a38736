"""The maps of Figures 3 and 4: random test images that have a second, or a third, dominant class."""

import click
import numpy as np
import torch
from _command import COUNT, POSITIVE, ListOf, Stage, for_network, option

from cxlib import networks, runtime, selection
from cxlib.datasets import images
from cxlib.explainers import explain


@click.command(cls=Stage)
@option("--network")
@option("--report")
@option("--data")
@option("--image-size", POSITIVE)
@option("--crop", bool)
@option("--layer")
@option("--explainers", ListOf(str))
@option("--contrasts", ListOf(str))
@option("--n-classes", POSITIVE)
@option("--threshold", float)
@option("--max-images", COUNT)
@option("--device")
@option("--threads", POSITIVE)
@option("--seed", COUNT)
@option("--out")
def main(network, report, data, image_size, crop, layer, explainers, contrasts, n_classes, threshold, **options):
    """Write images, maps, names and probabilities of their --n-classes most probable classes to --out.

    Eligible are the test images on which the last of these classes is more probable than --threshold.
    """
    device = runtime.device(options["device"], options["threads"])
    model = networks.load(network).to(device)
    layer = for_network(layer, model.name)
    samples = images.read(data, "test")
    leading, p = selection.leading(runtime.read_arrays(report)["probabilities"], n_classes)
    eligible = np.flatnonzero(p[:, -1] > threshold).tolist()
    chosen = images.choose(eligible, options["max_images"], options["seed"])
    pictures, maps = np.empty((0, image_size, image_size, 3)), np.empty((0,))
    if chosen:
        x, _ = images.load(samples, chosen, images.preprocessing(image_size, crop))
        targets, tapped = torch.from_numpy(leading[chosen]), None if layer == "auto" else layer
        x = x.to(device)
        stacked = [explain(model, x, targets, name, contrasts, tapped).cpu() for name in explainers]
        maps = torch.stack(stacked).movedim(2, 0).numpy()  # (images, explainers, contrasts, classes, H, W)
        pictures = x.permute(0, 2, 3, 1).cpu().numpy()
    runtime.write_arrays(
        options["out"],
        images=pictures,
        maps=maps,
        explainers=np.array(explainers),
        contrasts=np.array(contrasts),
        names=np.array(samples.classes)[leading[chosen]],
        labels=np.array(samples.classes)[np.array(samples.labels)[chosen]],
        probabilities=p[chosen],
        n_eligible=np.array(len(eligible)),
    )


if __name__ == "__main__":
    main()
