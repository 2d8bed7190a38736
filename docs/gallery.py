"""Draw the pictures of docs/gallery.md, all but the blackbird: `make gallery`, after `make repro`."""

from pathlib import Path
from typing import NamedTuple

from PIL import Image

from cxlib import photographs, runtime
from cxlib.classnames import SECOND, chosen_classes, class_names
from cxlib.datasets.images import as_shown

ROOT = Path(__file__).parents[1]
LITE0, BIRDS = "tf_efficientnet_lite0", str(ROOT / "data/networks/lite0_birds.pt")
SPECIES = ROOT / "data/sets/synthbirds/classes.txt"
#: Pixels of a picture's width at most: two on a page, or one on a telephone.
WIDTH = 1000


class Picture(NamedTuple):
    """What is asked of which photograph."""

    photograph: str
    explainers: tuple[str, ...]
    contrasts: tuple[str, ...] = (photographs.VERSUS,)
    network: str = LITE0
    classes: Path | None = None
    layer: str = "blocks.4"
    """Of the Lite networks: 14 x 14 places of a photograph."""


GALLERY = {
    "dogs": Picture("imagenet_00_243.jpg", ("linear_approximation",)),
    "beetles": Picture("imagenet_19_305.jpg", ("linear_approximation",)),
    "spoonbill": Picture("imagenet_14_129.jpg", ("linear_approximation",)),
    "cars": Picture("imagenet_06_609.jpg", ("linear_approximation",)),
    "leafhopper": Picture("imagenet_18_317.jpg", ("linear_approximation",), ("original", "weighted")),
    "eagle": Picture("imagenet_17_22.jpg", ("linear_approximation", "gradcam", "xgradcam", "lrp")),
    "synthbird": Picture("Hawk_Russet_0025.jpg", ("linear_approximation",), network=BIRDS, classes=SPECIES),
}


def draw(name: str, asked: Picture, path: Path) -> None:
    """Write docs/gallery/NAME.jpg."""
    model = photographs.build(asked.network, "DEFAULT", None)
    image = photographs.prepared(model, "DEFAULT", None)(as_shown(path))
    logits = photographs.logits(model, image)
    file = str(asked.classes) if asked.classes else None
    names = class_names(model, len(logits), asked.network, "DEFAULT", None, file)
    chosen = chosen_classes(logits, None, SECOND, names)
    result = photographs.explained(model, image, logits, chosen, names, asked.explainers, asked.contrasts, asked.layer)
    drawn = photographs.picture(result, model.name)
    drawn.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    with runtime.atomic(ROOT / "docs/gallery" / f"{name}.jpg") as place:
        drawn.save(place, quality=80, optimize=True)


if __name__ == "__main__":
    for name, asked in GALLERY.items():
        (path,) = (ROOT / "data/sets").rglob(asked.photograph)
        draw(name, asked, path)
