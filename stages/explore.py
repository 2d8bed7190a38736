"""What the report's explorer shows: maps of the most ambiguous images, and the answers behind their best pixels."""

import click
import numpy as np
import torch
from _command import COUNT, POSITIVE, SHARE, SIZE, SharedStage, option, several
from _experiment import explained, network_options, running

from cxlib import runtime
from cxlib.datasets.images import read
from cxlib.metrics.baselines import Blur
from cxlib.review import exploration, selection


@click.command(cls=SharedStage)
@network_options
@option("--layer")
@option("--report")
@several("--explainers")
@several("--contrasts")
@option("--n-classes", click.IntRange(min=2))
@several("--shares", SHARE)
@option("--blur-kernel", POSITIVE)
@option("--blur-sigma", SIZE)
@option("--max-images", COUNT)
@option("--out")
def main(network, report, data, image_size, crop, layer, explainers, contrasts, n_classes, shares, out, **options):
    """Write maps of the --n-classes most probable classes, and the logits behind their best pixels, to --out.

    The images are those with the highest p_2, at most --max-images (0: all).
    """
    tested = runtime.read_arrays(report)
    leading = selection.leading(tested["probabilities"], min(n_classes, tested["probabilities"].shape[1]))
    samples = read(data, "test")
    chosen = selection.most_ambiguous(leading, options["max_images"] or len(samples))
    blur = Blur(options["blur_kernel"], options["blur_sigma"]).at(image_size)
    with running([network, report], samples.take(chosen)) as run:
        model, tapped = explained(network, layer, run.device)

        def compute(batch, x, _labels):
            of_batch = torch.from_numpy(leading.classes[list(batch)]).to(x.device)
            at_once = 2 * len(x)  # see mask.py
            found = exploration.explore(model, x, of_batch, explainers, contrasts, tapped, shares, blur, at_once)
            named = {f"maps_{name}": maps for name, maps in zip(explainers, found.maps)}
            return named | {"behind": found.behind, "ends": found.ends, "pictures": found.pictures}

        results = run.map(samples, compute, chosen)
        if results is None:
            return
        axes = {"explainers": explainers, "contrasts": contrasts, "shares": shares}
        names = tested["classes"][leading.classes[chosen]]
        labels = np.array(samples.classes)[np.array(samples.labels)[chosen]]
        probabilities = leading.probabilities[chosen]
        run.write(out, chosen, **results, **axes, names=names, labels=labels, probabilities=probabilities)


if __name__ == "__main__":
    main()
