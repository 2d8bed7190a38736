"""What the report's explorer shows: maps of the most ambiguous images, and what hiding all but their best pixels does."""

import click
import numpy as np
import torch
from _command import POSITIVE, SHARE, SIZE, SharedStage, option, several
from _experiment import chosen_layer, network_options, running

from cxlib import networks, runtime
from cxlib.datasets.images import read
from cxlib.metrics.baselines import Blur
from cxlib.review import exploration, selection


@click.command(cls=SharedStage)
@network_options
@option("--layer")
@option("--report")
@several("--explainers")
@several("--contrasts")
@option("--n-classes", POSITIVE)
@several("--shares", SHARE)
@option("--blur-kernel", POSITIVE)
@option("--blur-sigma", SIZE)
@option("--max-images", POSITIVE)
@option("--out")
def main(network, report, data, image_size, crop, layer, explainers, contrasts, n_classes, shares, out, **options):
    """Write maps of the --n-classes most probable classes, and the logits behind their best pixels, to --out.

    The images are those with the highest p_2, at most --max-images.
    """
    tested = runtime.read_arrays(report)
    leading = selection.leading(tested["probabilities"], min(n_classes, tested["probabilities"].shape[1]))
    chosen = selection.most_ambiguous(leading, options["max_images"])
    samples = read(data, "test")
    blur = Blur(options["blur_kernel"], options["blur_sigma"]).at(image_size)
    with running([network, report], samples.take(chosen)) as run:
        model = networks.load(network).to(run.device, memory_format=torch.channels_last)
        tapped = networks.explanation_layer(model, chosen_layer(layer))

        def compute(batch, x, _labels):
            of_batch = torch.from_numpy(leading.classes[list(batch)]).to(x.device)
            asked = explainers, contrasts, tapped, shares, blur
            found = exploration.explore(model, x, of_batch, *asked, run.machine.batch_size)
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
