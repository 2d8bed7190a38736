"""Equal-area blur and mask of one network, on images above and below the threshold of p_2 (Table 1)."""

from functools import partial

import click
import numpy as np
import torch
from _command import COUNT, POSITIVE, SharedStage, images, option, running, several

from cxlib import networks, runtime
from cxlib.datasets.images import load, preprocessing, read
from cxlib.metrics import masking
from cxlib.review import selection


@click.command(cls=SharedStage)
@option("--network")
@option("--report")
@images
@option("--layer")
@several("--explainers")
@several("--contrasts")
@several("--baselines")
@several("--rules")
@option("--blur-kernel", POSITIVE)
@option("--blur-sigma", float)
@option("--threshold", float)
@option("--max-images", COUNT)
@option("--max-images-below", COUNT)
@option("--seed", COUNT)
@option("--out")
def main(network, report, data, image_size, crop, layer, explainers, contrasts, baselines, rules, out, **options):
    """Write the relative probabilities of some images on each side of the threshold (0: all) to --out."""
    p_2 = selection.leading(runtime.read_arrays(report)["probabilities"]).probabilities[:, 1]
    limits = options["max_images"], options["max_images_below"]
    chosen = selection.both_sides(p_2, options["threshold"], limits, options["seed"])
    samples = read(data, "test")
    blur = masking.Blur(options["blur_kernel"], options["blur_sigma"])
    with running([network, report, *samples.paths]) as run:
        model = networks.load(network).to(run.device, memory_format=torch.channels_last)
        tapped = networks.explanation_layer(model, None if layer == "auto" else layer)

        def compute(_batch, loaded):
            x, chunk = loaded[0].to(run.device), run.machine.batch_size
            masked = masking.blur_and_mask(model, x, tapped, explainers, contrasts, baselines, rules, blur, chunk)
            constant = np.array(masked.constant_gradient)
            return {"unmasked": masked.unmasked.numpy(), "masked": masked.masked.numpy(), "constant": constant}

        decode = partial(load, samples, transform=preprocessing(image_size, crop))
        parts = run.map(decode, compute, chosen, f"mask {network}")
        if parts is None:
            return
        if all(part["constant"] for part in parts):
            click.echo(
                f"warning: the gradient is constant over the layer {layer} of {model.name}, so that GradCAM and linear"
                " approximation are the same map, and XGradCAM too without negative activations: choose an earlier"
                " layer",
                err=True,
            )
        runtime.write_arrays(
            out,
            unmasked=np.concatenate([part["unmasked"] for part in parts]),
            masked=np.concatenate([part["masked"] for part in parts]),
            above=p_2[chosen] > options["threshold"],
            p_2=p_2[chosen],
            explainers=np.array(explainers),
            targets=np.array(masking.TARGETS),
            baselines=np.array(baselines),
            features=np.array(masking.FEATURES),
            contrasts=np.array(contrasts),
            rules=np.array(rules),
            images=np.array(chosen),
            computed_by=np.array(run.computed_by),
        )


if __name__ == "__main__":
    main()
