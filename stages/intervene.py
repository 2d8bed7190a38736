"""Truth by intervention on one network: every part of painted birds is repainted, and maps are held to the effects."""

import click
import numpy as np
import torch
from _command import COUNT, SHARE, SharedStage, option, several
from _experiment import explained, network_options, running

from cxlib import runtime
from cxlib.datasets.images import choose, decode, preprocessing, read
from cxlib.explainers import gradient
from cxlib.metrics import interventions
from cxlib.synthbirds import repainting
from cxlib.synthbirds.repainting import PARTS, WAYS


@click.command(cls=SharedStage)
@network_options
@option("--report")
@option("--layer")
@option("--ambiguity", SHARE)
@option("--painted-seed", COUNT)
@several("--explainers")
@several("--contrasts")
@several("--doses", SHARE)
@option("--max-images", COUNT)
@option("--seed", COUNT)
@option("--out")
def main(network, report, data, image_size, crop, layer, explainers, contrasts, doses, out, **options):
    """Write what repainting does to the network, and the masses of its maps in what was repainted, to --out.

    The two classes of a bird are its own species and the most probable one of its siblings.
    """
    probabilities = runtime.read_arrays(report)["probabilities"]
    samples = read(data, "test")
    if probabilities.shape != (known := (len(samples), len(samples.classes))):
        raise ValueError(f"{report} has {probabilities.shape} images and classes, but {data} {known}: train again")
    side, settings = decode(samples.paths[0]).width, (options["ambiguity"], options["painted_seed"])
    birds = repainting.test_birds(samples.labels, len(samples.classes), side, *settings)
    leading = repainting.pairs(probabilities, samples.labels)
    others = leading.sum(1) - samples.labels
    chosen = choose(range(len(samples)), options["max_images"], options["seed"])
    prepare = preprocessing(image_size, crop)

    with running([network, report], samples.take(chosen), leading[chosen]) as run:
        model, tapped = explained(network, layer, run.device)

        def compute(batch, x, _labels):
            places, pictures = [], []
            for b, i in enumerate(batch):
                sibling = birds[i].members[others[i] % len(birds[i].members)]
                repainted = repainting.every_part(birds[i], sibling, decode(samples.paths[i]))
                places += [(b, PARTS.index(part), WAYS.index(way)) for way, part in repainted]
                pictures += [prepare(picture) for picture in repainted.values()]
            (b, part, way), after = torch.tensor(places).T, torch.stack(pictures).to(run.device)
            before, pair = x[b], torch.from_numpy(leading[batch]).to(run.device)
            changed = (after != before).any(1)
            regions = torch.zeros(len(x), len(PARTS), *x.shape[2:], dtype=torch.bool, device=run.device)
            ways = torch.full((len(x), len(PARTS), len(WAYS), len(interventions.OUTCOMES)), torch.nan).double()
            dosed = ways[:, :, [0] * len(doses)].clone()

            def outcomes(images, which):
                return interventions.outcomes(model, images, pair[which], 2 * len(x)).cpu()  # see mask.py

            ways[b, part, way] = outcomes(after, b)
            for name in (repainting.RANDOM, repainting.AS_SIBLING):  # which differ where a colour happens to be alike
                mine = way == WAYS.index(name)
                regions[b[mine], part[mine]] = changed[mine]
            for d, dose in enumerate(doses):
                dosed[b[mine], part[mine], d] = outcomes(before[mine].lerp(after[mine], dose), b[mine])
            original = outcomes(x, torch.arange(len(x)))
            effects = interventions.effects(original[:, None], ways[:, :, WAYS.index(repainting.AS_SIBLING)])
            measured = interventions.measure(
                model, x, pair, regions, effects.nan_to_num().to(x.device), explainers, contrasts, tapped
            )
            found = {"original": original, "ways": ways, "dosed": dosed, "area": regions.double().mean((2, 3))}
            return found | measured._asdict()

        results = run.map(samples, compute, chosen)
        if results is None:
            return
        run.write(
            out,
            chosen,
            **results,
            leading=leading[chosen],
            labels=np.array(samples.labels)[chosen],
            probabilities=np.take_along_axis(probabilities, leading, 1)[chosen],
            families=[birds[i].state[1] for i in chosen],
            marks=[[part in birds[i].species.family.marks for part in PARTS] for i in chosen],
            parts=PARTS,
            repainted=WAYS,
            doses=doses,
            outcomes=interventions.OUTCOMES,
            explainers=explainers,
            sensitivity=[name in gradient.MAPS for name in explainers],
            contrasts=contrasts,
            targets=("t1", "t2"),
        )


if __name__ == "__main__":
    main()
