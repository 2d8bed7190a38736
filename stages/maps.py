"""The maps of Figures 3 and 4: random test images that have a second, or a third, dominant class."""

import click
import numpy as np
import torch
from _command import COUNT, POSITIVE, SHARE, Stage, option, settings, several
from _experiment import explained, network_options, write_maps

from cxlib import runs, runtime
from cxlib.datasets.images import choose, load, preprocessing, read
from cxlib.explainers import explain
from cxlib.review import selection


@click.command(cls=Stage)
@network_options
@option("--layer")
@option("--report")
@several("--explainers")
@several("--contrasts")
@option("--n-classes", POSITIVE)
@option("--threshold", SHARE)
@option("--max-images", COUNT)
@option("--seed", COUNT)
@option("--out")
def main(network, report, data, image_size, crop, layer, explainers, contrasts, n_classes, out, **options):
    """Write images, maps, names and probabilities of their --n-classes most probable classes to --out.

    Eligible are the test images on which the last of these classes is more probable than --threshold.
    """
    machine = settings()
    device = runtime.device(machine.device, machine.threads)
    model, tapped = explained(network, layer, device)
    samples = read(data, "test")
    tested = runtime.read_arrays(report)
    leading = selection.leading(tested["probabilities"], n_classes)
    eligible = np.flatnonzero(leading.probabilities[:, -1] > options["threshold"]).tolist()
    chosen = choose(eligible, options["max_images"], options["seed"])
    x, maps = torch.empty(0, 3, image_size, image_size), torch.empty(0)
    if chosen:
        x, _ = load(samples, chosen, preprocessing(image_size, crop), device)
        targets = torch.from_numpy(leading.classes[chosen])

        def compute(_batch, loaded):
            stacked = [explain(model, *loaded, name, list(contrasts), tapped) for name in explainers]
            return {"maps": torch.stack(stacked).movedim(2, 0).cpu().numpy()}

        # (images, explainers, contrasts, classes, H, W)
        maps = torch.from_numpy(runs.Fitting(compute, machine.batch_size)(chosen, (x, targets))["maps"])
    axes = {"explainers": explainers, "contrasts": contrasts, "n_eligible": len(eligible)}
    write_maps(out, samples, chosen, leading, tested["classes"], x, maps, **axes)


if __name__ == "__main__":
    main()
