"""Localisation of one network: how much of each map lies in the parts that tell an image's two classes apart."""

from functools import partial

import click
import numpy as np
import torch
from _command import COUNT, SharedStage, images, option, running, several

from cxlib import networks, runtime
from cxlib.datasets.images import load, preprocessing, read
from cxlib.metrics import localisation, parts
from cxlib.review import selection


@click.command(cls=SharedStage)
@option("--network")
@option("--report")
@images
@option("--layer")
@several("--explainers")
@several("--contrasts")
@option("--disc-radius", float)
@option("--gaussian-sigma", float)
@option("--threshold", float)
@option("--max-images", COUNT)
@option("--max-images-below", COUNT)
@option("--seed", COUNT)
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

    with running([network, report, *samples.paths]) as run:
        model = networks.load(network).to(run.device, memory_format=torch.channels_last)
        tapped = networks.explanation_layer(model, None if layer == "auto" else layer)

        def compute(batch, loaded):
            x, pair, region = (torch.as_tensor(v).to(run.device) for v in (loaded[0], leading[batch], regions[batch]))
            measured = localisation.localise(model, x, pair, region, explainers, contrasts, tapped)
            return {name: values.numpy() for name, values in measured._asdict().items()}

        decode = partial(load, samples, transform=preprocessing(image_size, crop))
        results = run.map(decode, compute, chosen, f"localise {network}")
        if results is None:
            return
        control = localisation.gaussian(image_size, options["gaussian_sigma"])
        centred = localisation.measure(control, torch.from_numpy(regions[chosen]))
        labels = np.array(samples.labels)[chosen]
        signs = localisation.evidence_signs(torch.from_numpy(leading[chosen]), torch.from_numpy(labels), explainers)
        runtime.write_arrays(
            out,
            **{name: np.concatenate([part[name] for part in results]) for name in results[0]},
            gaussian_share=centred.share[:, 0].numpy(),
            gaussian_hit=centred.hit[:, 0].numpy(),
            area=area[chosen],
            p_2=p_2[chosen],
            above=p_2[chosen] > options["threshold"],
            evidence_signs=signs.numpy(),
            leading=leading[chosen],
            labels=labels,
            discriminative=np.array(known.discriminative),
            explainers=np.array(explainers),
            contrasts=np.array(contrasts),
            targets=np.array(localisation.TARGETS),
            signs=np.array(localisation.SIGNS),
            images=np.array(chosen),
            computed_by=np.array(run.computed_by),
        )


if __name__ == "__main__":
    main()
