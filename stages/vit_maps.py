"""The maps of Figure 5: the most ambiguous test images under every variant of the Vision Transformers' explainers."""

import click
import numpy as np
import torch
from _command import POSITIVE, Stage, images, option, settings

from cxlib import networks, runtime
from cxlib.datasets.images import load, preprocessing, read
from cxlib.explainers import resized, vit
from cxlib.review import selection, variants


@click.command(cls=Stage)
@option("--network")
@option("--report")
@images
@option("--gradcam-block", int)
@option("--rollout-block", int)
@option("--max-images", POSITIVE)
@option("--out")
def main(network, report, data, image_size, crop, max_images, out, **options):
    """Write images, maps, names and probabilities of the two most probable classes to --out.

    The images are those with the highest p_2.
    """
    machine = settings()
    device = runtime.device(machine.device, machine.threads)
    model = networks.load(network).to(device)
    samples = read(data, "test")
    leading, p = selection.leading(runtime.read_arrays(report)["probabilities"])
    chosen = np.argsort(-p[:, 1], kind="stable")[:max_images].tolist()
    x, _ = load(samples, chosen, preprocessing(image_size, crop), device)
    targets, stacked = torch.from_numpy(leading[chosen]), []
    for name, block in zip(vit.MAPS, (options["gradcam_block"], options["rollout_block"])):
        maps = variants.maps(model, x, targets, name, variants.layer(model, name, block))
        stacked.append(resized(maps.flatten(1, 2), x.shape[-2:]).unflatten(1, maps.shape[1:3]).cpu())
    runtime.write_arrays(
        out,
        images=x.permute(0, 2, 3, 1).cpu().numpy(),
        maps=torch.stack(stacked, 1).transpose(2, 3).numpy(),  # (images, explainers, variants, classes, H, W)
        explainers=np.array(list(vit.MAPS)),
        contrasts=np.array(list(variants.VARIANTS)),
        names=np.array(samples.classes)[leading[chosen]],
        labels=np.array(samples.classes)[np.array(samples.labels)[chosen]],
        probabilities=p[chosen],
        computed_by=np.array(runtime.computed_by(device)),
    )


if __name__ == "__main__":
    main()
