"""Localisation of one network: how much of each map lies in the parts that tell an image's two classes apart."""

import click
import torch
from _command import SIZE, SharedStage, option, several
from _experiment import explained, network_options, running, selection_options

from cxlib.metrics import localisation
from cxlib.review import differences, selection


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
    known = differences.read(data, report, options["disc_radius"], image_size, crop)
    limits = options["max_images"], options["max_images_below"]
    chosen = selection.both_sides(known.p_2, options["threshold"], limits, options["seed"], known.area > 0)
    if not chosen:
        raise ValueError(f"no test image of {data} shows a part in which its two most probable classes differ")

    with running([network, report], known.samples.take(chosen), known.regions[chosen]) as run:
        model, tapped = explained(network, layer, run.device)

        def compute(batch, x, _labels):
            pair, region = (torch.from_numpy(values[batch]).to(run.device) for values in (known.leading, known.regions))
            return localisation.localise(model, x, pair, region, explainers, contrasts, tapped)._asdict()

        results = run.map(known.samples, compute, chosen)
        if results is None:
            return
        control = localisation.gaussian(image_size, options["gaussian_sigma"])
        centred = localisation.measure(control, torch.from_numpy(known.regions[chosen]))
        run.write(
            out,
            chosen,
            **results,
            **known.described(chosen, explainers),
            gaussian_share=centred.share[:, 0].numpy(),
            gaussian_hit=centred.hit[:, 0].numpy(),
            threshold=options["threshold"],
            above=known.p_2[chosen] > options["threshold"],
            contrasts=contrasts,
        )


if __name__ == "__main__":
    main()
