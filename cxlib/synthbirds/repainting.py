"""Repaint parts of a SynthBirds picture: what decides is then not only known, it is changed, and nothing else is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from cxlib.synthbirds.brush import paint_alike
from cxlib.synthbirds.species import COLOUR_ATTRIBUTES, FAMILIES, PALETTE, Species, individual_colours, species_of

#: What can be repainted.
PARTS = tuple(COLOUR_ATTRIBUTES)
#: How much a file's picture may differ from what was painted, in levels a pixel: JPEG's own errors are about 2.
JPEG_ERROR = 10.0
#: What `every_part` does to a part.
WAYS = RANDOM, AS_SIBLING, SIBLING, BACK = ("random", "as_sibling", "sibling", "back")


class Individual(NamedTuple):
    """What one bird of the data set is painted from."""

    species: Species
    members: tuple[Species, ...]
    """The species of its family."""
    size: int
    ambiguity: float
    state: tuple[int, ...]
    """Of its generator: the data set's seed, the family, the member, whether it is for training, and its place."""


def test_birds(labels: Sequence[int], n_classes: int, image_size: int, ambiguity: float, seed: int) -> list[Individual]:
    """The test birds of the data set that `species.generate` writes with these settings, in its order.

    Args:
        labels: of all of its test images.
        n_classes: species in all.
        image_size: side of its pictures.
        ambiguity: that it is painted with.
        seed: likewise.

    Raises:
        ValueError: the classes are not as many in each family.
    """
    per_family, left = divmod(n_classes, len(FAMILIES))
    if left:
        raise ValueError(f"{n_classes} classes are no SynthBirds, whose {len(FAMILIES)} families are of one size")
    families = [species_of(family, per_family) for family in FAMILIES]
    birds, painted = [], Counter[int]()
    for label in labels:
        f, m = divmod(label, per_family)
        state = (seed, f, m, 0, painted[label])
        birds.append(Individual(families[f][m], families[f], image_size, ambiguity, state))
        painted[label] += 1
    return birds


def pairs(probabilities: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Each bird's own species and the most probable one of its siblings, the more probable of the two first: (N, 2).

    Args:
        probabilities: (N, K) of the K species.
        labels: (N,), the birds' own.
    """
    per_family = probabilities.shape[1] // len(FAMILIES)
    found = np.empty((len(labels), 2), dtype=np.int64)
    for pair, label, p in zip(found, labels, probabilities):
        first = label - label % per_family
        sibling = max((k for k in range(first, first + per_family) if k != label), key=p.__getitem__)
        pair[:] = (label, sibling) if p[label] >= p[sibling] else (sibling, label)
    return found


def telling_parts(a: Species, b: Species) -> list[str]:
    """The parts, of those in `PARTS`, whose colours tell two siblings apart."""
    return [part for part in PARTS if a.colours[part] != b.colours[part]]


def repaint(
    bird: Individual, picture: Image.Image, repaintings: Sequence[Mapping[str, Species | str]]
) -> list[tuple[Image.Image, np.ndarray]]:
    """The picture of a bird with some of its parts repainted: pose, light, scene and all other pixels stay the same.

    A part repainted as a sibling has it is what the sibling's own picture would show there, with this individual's
    variation. A part's paint reaches as far as its soft edges and the plumage without a name that has its colour, as
    the face has the forehead's: the region is what changed.

    Args:
        bird: as `test_birds` has it.
        picture: of the bird, as it lies in the data set's file; to its pixels the change of paint is added.
        repaintings: for each the parts (names in `PARTS`) and whose colours they get: a sibling's, or a
            colour in `PALETTE`. Without parts the picture stays as it is.

    Returns:
        for each the picture and the region (H, W) bool of the pixels that are not as before.

    Raises:
        ValueError: the picture is not of this bird.
    """
    siblings = {}
    for member in bird.members:
        rng = np.random.default_rng(bird.state)
        siblings[member.name] = individual_colours(member, bird.members, bird.ambiguity, rng)
    own = siblings[bird.species.name]
    colourings = [own] + [
        own
        | {
            part: np.array(PALETTE[whose], float) if isinstance(whose, str) else siblings[whose.name][part]
            for part, whose in repainting.items()
        }
        for repainting in repaintings
    ]
    # After the colours, the generator stands where it does for the species itself.
    first, *others = paint_alike(bird.species.family.plan, colourings, rng, bird.size, clutter=bird.ambiguity)
    before, painted = (np.asarray(image).astype(int) for image in (picture.convert("RGB"), first.image))
    if before.shape != painted.shape or np.abs(before - painted).mean() > JPEG_ERROR:
        raise ValueError(f"the picture is not of the bird painted from {bird.state}: give the data set's own settings")
    repainted = []
    for other in others:
        after = np.clip(before + np.asarray(other.image) - painted, 0, 255)
        repainted.append((Image.fromarray(after.astype(np.uint8)), (after != before).any(axis=2)))
    return repainted


def every_part(bird: Individual, sibling: Species, picture: Image.Image) -> dict[tuple[str, str], Image.Image]:
    """Each part of a bird repainted on its own, by way and part.

    Every part in a random colour that neither the bird nor its sibling has there (`random`); and of the parts that tell
    the two apart each as the sibling has it (`as_sibling`), all of them so (`sibling`, the same for each part), and
    from there this one as it was (`back`).

    Args:
        bird: as `test_birds` has it; its state decides on the random colours too.
        sibling: another species of its family.
        picture: of the bird.

    Raises:
        ValueError: the picture is not of this bird.
    """
    rng = np.random.default_rng([*bird.state, 1])
    telling = telling_parts(bird.species, sibling)
    wanted: dict[tuple[str, str], Mapping[str, Species | str]] = {}
    for part in PARTS:
        had = (bird.species.colours[part], sibling.colours[part])
        wanted[RANDOM, part] = {part: str(rng.choice([colour for colour in PALETTE if colour not in had]))}
    for part in telling:
        wanted[AS_SIBLING, part] = {part: sibling}
        wanted[SIBLING, part] = dict.fromkeys(telling, sibling)
        wanted[BACK, part] = {other: sibling for other in telling if other != part}
    return {key: image for key, (image, _) in zip(wanted, repaint(bird, picture, list(wanted.values())))}
