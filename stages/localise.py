"""Localisation of one network: how much of each map lies in the parts that tell an image's two classes apart."""

import click
import numpy as np
import torch
from _command import COUNT, POSITIVE, ListOf, SharedStage, for_network, option, workplace

from cxlib import localisation, networks, runs, runtime, selection
from cxlib.datasets import images, parts


@click.command(cls=SharedStage)
@option("--network")
@option("--report")
@option("--data")
@option("--image-size", POSITIVE)
@option("--crop", bool)
@option("--layer")
@option("--explainers", ListOf(str))
@option("--contrasts", ListOf(str))
@option("--disc-radius", float)
@option("--gaussian-sigma", float)
@option("--threshold", float)
@option("--max-images", COUNT)
@option("--max-images-below", COUNT)
@option("--batch-size", POSITIVE)
@option("--device")
@option("--threads", POSITIVE)
@option("--seed", COUNT)
@option("--out")
def main(network, report, data, image_size, crop, layer, explainers, contrasts, **options):
    """Write the shares and hits of some images on each side of the threshold of p_2 (0: all) to --out.

    Eligible are the test images that show a part in which their two most probable classes differ.
    """
    leading, p = selection.leading(runtime.read_arrays(report)["probabilities"])
    p_2 = p[:, 1]
    samples = images.read(data, "test")
    if len(samples) != len(p):
        raise ValueError(f"{report} is of {len(p)} images, but {data} has {len(samples)} test images: fine-tune again")
    known = parts.read(data, options["disc_radius"])
    regions = parts.regions(known, samples, leading.tolist(), image_size, crop)
    area = regions.mean((1, 2))
    limits = options["max_images"], options["max_images_below"]
    chosen = selection.both_sides(p_2, options["threshold"], limits, options["seed"], area > 0)
    if not chosen:
        raise ValueError(f"no test image of {data} shows a part in which its two most probable classes differ")

    prepare = images.preprocessing(image_size, crop)
    with runs.joined() as ranks, workplace(ranks, [network, report, *samples.paths]) as folder:
        device = runtime.device(options["device"], options["threads"])
        model = networks.load(network).to(device, memory_format=torch.channels_last)
        layer = for_network(layer, model.name)
        tapped = networks.explanation_layer(model, None if layer == "auto" else layer)

        def compute(batch):
            x, _ = images.load(samples, batch, prepare, device)
            pair, region = (torch.from_numpy(values[batch]).to(device) for values in (leading, regions))
            measured = localisation.localise(model, x, pair, region, explainers, contrasts, tapped)
            return {name: values.numpy() for name, values in measured._asdict().items()}

        results = runs.map_batches(compute, chosen, options["batch_size"], ranks, folder, f"localise {network}")
        if results is None:
            return
        control = localisation.gaussian(image_size, options["gaussian_sigma"])
        centred = localisation.measure(control, torch.from_numpy(regions[chosen]))
        labels = np.array(samples.labels)[chosen]
        signs = localisation.evidence_signs(torch.from_numpy(leading[chosen]), torch.from_numpy(labels), explainers)
        runtime.write_arrays(
            options["out"],
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
        )


if __name__ == "__main__":
    main()
