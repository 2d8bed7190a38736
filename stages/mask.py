"""Equal-area blur and mask of one network, on images above and below the threshold of p_2 (Table 1)."""

import click
import numpy as np
import torch
from _command import COUNT, POSITIVE, ListOf, SharedStage, for_network, option, workplace

from cxlib import masking, networks, runs, runtime, selection
from cxlib.datasets import images


@click.command(cls=SharedStage)
@option("--network")
@option("--report")
@option("--data")
@option("--image-size", POSITIVE)
@option("--crop", bool)
@option("--layer")
@option("--explainers", ListOf(str))
@option("--contrasts", ListOf(str))
@option("--baselines", ListOf(str))
@option("--rules", ListOf(str))
@option("--blur-kernel", POSITIVE)
@option("--blur-sigma", float)
@option("--threshold", float)
@option("--max-images", COUNT)
@option("--max-images-below", COUNT)
@option("--batch-size", POSITIVE)
@option("--chunk", POSITIVE)
@option("--device")
@option("--threads", POSITIVE)
@option("--seed", COUNT)
@option("--out")
def main(network, report, data, image_size, crop, layer, explainers, contrasts, baselines, rules, **options):
    """Write the relative probabilities of some images on each side of the threshold (0: all) to --out.

    --batch-size images are explained at once, --chunk masked ones evaluated.
    """
    p_2 = selection.leading(runtime.read_arrays(report)["probabilities"]).probabilities[:, 1]
    limits = options["max_images"], options["max_images_below"]
    chosen = selection.both_sides(p_2, options["threshold"], limits, options["seed"])
    samples, prepare = images.read(data, "test"), images.preprocessing(image_size, crop)
    blur = masking.Blur(options["blur_kernel"], options["blur_sigma"])
    with runs.joined() as ranks, workplace(ranks, [network, report, *samples.paths]) as folder:
        device = runtime.device(options["device"], options["threads"])
        model = networks.load(network).to(device, memory_format=torch.channels_last)
        layer = for_network(layer, model.name)
        tapped = networks.explanation_layer(model, None if layer == "auto" else layer)

        def compute(batch):
            x, _ = images.load(samples, batch, prepare, device)
            masked = masking.blur_and_mask(
                model, x, tapped, explainers, contrasts, baselines, rules, blur, options["chunk"]
            )
            constant = np.array(masked.constant_gradient)
            return {"unmasked": masked.unmasked.numpy(), "masked": masked.masked.numpy(), "constant": constant}

        parts = runs.map_batches(compute, chosen, options["batch_size"], ranks, folder, f"mask {network}")
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
            options["out"],
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
        )


if __name__ == "__main__":
    main()
