"""SynthBirds: seeded, painted birds in CUB-200-2011's own layout, where what tells two siblings apart is known.

Four families differ in their whole body; the members of a family share every part but two, so the two most probable
classes of an image are siblings and the truth about "why this one and not that one" stands in the attribute files.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cxlib.synthbirds.brush import PART_ID, PARTS, BodyPlan, Painting, paint

PALETTE = {
    "black": (44, 41, 44), "white": (238, 234, 224), "grey": (138, 145, 152), "brown": (116, 86, 62),
    "rufous": (172, 82, 40), "buff": (216, 186, 138), "yellow": (232, 194, 48), "orange": (230, 126, 34),
    "red": (188, 40, 38), "blue": (52, 92, 172), "olive": (120, 118, 68), "green": (40, 104, 66),
}  # fmt: skip
"""CUB's own colour names."""

COLOUR_ATTRIBUTES = {
    "back": "has_back_color", "beak": "has_bill_color", "belly": "has_belly_color", "breast": "has_breast_color",
    "crown": "has_crown_color", "eye": "has_eye_color", "forehead": "has_forehead_color", "leg": "has_leg_color",
    "nape": "has_nape_color", "tail": "has_upper_tail_color", "throat": "has_throat_color", "wing": "has_wing_color",
    "wing bar": "has_wing_color",
}  # fmt: skip


IMAGE_TABLES = (
    "images.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt", "parts/part_locs.txt",
    "attributes/image_attribute_labels.txt",
)  # fmt: skip
"""Files with lines for every image."""


@dataclass(frozen=True)
class Family:
    """A body plan, the colours its species share, and the two places where they differ."""

    name: str
    plan: BodyPlan
    bill_shape: str
    shape: str
    colours: dict[str, str]
    marks: dict[str, tuple[str, str, str]]
    epithets: tuple[str, ...]


@dataclass(frozen=True)
class Species:
    """A class: its family and the colour names of its parts."""

    family: Family
    name: str
    colours: dict[str, str]

    def attributes(self) -> set[str]:
        """Names of the attributes that the species has."""
        colours = {f"{attribute}::{self.colours[part]}" for part, attribute in COLOUR_ATTRIBUTES.items()}
        return colours | {f"has_bill_shape::{self.family.bill_shape}", f"has_shape::{self.family.shape}"}


