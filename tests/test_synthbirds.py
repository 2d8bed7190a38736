"""SynthBirds is a CUB folder, is reproducible, and knows truly what tells two species apart."""

from itertools import combinations, product

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.image import imread
from PIL import Image
from test_params import command

from cxlib import overlay
from cxlib.datasets.cub import discriminative_parts
from cxlib.synthbirds.brush import PART_ID, PARTS
from cxlib.synthbirds.species import FAMILIES, MARKINGS, generate, paint_individual, species_of

SMALL = {"species_per_family": 3, "train_per_species": 1, "test_per_species": 1, "image_size": 64, "ambiguity": 0.5}
CLASSES = 3 * len(FAMILIES)
FAMILY = [index // 3 for index in range(CLASSES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthbirds") / "data"
    generate(path, seed=1, **SMALL)
    return path


def table(path):
    return [line.split(maxsplit=1) for line in path.read_text().splitlines()]


def files(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def picture(path):
    return np.asarray(Image.open(path))


def test_tables_number_images_classes_and_parts_as_cub_does(folder):
    images, classes, parts = (table(folder / name) for name in ("images.txt", "classes.txt", "parts/parts.txt"))
    for rows in (images, classes, parts):
        assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    assert len(images) == 2 * CLASSES
    assert [name for _, name in parts] == list(PARTS)
    assert all(name.startswith(f"{int(number):03d}.") for number, name in classes)
    for name in ("image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt"):
        assert [number for number, _ in table(folder / name)] == [number for number, _ in images]
    names = [name for _, name in classes]
    labels = [int(label) for _, label in table(folder / "image_class_labels.txt")]
    assert [path.split("/")[0] for _, path in images] == [names[label - 1] for label in labels]
    split = [value for _, value in table(folder / "train_test_split.txt")]
    assert split.count("1") == split.count("0") == CLASSES


def test_attribute_tables_agree(folder):
    attributes = table(folder / "attributes/attributes.txt")
    percentages = np.loadtxt(folder / "attributes/class_attribute_labels_continuous.txt")
    assert percentages.shape == (CLASSES, len(attributes))
    assert percentages.min() >= 0 and percentages.max() <= 100
    rows = np.loadtxt(folder / "attributes/image_attribute_labels.txt")
    present = rows[:, 2].reshape(-1, len(attributes))
    np.testing.assert_array_equal(present[::2], percentages > 50)


def test_every_image_has_its_masks_box_and_locations(folder):
    boxes = np.loadtxt(folder / "bounding_boxes.txt")[:, 1:]
    locations = np.loadtxt(folder / "parts/part_locs.txt").reshape(-1, len(PARTS), 5)
    for (number, path), (left, top, width, height), rows in zip(table(folder / "images.txt"), boxes, locations):
        mask_path = path.replace(".jpg", ".png")
        assert picture(folder / "images" / path).shape == (64, 64, 3)
        bird = picture(folder / "segmentations" / mask_path)
        parts = picture(folder / "parts/masks" / mask_path)
        assert set(np.unique(bird)) == {0, 255}
        assert not parts[bird == 0].any(), "a part outside the bird"
        y, x = np.nonzero(bird)
        assert (left, top, width, height) == (x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1)
        np.testing.assert_array_equal(rows[:, :2], [(int(number), part) for part in range(1, 16)])
        for _, part, x, y, visible in rows:
            assert visible == (parts == part).any()
            assert parts[int(y), int(x)] == part if visible else (x, y) == (0, 0)


def test_the_seed_decides_every_byte(folder, tmp_path):
    generate(tmp_path / "same", seed=1, **SMALL)
    generate(tmp_path / "other", seed=2, **SMALL)
    first, same, other = (files(path) for path in (folder, tmp_path / "same", tmp_path / "other"))
    assert first == same
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first if name.endswith(".jpg"))


def test_an_image_does_not_depend_on_how_many_others_there_are(folder, tmp_path):
    generate(tmp_path / "more", seed=1, **SMALL | {"train_per_species": 2})
    few = [path for path in files(folder) if path.endswith("_0002.jpg")]
    for path in few:
        assert (folder / path).read_bytes() == (tmp_path / "more" / path.replace("_0002", "_0003")).read_bytes()


def test_siblings_differ_in_few_parts_and_families_in_more(folder):
    differing = {(a, b): discriminative_parts(folder, a, b) for a, b in product(range(CLASSES), repeat=2)}
    assert all(differing[a, b] == differing[b, a] for a, b in differing)
    assert all(parts <= set(PARTS) for parts in differing.values())
    assert not any(differing[a, a] for a in range(CLASSES))
    siblings = [parts for (a, b), parts in differing.items() if a != b and FAMILY[a] == FAMILY[b]]
    strangers = [parts for (a, b), parts in differing.items() if FAMILY[a] != FAMILY[b]]
    assert all(1 <= len(parts) <= 3 for parts in siblings)
    assert max(map(len, siblings)) < min(map(len, strangers))


def test_cub_attribute_names_lead_to_cub_parts(tmp_path):
    folder = tmp_path / "CUB_200_2011"
    (folder / "attributes").mkdir(parents=True)
    names = ["has_bill_length::long", "has_wing_pattern::solid", "has_under_tail_color::red", "has_size::small"]
    (tmp_path / "attributes.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, start=1)))
    # Three classes have attributes, of which the folder holds the first and the third.
    (folder / "attributes/class_attribute_labels_continuous.txt").write_text("90 10 40 100\n90 10 99 100\n20 80 50 0\n")
    (folder / "classes.txt").write_text("1 001.First\n3 003.Third\n")
    assert discriminative_parts(folder, 0, 1) == {"beak", "left wing", "right wing"}
    (folder / "classes.txt").write_text("1 001.First\n4 004.Fourth\n")
    with pytest.raises(ValueError, match=r"has 3 classes, but classes\.txt counts from 1 to 4"):
        discriminative_parts(folder, 0, 1)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_siblings_in_one_pose_differ_inside_their_discriminative_parts(family, tmp_path):
    count = len(MARKINGS)
    generate(tmp_path, species_per_family=count, train_per_species=0, test_per_species=0, image_size=32, seed=0)
    offset = FAMILIES.index(family) * count
    members = species_of(family, count)
    paintings = [paint_individual(one, members, 128, 0.0, np.random.default_rng(5)) for one in members]
    for a, b in combinations(range(count), 2):
        parts = discriminative_parts(tmp_path, offset + a, offset + b)
        inside = np.isin(paintings[a].parts, [PART_ID[part] for part in parts])
        change = np.abs(np.asarray(paintings[a].image, float) - np.asarray(paintings[b].image, float)).sum(axis=2)
        assert change[inside].sum() > 0.75 * change.sum(), f"{members[a].name} and {members[b].name} differ elsewhere"
        assert change[inside].max() > 60, f"{members[a].name} and {members[b].name} look the same"
        np.testing.assert_array_equal(paintings[a].parts, paintings[b].parts)


def test_ambiguity_carries_individuals_towards_their_siblings():
    members = species_of(FAMILIES[1], 2)

    def gap(ambiguity):
        pairs = [
            [
                np.asarray(paint_individual(m, members, 48, ambiguity, np.random.default_rng(s)).image, float)
                for m in members
            ]
            for s in range(8)
        ]
        return np.mean([np.abs(a - b).mean() for a, b in pairs])

    assert gap(0.9) < 0.8 * gap(0.0)


def test_settings_out_of_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match="species_per_family"):
        generate(tmp_path, species_per_family=1)
    with pytest.raises(ValueError, match="ambiguity"):
        generate(tmp_path, ambiguity=1.5)


def test_the_contact_sheet_is_the_same_bytes_twice(folder, tmp_path):
    for name in ("first.png", "second.png"):
        words = ["--data", str(folder), "--per-species", "1", "--out", str(tmp_path / name)]
        words += ["--shown", str(tmp_path / "shown.webp")]
        result = CliRunner().invoke(command("stages/contact_sheet.py"), words)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert imread(tmp_path / "first.png").std() > 0.1


def test_the_contact_sheet_shows_every_test_image_and_says_what_tells_siblings_apart(folder, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(overlay, "save", lambda figure, path: (drawn.append(figure), Image.new("1", (1, 1)).save(path)))
    words = ["--data", str(folder), "--per-species", "4", "--out", str(tmp_path / "sheet.png")]
    words += ["--shown", str(tmp_path / "sheet.webp")]
    assert CliRunner().invoke(command("stages/contact_sheet.py"), words).exit_code == 0
    paths = dict(table(folder / "images.txt"))
    tested = [paths[number] for number, training in table(folder / "train_test_split.txt") if training == "0"]
    panels = [axis for row in drawn[0].subfigs for axis in row.axes]
    for path, panel in zip(tested, panels, strict=True):  # one image a species
        np.testing.assert_array_equal(panel.images[0].get_array(), picture(folder / "images" / path))
        assert panel.get_title().replace(" ", "_") == path.split("/")[0].split(".")[1]
    for place, row in enumerate(drawn[0].subfigs):
        siblings = range(3 * place, 3 * place + 3)
        differing = set().union(*(discriminative_parts(folder, a, b) for a, b in combinations(siblings, 2)))
        assert row.get_suptitle().endswith(f"told apart by {', '.join(sorted(differing))}")
