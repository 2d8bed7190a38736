"""Draw a contact sheet of birds in CUB's layout: a few test images of every species, family by family."""

from itertools import combinations
from pathlib import Path

import click
import numpy as np
from _command import POSITIVE, Stage, option

from cxlib import runtime
from cxlib.datasets import cub
from cxlib.datasets.images import decode
from cxlib.review.report import figures


@click.command(cls=Stage)
@option("--data")
@option("--per-species", POSITIVE)
@option("--out")
def main(data, per_species, out):
    """Draw the birds in the folder --data, whose class names begin with their family's, into the PNG --out."""
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
    with runtime.atomic(out) as partial:
        figures.contact_sheet(sheet, partial)


if __name__ == "__main__":
    main()
