"""Follow the softmax gradient and its closed form on one network, step by step (section 4.3)."""

import click
import torch
from _command import COUNT, POSITIVE, SIZE, SharedStage, option
from _experiment import network_options, running

from cxlib import networks
from cxlib.datasets.images import choose, read
from cxlib.review import saturation


@click.command(cls=SharedStage)
@network_options
@option("--epsilon", SIZE)
@option("--n-iterations", POSITIVE)
@option("--max-images", COUNT)
@option("--seed", COUNT)
@option("--out")
def main(network, data, image_size, crop, epsilon, n_iterations, max_images, seed, out):
    """Write each image's values at every step of both paths, target = label, to --out."""
    samples = read(data, "test")
    chosen = choose(range(len(samples)), max_images, seed)
    with running([network], samples.take(chosen)) as run:
        model = networks.fast(networks.load(network).to(run.device))

        def compute(_batch, x, labels):
            traces = [saturation.follow(model, x, labels, path, epsilon, n_iterations) for path in saturation.PATHS]
            return {name: torch.stack(values, 1) for name, *values in zip(saturation.Trace._fields, *traces)}

        results = run.map(samples, compute, chosen)
        if results is None:
            return
        by_path = {name: values.swapaxes(0, 1) for name, values in results.items()}
        run.write(out, chosen, **by_path, paths=saturation.PATHS)


if __name__ == "__main__":
    main()
