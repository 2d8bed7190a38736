"""Figure 5 in numbers: standard, without ReLU and contrastive maps of one Vision Transformer, at every block."""

import click
import numpy as np
import torch
from _command import COUNT, POSITIVE, ListOf, SharedStage, option, workplace

from cxlib import masking, networks, runs, runtime, variants
from cxlib.datasets import images, parts
from cxlib.explainers import vit


@click.command(cls=SharedStage)
@option("--network")
@option("--report")
@option("--data")
@option("--image-size", POSITIVE)
@option("--crop", bool)
@option("--gradcam-block", int)
@option("--rollout-block", int)
@option("--baselines", ListOf(str))
@option("--rules", ListOf(str))
@option("--blur-kernel", POSITIVE)
@option("--blur-sigma", float)
@option("--disc-radius", float)
@option("--threshold", float)
@option("--max-images", COUNT)
@option("--max-images-below", COUNT)
@option("--batch-size", POSITIVE)
@option("--chunk", POSITIVE)
@option("--device")
@option("--threads", POSITIVE)
@option("--seed", COUNT)
@option("--out")
def main(network, report, data, image_size, crop, baselines, rules, **options):
    """Write the measures of some images on each side of the threshold (0: all) to --out.

    Masks are those of the two chosen blocks; a folder without known parts has no localisation.
    """
    p = runtime.read_arrays(report)["probabilities"]
    leading = np.argsort(-p, 1, kind="stable")[:, :2]
    p_2 = np.take_along_axis(p, leading, 1)[:, 1]
    samples, prepare = images.read(data, "test"), images.preprocessing(image_size, crop)
    sides = (np.flatnonzero(side).tolist() for side in (p_2 > options["threshold"], p_2 <= options["threshold"]))
    limits = options["max_images"], options["max_images_below"]
    chosen = [index for side, n in zip(sides, limits) for index in images.choose(side, n, options["seed"])]
    regions = np.zeros((len(samples), image_size, image_size), dtype=bool)
    if parts.are_known(data):
        known = parts.read(data, options["disc_radius"])
        regions = parts.regions(known, samples, leading.tolist(), image_size, crop)
    shown = (np.array(samples.labels) == leading[:, 1]).astype(int)
    blur = masking.Blur(options["blur_kernel"], options["blur_sigma"])

    with runs.joined() as ranks, workplace(ranks, [network, report, *samples.paths]) as folder:
        device = runtime.device(options["device"], options["threads"])
        model = networks.load(network).to(device, memory_format=torch.channels_last)
        numbers = dict(zip(vit.MAPS, (options["gradcam_block"], options["rollout_block"])))
        masking_layers = {name: variants.layer(model, name, number) for name, number in numbers.items()}
        all_layers = {name: variants.layers(model, name) for name in vit.MAPS}

        def compute(batch):
            x, _ = images.load(samples, batch, prepare, device)
            pair, region, second = (torch.from_numpy(v[batch]).to(device) for v in (leading, regions, shown))
            compared = [variants.sweep(model, x, pair, region, second, *item) for item in all_layers.items()]
            maps = torch.stack([variants.maps(model, x, pair, *item) for item in masking_layers.items()], 1)
            masked, _ = masking.mask_maps(
                model, x, maps, pair, variants.SIGNED, baselines, rules, blur, options["chunk"]
            )
            measures = {name: np.stack(v, 1) for name, *v in zip(variants.Compared._fields, *compared)}
            return measures | {"masked": masked.numpy()}

        results = runs.map_batches(compute, chosen, options["batch_size"], ranks, folder, f"compare {network}")
        if results is None:
            return
        p_pair = np.take_along_axis(p, leading, 1)[chosen]
        runtime.write_arrays(
            options["out"],
            **{name: np.concatenate([part[name] for part in results]) for name in results[0]},
            unmasked=p_pair / p_pair.sum(1, keepdims=True),
            area=regions[chosen].mean((1, 2)),
            p_2=p_2[chosen],
            above=p_2[chosen] > options["threshold"],
            correct=p[chosen].argmax(1) == np.array(samples.labels)[chosen],
            explainers=np.array(list(vit.MAPS)),
            chosen_blocks=np.array([all_layers[name].index(at) for name, at in masking_layers.items()]),
            variants=np.array(list(variants.VARIANTS)),
            pairs=np.array([" and ".join(pair) for pair in variants.PAIRS]),
            targets=np.array(masking.TARGETS),
            baselines=np.array(baselines),
            features=np.array(masking.FEATURES),
            rules=np.array(rules),
            images=np.array(chosen),
            accuracy=np.array((p.argmax(1) == np.array(samples.labels)).mean()),
        )


if __name__ == "__main__":
    main()
