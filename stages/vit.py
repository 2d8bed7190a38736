"""Figure 5 in numbers: standard, without ReLU and contrastive maps of one Vision Transformer, at every block."""

import click
import numpy as np
import torch
from _command import POSITIVE, SIZE, SharedStage, option, several
from _experiment import network_options, running, selection_options

from cxlib import networks, runtime
from cxlib.datasets.images import read
from cxlib.explainers import vit
from cxlib.metrics import masking, parts
from cxlib.review import selection, variants


@click.command(cls=SharedStage)
@network_options
@selection_options
@option("--gradcam-block", int)
@option("--rollout-block", int)
@several("--baselines")
@several("--rules")
@option("--blur-kernel", POSITIVE)
@option("--blur-sigma", SIZE)
@option("--disc-radius", SIZE)
@option("--out")
def main(network, report, data, image_size, crop, baselines, rules, out, **options):
    """Write the measures of some images on each side of the threshold (0: all) to --out.

    Masks are those of the two chosen blocks; a folder without known parts has no localisation.
    """
    leading, p = selection.leading(runtime.read_arrays(report)["probabilities"])
    samples = read(data, "test")
    limits = options["max_images"], options["max_images_below"]
    chosen = selection.both_sides(p[:, 1], options["threshold"], limits, options["seed"])
    regions = np.zeros((len(samples), image_size, image_size), dtype=bool)
    if parts.are_known(data):
        known = parts.read(data, options["disc_radius"])
        regions = parts.regions(known, samples, leading.tolist(), image_size, crop)
    shown = (np.array(samples.labels) == leading[:, 1]).astype(int)
    blur = masking.Blur(options["blur_kernel"], options["blur_sigma"]).at(image_size)
    hidden = (variants.SIGNED, baselines, rules, blur)

    with running([network, report], samples.take(chosen), regions[chosen]) as run:
        model = networks.fast(networks.load(network).to(run.device))
        layers = {name: variants.layers(model, name) for name in vit.MAPS}
        begins = zip(vit.MAPS, (options["gradcam_block"], options["rollout_block"]))
        blocks = {name: layers[name].index(variants.layer(model, name, block)) for name, block in begins}

        def compute(batch, x, _labels):
            of_images = leading, regions, shown
            pair, region, second = (torch.from_numpy(values[batch]).to(run.device) for values in of_images)
            maps = {name: [variants.maps(model, x, pair, name, at) for at in layers[name]] for name in layers}
            compared = [variants.compare_each(of_blocks, region, second) for of_blocks in maps.values()]
            chosen_maps = torch.stack([maps[name][block] for name, block in blocks.items()], 1)
            masked, _ = masking.mask_maps(model, x, chosen_maps, pair, *hidden, 2 * len(x))  # see mask.py
            measures = {
                name: torch.from_numpy(np.stack(v, 1)) for name, *v in zip(variants.Compared._fields, *compared)
            }
            return measures | {"masked": masked}

        results = run.map(samples, compute, chosen)
        if results is None:
            return
        run.write(
            out,
            chosen,
            **results,
            unmasked=p[chosen] / p[chosen].sum(1, keepdims=True),
            area=regions[chosen].mean((1, 2)),
            p_2=p[chosen, 1],
            threshold=options["threshold"],
            explainers=list(vit.MAPS),
            chosen_blocks=list(blocks.values()),
            variants=variants.NAMES,
            pairs=[" and ".join(pair) for pair in variants.PAIRS],
            targets=masking.TARGETS,
            baselines=baselines,
            features=masking.FEATURES,
            rules=rules,
            accuracy=(leading[:, 0] == np.array(samples.labels)).mean(),
        )


if __name__ == "__main__":
    main()