MARKINGS = ((0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (0, 2))
"""Which of a family's marks its first, second, … species carries."""

FAMILIES = (
    Family(
        "Heron",
        BodyPlan(
            spine=(
                (-0.52, 0.14, 0.04, 0.04, 0), (-0.36, 0.05, 0.12, 0.12, 0), (-0.10, -0.04, 0.19, 0.21, 0),
                (0.16, -0.12, 0.17, 0.20, 0.05), (0.31, -0.28, 0.11, 0.12, 0.2), (0.31, -0.47, 0.075, 0.08, 0.5),
                (0.27, -0.64, 0.075, 0.07, 0.8), (0.36, -0.79, 0.09, 0.085, 1),
            ),
            zones=(0.36, 0.62),
            head=(0.135, 1.25, 0.95, 0.8),
            culmen=((0.95, -0.42), (1.9, -0.25), (3.9, 0.16)),
            gape=((0.7, 0.06), (1.9, 0.1), (3.8, 0.17)),
            chin=((0.85, 0.5), (1.9, 0.42), (3.75, 0.19)),
            eye=(0.5, -0.15, 0.17),
            crest=2.0,
            wing_upper=((0.20, -0.24), (-0.08, -0.22), (-0.36, -0.07), (-0.62, 0.17)),
            wing_lower=((0.20, -0.10), (-0.02, 0.07), (-0.34, 0.12), (-0.62, 0.18)),
            wing_bar=(0.3, 0.52),
            tail=(0.45, 0.22, 0.05, 0.06, 0.3),
            tail_bars=0,
            hip=(-0.06, 0.12),
            leg=(0.56, 0.032, 0.25),
        ),
        "dagger",
        "long-legged-like",
        {"back": "grey", "belly": "white", "breast": "white", "eye": "yellow", "forehead": "white", "leg": "olive",
         "nape": "grey", "tail": "grey", "throat": "white", "wing": "grey", "wing bar": "grey"},
        {"crown": ("black", "rufous", "yellow"), "beak": ("yellow", "black", "red")},
        ("Ashen", "Copper", "Marsh", "Ember", "Golden", "Scarlet"),
    ),
    Family(
        "Finch",
        BodyPlan(
            spine=(
                (-0.50, 0.22, 0.05, 0.05, 0), (-0.34, 0.12, 0.14, 0.15, 0), (-0.06, 0.0, 0.24, 0.28, 0),
                (0.17, -0.15, 0.25, 0.29, 0.1), (0.29, -0.33, 0.23, 0.22, 0.5), (0.36, -0.46, 0.20, 0.17, 1),
            ),
            zones=(0.42, 0.78),
            head=(0.205, 1.0, 0.95, 0.92),
            culmen=((0.72, -0.4), (1.2, -0.3), (1.72, 0.1)),
            gape=((0.7, 0.1), (1.2, 0.1), (1.68, 0.13)),
            chin=((0.72, 0.5), (1.15, 0.42), (1.6, 0.16)),
            eye=(0.38, -0.12, 0.16),
            crest=0.0,
            wing_upper=((0.18, -0.24), (-0.06, -0.22), (-0.34, -0.02), (-0.68, 0.26)),
            wing_lower=((0.16, -0.08), (-0.02, 0.10), (-0.30, 0.18), (-0.68, 0.28)),
            wing_bar=(0.2, 0.44),
            tail=(0.42, 0.44, 0.06, 0.09, -0.25),
            tail_bars=0,
            hip=(0.0, 0.24),
            leg=(0.25, 0.026, 0.2),
        ),
        "cone",
        "perching-like",
        {"back": "brown", "beak": "grey", "belly": "white", "crown": "black", "eye": "brown", "forehead": "black",
         "leg": "brown", "nape": "brown", "tail": "black", "throat": "black", "wing": "brown"},
        {"breast": ("orange", "yellow", "grey"), "wing bar": ("brown", "white", "yellow")},
        ("Hearth", "Primrose", "Barred", "Meadow", "Stone", "Gilded"),
    ),
    Family(
        "Duck",
        BodyPlan(
            spine=(
                (-0.62, -0.08, 0.05, 0.06, 0), (-0.44, -0.02, 0.15, 0.19, 0), (-0.12, 0.03, 0.23, 0.28, 0),
                (0.20, 0.04, 0.23, 0.27, 0), (0.39, -0.10, 0.19, 0.21, 0.2), (0.43, -0.31, 0.135, 0.15, 0.7),
                (0.48, -0.48, 0.15, 0.15, 1),
            ),
            zones=(0.46, 0.70),
            head=(0.19, 1.1, 0.95, 0.88),
            culmen=((0.85, -0.35), (1.25, -0.02), (1.8, 0.12), (2.25, 0.22), (2.35, 0.36)),
            gape=((0.8, 0.3), (1.3, 0.34), (1.8, 0.36), (2.3, 0.4)),
            chin=((0.85, 0.6), (1.3, 0.58), (1.8, 0.5), (2.2, 0.46)),
            eye=(0.3, -0.2, 0.14),
            crest=0.0,
            wing_upper=((0.20, -0.13), (-0.10, -0.21), (-0.42, -0.17), (-0.72, -0.10)),
            wing_lower=((0.20, 0.07), (-0.04, 0.18), (-0.38, 0.13), (-0.72, -0.07)),
            wing_bar=(0.38, 0.66),
            tail=(-0.3, 0.24, 0.06, 0.05, 0.4),
            tail_bars=0,
            hip=(-0.02, 0.27),
            leg=(0.15, 0.045, 0.1),
            webbed=True,
        ),
        "spatulate",
        "duck-like",
        {"back": "brown", "beak": "olive", "belly": "buff", "breast": "rufous", "crown": "green", "eye": "brown",
         "forehead": "green", "leg": "orange", "nape": "green", "tail": "black", "wing": "brown"},
        {"throat": ("green", "white", "buff"), "wing bar": ("blue", "white", "orange")},
        ("Mere", "Collared", "Snowbar", "Frosted", "Fawn", "Amber"),
    ),
    Family(
        "Hawk",
        BodyPlan(
            spine=(
                (-0.36, 0.44, 0.08, 0.08, 0), (-0.27, 0.26, 0.16, 0.18, 0), (-0.08, -0.03, 0.23, 0.31, 0),
                (0.05, -0.32, 0.24, 0.27, 0.1), (0.13, -0.52, 0.20, 0.20, 0.5), (0.19, -0.66, 0.18, 0.17, 1),
            ),
            zones=(0.55, 0.78),
            head=(0.19, 1.08, 0.82, 0.9),
            culmen=((0.8, -0.42), (1.2, -0.44), (1.52, -0.12), (1.5, 0.42)),
            gape=((0.7, 0.12), (1.05, 0.14), (1.3, 0.12), (1.46, 0.36)),
            chin=((0.75, 0.45), (1.0, 0.42), (1.2, 0.34), (1.28, 0.2)),
            eye=(0.42, -0.14, 0.18),
            crest=0.0,
            wing_upper=((0.02, -0.50), (-0.22, -0.36), (-0.36, 0.04), (-0.52, 0.58)),
            wing_lower=((0.06, -0.36), (-0.02, -0.10), (-0.22, 0.22), (-0.50, 0.60)),
            wing_bar=(0.3, 0.5),
            tail=(1.12, 0.58, 0.10, 0.17, 0.2),
            tail_bars=3,
            hip=(-0.04, 0.26),
            leg=(0.36, 0.05, 0.55),
        ),
        "hooked",
        "hawk-like",
        {"back": "brown", "beak": "black", "breast": "buff", "crown": "brown", "eye": "orange", "forehead": "brown",
         "leg": "yellow", "nape": "brown", "throat": "white", "wing": "brown", "wing bar": "brown"},
        {"tail": ("rufous", "white", "black"), "belly": ("white", "rufous", "black")},
        ("Russet", "Pale", "Chestnut", "Harrier", "Sable", "Shadow"),
    ),
)  # fmt: skip


def species_of(family: Family, count: int) -> tuple[Species, ...]:
    """The first `count` species of a family."""
    if not 2 <= count <= len(MARKINGS):
        raise ValueError(f"species_per_family must lie in [2, {len(MARKINGS)}], not {count}")
    return tuple(
        Species(
            family,
            f"{family.name}_{epithet}",
            family.colours | {m: v[k] for (m, v), k in zip(family.marks.items(), marking)},
        )
        for epithet, marking in zip(family.epithets[:count], MARKINGS)
    )


def individual_colours(
    species: Species, members: tuple[Species, ...], ambiguity: float, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """RGB of one individual's parts: the species' own, varied, and its marks carried towards its siblings' marks.

    A mark moves by up to `ambiguity` of the way to a random mixture of the members' colours, its own among them.
    """
    colours = {}
    for part in COLOUR_ATTRIBUTES:
        rgb = np.array(PALETTE[species.colours[part]], dtype=float)
        if part in species.family.marks:
            others = np.array(sorted({PALETTE[member.colours[part]] for member in members}), dtype=float)
            rgb += ambiguity * rng.beta(1.1, 1.3) * (rng.dirichlet(np.full(len(others), 0.7)) @ others - rgb)
        colours[part] = rgb * rng.normal(1, 0.07) * rng.normal(1, 0.025, 3)
    return colours


def paint_individual(
    species: Species, members: tuple[Species, ...], size: int, ambiguity: float, rng: np.random.Generator
) -> Painting:
    """One bird of a species; the same generator state gives siblings the same pose, light and scene."""
    colours = individual_colours(species, members, ambiguity, rng)
    return paint(species.family.plan, colours, rng, size, clutter=ambiguity)


def part_locations(parts: np.ndarray) -> list[tuple[float, float, int]]:
    """For each part x, y and 1: its pixel nearest to its centre in a map (H, W) of parts; 0, 0, 0 when hidden."""
    rows, columns = np.nonzero(parts)
    numbers = parts[rows, columns]
    locations = []
    for part in range(1, len(PARTS) + 1):
        mine = numbers == part
        y, x = rows[mine], columns[mine]
        if len(x):
            nearest = np.argmin((x - x.mean()) ** 2 + (y - y.mean()) ** 2)
            locations.append((float(x[nearest]), float(y[nearest]), 1))
        else:
            locations.append((0.0, 0.0, 0))
    return locations


def generate(
    folder: Path | str,
    *,
    species_per_family: int = 3,
    train_per_species: int = 40,
    test_per_species: int = 20,
    image_size: int = 160,
    ambiguity: float = 0.5,
    seed: int = 0,
) -> None:
    """Write SynthBirds into a folder in CUB-200-2011's layout; the same arguments write the same bytes.

    Beyond CUB's files there is `parts/masks/`: for each image an 8-bit PNG with the number of the visible part at each
    pixel, 0 for none. An image depends on the settings, its species, its split and its place therein, not on how many
    images there are.

    Args:
        folder: made when it does not exist.
        species_per_family: from 2 to 6.
        train_per_species: training images a species.
        test_per_species: test images a species.
        image_size: side of the square images in pixels.
        ambiguity: in [0, 1], how far individuals' marks stray towards their siblings', and how much hides the birds.
        seed: of everything random.

    Raises:
        ValueError: when `species_per_family` or `ambiguity` is out of range.
    """
    if not 0 <= ambiguity <= 1:
        raise ValueError(f"ambiguity must lie in [0, 1], not {ambiguity}")
    folder = Path(folder)
    families = [species_of(family, species_per_family) for family in FAMILIES]
    classes = [(species, members, f) for f, members in enumerate(families) for species in members]
    attributes = sorted(set().union(*(species.attributes() for species, _, _ in classes)))
    rows: dict[str, list[str]] = {name: [] for name in IMAGE_TABLES}
    names, percentages = [], []
    for label, (species, members, f) in enumerate(classes, start=1):
        names.append(f"{label:03d}.{species.name}")
        has = np.array([name in species.attributes() for name in attributes])
        percentages.append(" ".join(f"{100.0 * value:.1f}" for value in has))
        for place in ("images", "segmentations", "parts/masks"):
            (folder / place / names[-1]).mkdir(parents=True, exist_ok=True)
        splits = [(1, k) for k in range(train_per_species)] + [(0, k) for k in range(test_per_species)]
        for number, (is_train, k) in enumerate(splits, start=1):
            rng = np.random.default_rng([seed, f, members.index(species), is_train, k])
            painting = paint_individual(species, members, image_size, ambiguity, rng)
            stem = f"{names[-1]}/{species.name}_{number:04d}"
            painting.image.save(folder / "images" / f"{stem}.jpg", quality=92)
            Image.fromarray(painting.bird.astype(np.uint8) * 255).save(folder / f"segmentations/{stem}.png")
            Image.fromarray(painting.parts).save(folder / f"parts/masks/{stem}.png")

            image = len(rows["images.txt"]) + 1
            y, x = np.nonzero(painting.bird)
            box = (x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1)
            rows["images.txt"].append(f"{image} {stem}.jpg")
            rows["image_class_labels.txt"].append(f"{image} {label}")
            rows["train_test_split.txt"].append(f"{image} {is_train}")
            rows["bounding_boxes.txt"].append(f"{image} " + " ".join(f"{value:.1f}" for value in box))
            rows["parts/part_locs.txt"] += [
                f"{image} {part} {x} {y} {visible}"
                for part, (x, y, visible) in enumerate(part_locations(painting.parts), start=1)
            ]
            # Certainty 4 is CUB's "definitely"; the last column is the annotator's time.
            rows["attributes/image_attribute_labels.txt"] += [
                f"{image} {a} {int(value)} 4 0.0" for a, value in enumerate(has, start=1)
            ]

    tables = rows | {
        "classes.txt": [f"{label} {name}" for label, name in enumerate(names, start=1)],
        "parts/parts.txt": [f"{number} {name}" for name, number in PART_ID.items()],
        "attributes/attributes.txt": [f"{number} {name}" for number, name in enumerate(attributes, start=1)],
        "attributes/class_attribute_labels_continuous.txt": percentages,
    }
    (folder / "attributes").mkdir(exist_ok=True)
    for name, lines in tables.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
