"""The leaderboard's judges on one network: every explainer and contrast, on the same ambiguous images."""

import click
import numpy as np
import torch
from _command import COUNT, POSITIVE, SHARE, SIZE, SharedStage, option, several
from _experiment import chosen_layer, network_options, running

from cxlib import networks
from cxlib.datasets.images import choose
from cxlib.review import differences, judges


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
    known = differences.read(data, report, options["disc_radius"], image_size, crop)
    ambiguous = (known.p_2 > options["threshold"]) & (known.area > 0)
    chosen = choose(np.flatnonzero(ambiguous).tolist(), options["max_images"], options["seed"])
    if not chosen:
        raise ValueError(f"no test image of {data} is ambiguous and shows a part in which its two classes differ")

    with running([network, report], known.samples.take(chosen), known.regions[chosen]) as run:
        model = networks.load(network).to(run.device, memory_format=torch.channels_last)
        asked = explainers, contrasts, chosen_layer(layer)

        def compute(batch, x, _labels):
            pair, region = (torch.from_numpy(values[batch]).to(run.device) for values in (known.leading, known.regions))
            return judges.judge(model, x, pair, region, *asked, steps, options["seed"])._asdict()

        results = run.map(known.samples, compute, chosen)
        if results is None:
            return
        run.write(
            out,
            chosen,
            **results,
            **known.described(chosen, explainers),
            passes=judges.costs(model, image_size, *asked).numpy(),
            contrasts=contrasts,
            followed=judges.FOLLOWED,
            ways=judges.WAYS,
            orders=judges.ORDERS,
            renewed=judges.RANDOMISED,
        )


if __name__ == "__main__":
    main()
