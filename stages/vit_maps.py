"""The maps of Figure 5: the most ambiguous test images under every variant of the Vision Transformers' explainers."""

import click
import torch
from _command import POSITIVE, Stage, option, settings, several
from _experiment import network_options, write_maps

from cxlib import networks, runs, runtime
from cxlib.datasets.images import load, preprocessing, read
from cxlib.explainers import resized, vit
from cxlib.review import selection, variants


@click.command(cls=Stage)
@network_options
@option("--report")
@option("--gradcam-block", int)
@option("--rollout-block", int)
@option("--max-images", POSITIVE)
@several("--between")
@option("--out")
def main(network, report, data, image_size, crop, max_images, between, out, **options):
    """Write images, maps, names and probabilities of the two most probable classes to --out.

    The images are those with the highest p_2, of all or of each pair of classes that --between names, one after the
    other; `none`: of all.
    """
    machine = settings()
    device = runtime.device(machine.device, machine.threads)
    model = networks.load(network).to(device)
    samples = read(data, "test")
    tested = runtime.read_arrays(report)
    leading = selection.leading(tested["probabilities"])
    pairs = () if between == ("none",) else between
    chosen = selection.most_ambiguous(leading, max_images, tested["classes"].tolist(), pairs)
    x, maps = torch.empty(0, 3, image_size, image_size), torch.empty(0)
    if chosen:
        x, _ = load(samples, chosen, preprocessing(image_size, crop), device)
        targets = torch.from_numpy(leading.classes[chosen])

        def compute(_batch, loaded):
            stacked = []
            for name, block in zip(vit.MAPS, (options["gradcam_block"], options["rollout_block"])):
                own = variants.maps(model, *loaded, name, variants.layer(model, name, block))
                stacked.append(resized(own, x.shape[-2:]))
            return {"maps": torch.stack(stacked, 1).transpose(2, 3).cpu().numpy()}

        # (images, explainers, variants, classes, H, W)
        maps = torch.from_numpy(runs.Fitting(compute, machine.batch_size)(chosen, (x, targets))["maps"])
    axes = {"explainers": list(vit.MAPS), "contrasts": list(variants.NAMES)}
    write_maps(out, samples, chosen, leading, tested["classes"], x, maps, **axes)


if __name__ == "__main__":
    main()
