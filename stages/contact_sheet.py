"""Draw a contact sheet of birds in CUB's layout: a few test images of every species, family by family."""

from functools import partial
from itertools import combinations
from pathlib import Path

import click
import numpy as np
from _command import POSITIVE, Stage, option
from _picture import write

from cxlib.datasets import cub
from cxlib.datasets.images import decode
from cxlib.review.report import figures


@click.command(cls=Stage)
@option("--data")
@option("--per-species", POSITIVE)
@option("--out")
@option("--shown")
def main(data, per_species, out, shown):
    """Draw the birds in the folder --data, whose class names begin with their family's, into --out and --shown."""
    samples = cub.read(data)
    families: dict[str, list[int]] = {}
    for index, name in enumerate(samples.classes):
        families.setdefault(name.split("_")[0], []).append(index)
    sheet = {}
    for family, members in families.items():
        parts = set().union(*(cub.discriminative_parts(data, a, b) for a, b in combinations(members, 2)))
        pictures = {}
        for index in members:
            own = [path for path, label in zip(samples.paths, samples.labels) if label == index][:per_species]
            name = samples.classes[index].replace("_", " ")
            pictures[name] = np.concatenate([np.asarray(decode(Path(path))) for path in own], axis=1)
        sheet[family] = sorted(parts), pictures
    write(partial(figures.contact_sheet, sheet), out, shown)


if __name__ == "__main__":
    main()
