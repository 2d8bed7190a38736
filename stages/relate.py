"""How the maps of one network relate: of two classes, of two contrasts, and to how sure the network is."""

import click
import torch
from _command import COUNT, SharedStage, option, several
from _experiment import explained, network_options, running

from cxlib import runtime
from cxlib.datasets.images import choose, read
from cxlib.review import relations


@click.command(cls=SharedStage)
@network_options
@option("--layer")
@several("--explainers")
@option("--max-images", COUNT)
@option("--seed", COUNT)
@option("--out")
def main(network, data, image_size, crop, layer, explainers, max_images, seed, out):
    """Write correlations of the maps of test images, whatever their p_2, to --out."""
    samples = read(data, "test")
    chosen = choose(range(len(samples)), max_images, seed)
    with running([network], samples.take(chosen), chosen) as run:
        model, tapped = explained(network, layer, run.device)

        def compute(batch, x, _labels):
            # A generator of each image's own: whatever batch it is in, it draws the same classes.
            generators = [torch.Generator().manual_seed(runtime.child(seed, int(index))) for index in batch]
            return relations.relate(model, x, explainers, tapped, generators)._asdict()

        results = run.map(samples, compute, chosen)
        if results is None:
            return
        pairs = [" and ".join(pair) for pair in relations.PAIRS]
        run.write(out, chosen, **results, explainers=explainers, contrasts=relations.CONTRASTS, pairs=pairs)


if __name__ == "__main__":
    main()
