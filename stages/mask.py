"""Blur and mask of one network, on images above and below the threshold of p_2 (Table 1)."""

import click
import torch
from _command import POSITIVE, SIZE, SharedStage, option, several
from _experiment import explained, network_options, running, selection_options

from cxlib import runtime
from cxlib.datasets.images import read
from cxlib.explainers import cam, cautions
from cxlib.metrics import masking
from cxlib.review import selection


@click.command(cls=SharedStage)
@network_options
@option("--layer")
@selection_options
@several("--explainers")
@several("--contrasts")
@several("--baselines")
@several("--rules")
@option("--blur-kernel", POSITIVE)
@option("--blur-sigma", SIZE)
@option("--out")
def main(network, report, data, image_size, crop, layer, explainers, contrasts, baselines, rules, out, **options):
    """Write the relative probabilities of some images on each side of the threshold (0: all) to --out."""
    p_2 = selection.leading(runtime.read_arrays(report)["probabilities"]).probabilities[:, 1]
    limits = options["max_images"], options["max_images_below"]
    chosen = selection.both_sides(p_2, options["threshold"], limits, options["seed"])
    samples = read(data, "test")
    blur = masking.Blur(options["blur_kernel"], options["blur_sigma"]).at(image_size)
    with running([network, report], samples.take(chosen)) as run:
        model, tapped = explained(network, layer, run.device)

        def compute(_batch, x, _labels):
            hidden = explainers, contrasts, baselines, rules, blur
            # Masked images, of which no graph is kept, by twice as many as these; there may be room for no more.
            masked = masking.blur_and_mask(model, x, tapped, *hidden, 2 * len(x))
            constant = torch.tensor([masked.constant_gradient])
            return {"unmasked": masked.unmasked, "masked": masked.masked, "constant": constant}

        results = run.map(samples, compute, chosen)
        if results is None:
            return
        if results["constant"].all() and not set(explainers).isdisjoint(cam.MAPS):
            click.echo(f"warning: {cautions.of_layer(f'{layer} of {model.name}')}", err=True)
        run.write(
            out,
            chosen,
            unmasked=results["unmasked"],
            masked=results["masked"],
            constant_gradient=results["constant"].all(),
            above=p_2[chosen] > options["threshold"],
            p_2=p_2[chosen],
            threshold=options["threshold"],
            explainers=explainers,
            targets=masking.TARGETS,
            baselines=baselines,
            features=masking.FEATURES,
            contrasts=contrasts,
            rules=rules,
        )


if __name__ == "__main__":
    main()
