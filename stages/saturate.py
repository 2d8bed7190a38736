"""Follow the softmax gradient and its closed form on one network, step by step (section 4.3)."""

import click
import numpy as np
import torch
from _command import COUNT, POSITIVE, SharedStage, option, workplace

from cxlib import networks, runs, runtime, saturation
from cxlib.datasets import images
from cxlib.folding import folded


@click.command(cls=SharedStage)
@option("--network")
@option("--data")
@option("--image-size", POSITIVE)
@option("--crop", bool)
@option("--epsilon", float)
@option("--n-iterations", POSITIVE)
@option("--max-images", COUNT)
@option("--batch-size", POSITIVE)
@option("--device")
@option("--threads", POSITIVE)
@option("--seed", COUNT)
@option("--out")
def main(network, data, image_size, crop, epsilon, n_iterations, **options):
    """Write each image's values at every step of both paths, target = label, to --out."""
    samples, prepare = images.read(data, "test"), images.preprocessing(image_size, crop)
    chosen = images.choose(range(len(samples)), options["max_images"], options["seed"])
    with runs.joined() as ranks, workplace(ranks, [network, *samples.paths]) as folder:
        device = runtime.device(options["device"], options["threads"])
        model = folded(networks.load(network)).to(device, memory_format=torch.channels_last)

        def compute(batch):
            x, labels = images.load(samples, batch, prepare, device)
            traces = [saturation.follow(model, x, labels, path, epsilon, n_iterations) for path in saturation.PATHS]
            return {
                name: torch.stack([getattr(trace, name) for trace in traces]).cpu().numpy()
                for name in saturation.Trace._fields
            }

        parts = runs.map_batches(compute, chosen, options["batch_size"], ranks, folder, f"saturation {network}")
        if parts is None:
            return
        runtime.write_arrays(
            options["out"],
            **{name: np.concatenate([part[name] for part in parts], 1) for name in saturation.Trace._fields},
            paths=np.array(saturation.PATHS),
            images=np.array(chosen),
        )


if __name__ == "__main__":
    main()
