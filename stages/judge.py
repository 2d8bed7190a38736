"""The leaderboard's judges on one network: every explainer and contrast, on the same ambiguous images."""

import click
import numpy as np
import torch
from _command import COUNT, POSITIVE, SHARE, SIZE, SharedStage, option, several
from _experiment import chosen_layer, network_options, running

from cxlib import networks, runtime
from cxlib.datasets.images import choose, read
from cxlib.metrics import localisation, parts
from cxlib.review import judges, selection


@click.command(cls=SharedStage)
@network_options
@option("--report")
@option("--layer")
@several("--explainers")
@several("--contrasts")
@option("--steps", POSITIVE)
@option("--disc-radius", SIZE)
@option("--threshold", SHARE)
@option("--max-images", COUNT)
@option("--seed", COUNT)
@option("--out")
def main(network, report, data, image_size, crop, layer, explainers, contrasts, steps, out, **options):
    """Write what each judge says of the maps of some images, and what a map costs, to --out.

    Eligible are the test images with p_2 above the threshold that show a part in which their two classes differ.
    """
    leading, p = selection.leading(runtime.read_arrays(report)["probabilities"])
    p_2, samples = p[:, 1], read(data, "test")
    if len(samples) != len(p):
        raise ValueError(f"{report} is of {len(p)} images, but {data} has {len(samples)} test images: train again")
    known = parts.read(data, options["disc_radius"])
    regions = parts.regions(known, samples, leading.tolist(), image_size, crop)
    area, above = regions.mean((1, 2)), p_2 > options["threshold"]
    chosen = choose(np.flatnonzero(above & (area > 0)).tolist(), options["max_images"], options["seed"])
    if not chosen:
        raise ValueError(f"no test image of {data} is ambiguous and shows a part in which its two classes differ")

    with running([network, report], samples.take(chosen), regions[chosen]) as run:
        model = networks.load(network).to(run.device, memory_format=torch.channels_last)
        asked = explainers, contrasts, chosen_layer(layer)

        def compute(batch, x, _labels):
            pair, region = (torch.from_numpy(values[batch]).to(run.device) for values in (leading, regions))
            return judges.judge(model, x, pair, region, *asked, steps, options["seed"])._asdict()

        results = run.map(samples, compute, chosen)
        if results is None:
            return
        labels = np.array(samples.labels)[chosen]
        signs = localisation.evidence_signs(torch.from_numpy(leading[chosen]), torch.from_numpy(labels), explainers)
        run.write(
            out,
            chosen,
            **results,
            passes=judges.costs(model, image_size, *asked).numpy(),
            area=area[chosen],
            p_2=p_2[chosen],
            evidence_signs=signs.numpy(),
            leading=leading[chosen],
            labels=labels,
            discriminative=known.discriminative,
            explainers=explainers,
            contrasts=contrasts,
            followed=judges.FOLLOWED,
            ways=judges.WAYS,
            orders=judges.ORDERS,
            renewed=judges.RANDOMISED,
            targets=localisation.TARGETS,
            signs=localisation.SIGNS,
        )


if __name__ == "__main__":
    main()
