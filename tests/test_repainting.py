"""Repainting changes the paint of a part and nothing else, as the painter itself would have painted it."""

import numpy as np
import pytest
from PIL import Image

from cxlib.datasets import images
from cxlib.synthbirds.brush import PART_ID, paint, paint_alike
from cxlib.synthbirds.repainting import (
    AS_SIBLING,
    BACK,
    PARTS,
    RANDOM,
    SIBLING,
    Individual,
    every_part,
    pairs,
    repaint,
    telling_parts,
)
from cxlib.synthbirds.repainting import (
    test_birds as birds_of,
)
from cxlib.synthbirds.species import FAMILIES, generate, individual_colours, paint_individual, species_of

SETTINGS = {"ambiguity": 0.3, "seed": 4}
SIZE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("repainted") / "data"
    generate(path, species_per_family=3, train_per_species=1, test_per_species=2, image_size=SIZE, **SETTINGS)
    return path


def bird(family, member, count=6, place=0):
    members = species_of(FAMILIES[family], count)
    return Individual(members[member], members, SIZE, 0.3, (4, family, member, 0, place))


def painted(one, species=None):
    """The picture of a bird before it is a JPEG; or of a sibling in its place, by the painter alone."""
    rng = np.random.default_rng(one.state)
    return paint_individual(species or one.species, one.members, one.size, one.ambiguity, rng)


def test_birds_painted_alike_are_those_painted_one_by_one():
    members = species_of(FAMILIES[2], 4)
    rng = np.random.default_rng(3)
    colourings = [individual_colours(member, members, 0.3, rng) for member in members]
    together = paint_alike(FAMILIES[2].plan, colourings, np.random.default_rng(1), SIZE, 0.9)
    for colours, one in zip(colourings, together, strict=True):
        alone = paint(FAMILIES[2].plan, colours, np.random.default_rng(1), SIZE, 0.9)
        np.testing.assert_array_equal(one.image, alone.image)
        np.testing.assert_array_equal(one.parts, alone.parts)


@pytest.mark.parametrize("family", range(4))
def test_all_telling_parts_repainted_are_the_siblings_own_picture(family):
    one = bird(family, 3)
    for sibling in (member for member in one.members if member != one.species):
        telling = telling_parts(one.species, sibling)
        assert set(telling) <= set(one.species.family.marks)
        ((picture, region),) = repaint(one, painted(one).image, [dict.fromkeys(telling, sibling)])
        np.testing.assert_array_equal(picture, painted(one, sibling).image)
        assert region.any()


@pytest.mark.parametrize("family", range(4))
def test_a_repainted_part_changes_where_the_part_is_and_nowhere_else(family):
    one = bird(family, 0)
    before, truth = np.asarray(painted(one).image), painted(one)
    visible = [part for part in PARTS if part in PART_ID and (truth.parts == PART_ID[part]).sum() > 20]
    assert len(visible) > 4
    for part, (picture, region) in zip(visible, repaint(one, truth.image, [{part: "blue"} for part in visible])):
        np.testing.assert_array_equal(np.asarray(picture)[~region], before[~region])
        assert region[truth.parts == PART_ID[part]].mean() > 0.9, part
        y, x = np.nonzero(truth.bird)
        inside = np.zeros_like(region)
        inside[max(0, y.min() - 2) : y.max() + 3, max(0, x.min() - 2) : x.max() + 3] = True
        assert not (region & ~inside).any()
    ((same, unchanged),) = repaint(one, truth.image, [{}])
    np.testing.assert_array_equal(same, before)
    assert not unchanged.any()


def test_the_birds_of_a_folder_are_those_it_was_painted_from(folder):
    samples = images.read(folder)
    for path, one in zip(samples.paths, birds_of(samples.labels, 12, SIZE, **SETTINGS), strict=True):
        assert path.parent.name.endswith(one.species.name)
        picture = images.decode(path)
        as_painted = np.abs(np.asarray(picture).astype(int) - np.asarray(painted(one).image)).mean()
        assert as_painted < 5  # a JPEG's errors
        ((same, region),) = repaint(one, picture, [{}])
        assert not region.any() and np.array_equal(same, picture)


def test_a_picture_of_another_bird_is_refused(folder):
    samples = images.read(folder)
    one = birds_of(samples.labels, 12, SIZE, ambiguity=0.3, seed=5)[0]
    with pytest.raises(ValueError, match=r"not of the bird painted from \(5, 0, 0, 0, 0\): give the data set's own"):
        repaint(one, images.decode(samples.paths[0]), [{}])
    with pytest.raises(ValueError, match="not of the bird"):
        repaint(bird(0, 0), Image.new("RGB", (SIZE, SIZE // 2)), [{}])
    with pytest.raises(ValueError, match="10 classes are no SynthBirds"):
        birds_of([0], 10, SIZE, **SETTINGS)


def test_every_part_is_repainted_on_its_own():
    one = bird(1, 3)
    sibling = one.members[0]
    telling = telling_parts(one.species, sibling)
    assert len(telling) == 2
    picture = painted(one).image
    done = every_part(one, sibling, picture)
    assert set(done) == {(RANDOM, p) for p in PARTS} | {(w, p) for w in (AS_SIBLING, SIBLING, BACK) for p in telling}
    first, second = telling
    # From the sibling's picture one part back is the other part alone as the sibling has it.
    np.testing.assert_array_equal(done[BACK, first], done[AS_SIBLING, second])
    np.testing.assert_array_equal(done[SIBLING, first], done[SIBLING, second])
    again = every_part(one, sibling, picture)
    assert all(np.array_equal(done[key], again[key]) for key in done)
    changed = {part: np.asarray(done[RANDOM, part]) != np.asarray(picture) for part in PARTS}
    assert all(changed[part].any() for part in ("breast", "belly", "wing", "tail"))


def test_where_one_part_decides_back_is_the_bird_itself():
    one = bird(3, 0)
    sibling = one.members[1]
    (part,) = telling_parts(one.species, sibling)
    picture = painted(one).image
    done = every_part(one, sibling, picture)
    np.testing.assert_array_equal(done[BACK, part], picture)
    np.testing.assert_array_equal(done[SIBLING, part], done[AS_SIBLING, part])


def test_a_birds_pair_is_its_own_species_and_its_most_probable_sibling():
    p = np.array([[0.1, 0.2, 0.3, 0.15, 0.05, 0.05, 0.1, 0.05], [0.0, 0.4, 0.5, 0.1, 0, 0, 0, 0]])
    assert pairs(p, [0, 3]).tolist() == [[1, 0], [2, 3]]
    assert pairs(np.tile(p, (1, 3))[:, :12] + np.eye(12)[:2], [0, 1]).tolist() == [[0, 2], [1, 2]]
