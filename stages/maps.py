"""The maps of Figures 3 and 4: random test images that have a second, or a third, dominant class."""

import click
import numpy as np
import torch
from _command import COUNT, POSITIVE, Stage, images, option, settings, several

from cxlib import networks, runtime
from cxlib.datasets.images import choose, load, preprocessing, read
from cxlib.explainers import explain
from cxlib.review import selection


@click.command(cls=Stage)
@option("--network")
@option("--report")
@images
@option("--layer")
@several("--explainers")
@several("--contrasts")
@option("--n-classes", POSITIVE)
@option("--threshold", float)
@option("--max-images", COUNT)
@option("--seed", COUNT)
@option("--out")
def main(network, report, data, image_size, crop, layer, explainers, contrasts, n_classes, out, **options):
    """Write images, maps, names and probabilities of their --n-classes most probable classes to --out.

    Eligible are the test images on which the last of these classes is more probable than --threshold.
    """
    machine = settings()
    device = runtime.device(machine.device, machine.threads)
    model = networks.load(network).to(device)
    tapped = None if layer == "auto" else layer
    samples = read(data, "test")
    leading, p = selection.leading(runtime.read_arrays(report)["probabilities"], n_classes)
    eligible = np.flatnonzero(p[:, -1] > options["threshold"]).tolist()
    chosen = choose(eligible, options["max_images"], options["seed"])
    pictures, maps = np.empty((0, image_size, image_size, 3)), np.empty((0,))
    if chosen:
        x, _ = load(samples, chosen, preprocessing(image_size, crop), device)
        targets = torch.from_numpy(leading[chosen])
        stacked = [explain(model, x, targets, name, list(contrasts), tapped).cpu() for name in explainers]
        maps = torch.stack(stacked).movedim(2, 0).numpy()  # (images, explainers, contrasts, classes, H, W)
        pictures = x.permute(0, 2, 3, 1).cpu().numpy()
    runtime.write_arrays(
        out,
        images=pictures,
        maps=maps,
        explainers=np.array(explainers),
        contrasts=np.array(contrasts),
        names=np.array(samples.classes)[leading[chosen]],
        labels=np.array(samples.classes)[np.array(samples.labels)[chosen]],
        probabilities=p[chosen],
        n_eligible=np.array(len(eligible)),
        computed_by=np.array(runtime.computed_by(device)),
    )


if __name__ == "__main__":
    main()
