"""Equal-area blur and mask of one network, on images above and below the threshold of p_2 (Table 1)."""

import click
import numpy as np
import torch
from _command import COUNT, POSITIVE, ListOf, Stage, for_network, option

from cxlib import masking, networks, runtime
from cxlib.datasets import images


@click.command(cls=Stage)
@option("--network")
@option("--report")
@option("--data")
@option("--image-size", POSITIVE)
@option("--crop", bool)
@option("--layer")
@option("--explainers", ListOf(str))
@option("--baselines", ListOf(str))
@option("--rules", ListOf(str))
@option("--blur-kernel", POSITIVE)
@option("--blur-sigma", float)
@option("--threshold", float)
@option("--max-images", COUNT)
@option("--max-images-below", COUNT)
@option("--batch-size", POSITIVE)
@option("--device")
@option("--seed", COUNT)
@option("--out")
def main(network, report, data, image_size, crop, layer, explainers, baselines, rules, **options):
    """Write the relative probabilities of some images on each side of the threshold (0: all) to --out."""
    device = runtime.device(options["device"])
    model = networks.load(network).to(device, memory_format=torch.channels_last)
    layer = for_network(layer, model.name)
    tapped = networks.explanation_layer(model, None if layer == "auto" else layer)
    blur = masking.Blur(options["blur_kernel"], options["blur_sigma"])
    p_2 = np.sort(runtime.read_arrays(report)["probabilities"], 1)[:, -2]
    above, below = (np.flatnonzero(side).tolist() for side in (p_2 > options["threshold"], p_2 <= options["threshold"]))
    chosen = images.choose(above, options["max_images"], options["seed"])
    chosen += images.choose(below, options["max_images_below"], options["seed"])

    samples, prepare = images.read(data, "test"), images.preprocessing(image_size, crop)
    results = []
    for _, x, _ in images.batches(samples, chosen, prepare, options["batch_size"], device, f"mask {model.name}"):
        results.append(masking.blur_and_mask(model, x, tapped, explainers, baselines, rules, blur))
    if all(result.constant_gradient for result in results):
        click.echo(
            f"warning: the gradient is constant over the layer {layer} of {model.name}, so that GradCAM and linear"
            " approximation are the same map, and XGradCAM too without negative activations: choose an earlier layer",
            err=True,
        )
    runtime.write_arrays(
        options["out"],
        unmasked=torch.cat([result.unmasked for result in results]).numpy(),
        masked=torch.cat([result.masked for result in results]).numpy(),
        above=p_2[chosen] > options["threshold"],
        explainers=np.array(explainers),
        targets=np.array(masking.TARGETS),
        baselines=np.array(baselines),
        features=np.array(masking.FEATURES),
        contrasts=np.array(masking.CONTRASTS),
        rules=np.array(rules),
        images=np.array(chosen),
    )


if __name__ == "__main__":
    main()
