"""Localisation of one network: how much of each map lies in the parts that tell an image's two classes apart."""

import click
import numpy as np
import torch
from _command import SIZE, SharedStage, option, several
from _experiment import chosen_layer, network_options, running, selection_options

from cxlib import networks, runtime
from cxlib.datasets.images import read
from cxlib.metrics import localisation, parts
from cxlib.review import selection


@click.command(cls=SharedStage)
@network_options
@option("--layer")
@selection_options
@several("--explainers")
@several("--contrasts")
@option("--disc-radius", SIZE)
@option("--gaussian-sigma", SIZE)
@option("--out")
def main(network, report, data, image_size, crop, layer, explainers, contrasts, out, **options):
    """Write the shares and hits of some images on each side of the threshold of p_2 (0: all) to --out.

    Eligible are the test images that show a part in which their two most probable classes differ.
    """
    leading, p = selection.leading(runtime.read_arrays(report)["probabilities"])
    p_2, samples = p[:, 1], read(data, "test")
    if len(samples) != len(p):
        raise ValueError(f"{report} is of {len(p)} images, but {data} has {len(samples)} test images: train again")
    known = parts.read(data, options["disc_radius"])
    regions = parts.regions(known, samples, leading.tolist(), image_size, crop)
    area = regions.mean((1, 2))
    limits = options["max_images"], options["max_images_below"]
    chosen = selection.both_sides(p_2, options["threshold"], limits, options["seed"], area > 0)
    if not chosen:
        raise ValueError(f"no test image of {data} shows a part in which its two most probable classes differ")

    with running([network, report], samples.take(chosen), regions[chosen]) as run:
        model = networks.load(network).to(run.device, memory_format=torch.channels_last)
        tapped = networks.explanation_layer(model, chosen_layer(layer))

        def compute(batch, x, _labels):
            pair, region = (torch.from_numpy(values[batch]).to(run.device) for values in (leading, regions))
            return localisation.localise(model, x, pair, region, explainers, contrasts, tapped)._asdict()

        results = run.map(samples, compute, chosen)
        if results is None:
            return
        control = localisation.gaussian(image_size, options["gaussian_sigma"])
        centred = localisation.measure(control, torch.from_numpy(regions[chosen]))
        labels = np.array(samples.labels)[chosen]
        signs = localisation.evidence_signs(torch.from_numpy(leading[chosen]), torch.from_numpy(labels), explainers)
        run.write(
            out,
            chosen,
            **results,
            gaussian_share=centred.share[:, 0].numpy(),
            gaussian_hit=centred.hit[:, 0].numpy(),
            area=area[chosen],
            p_2=p_2[chosen],
            threshold=options["threshold"],
            above=p_2[chosen] > options["threshold"],
            evidence_signs=signs.numpy(),
            leading=leading[chosen],
            labels=labels,
            discriminative=known.discriminative,
            explainers=explainers,
            contrasts=contrasts,
            targets=localisation.TARGETS,
            signs=localisation.SIGNS,
        )


if __name__ == "__main__":
    main()
