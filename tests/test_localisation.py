"""Localisation against closed forms, slow loops and the drawn truth of SynthBirds."""

import math
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
import torch
from PIL import Image
from test_explainers import OF_ANY_NETWORK

from cxlib.contrasts import weighted
from cxlib.datasets import cub, images
from cxlib.explainers import explain
from cxlib.metrics import parts
from cxlib.metrics.localisation import SIGNS, evidence_signs, gaussian, localise, measure
from cxlib.synthbirds.brush import PART_ID
from cxlib.synthbirds.species import FAMILIES, generate, paint_individual, species_of

CONTRASTS = ("original", "mean", "max", "weighted")
POSITIVE, NEGATIVE, ABSOLUTE = range(3)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def box(size, top, bottom, left, right):
    region = torch.zeros(size, size, dtype=torch.bool)
    region[top:bottom, left:right] = True
    return region


REGION = box(12, 2, 5, 3, 9)
AREA = 18 / 144


# --- the measure ------------------------------------------------------------------------------------------------


def test_a_map_that_is_the_region_has_all_its_mass_and_its_peak_inside():
    measured = measure(REGION.float(), REGION)
    assert measured.share.tolist() == [1, AREA, 1]  # there is no negative mass: as a uniform map
    assert measured.hit.tolist() == [1, AREA, 1]
    assert measured.silent.tolist() == [False, True, False]
    opposite = measure(-REGION.float(), REGION)
    assert opposite.share.tolist() == [AREA, 1, 1]
    assert measure((~REGION).float(), REGION).share[POSITIVE] == 0


@pytest.mark.parametrize("value", [1.0, -0.3, 0.0])
def test_a_uniform_map_has_the_share_of_area(value):
    measured = measure(torch.full((12, 12), value), REGION)
    torch.testing.assert_close(measured.share, torch.full((3,), AREA, dtype=torch.float64))
    torch.testing.assert_close(measured.hit, torch.full((3,), AREA, dtype=torch.float64))
    assert measured.silent.tolist() == [value <= 0, value >= 0, value == 0]


def test_share_and_hit_are_those_of_a_loop_over_pixels(rng):
    maps, regions = torch.randn(3, 2, 9, 7, generator=rng), torch.rand(3, 1, 9, 7, generator=rng) < 0.3
    measured = measure(maps, regions)
    assert measured.share.shape == measured.hit.shape == (3, 2, 3)
    for i, m, (s, sign) in product(range(3), range(2), enumerate(SIGNS)):
        inside = total = peak = 0.0
        hit = None
        for y, x in product(range(9), range(7)):
            value = maps[i, m, y, x].item()
            mass = {"positive": max(value, 0), "negative": max(-value, 0), "absolute": abs(value)}[sign]
            total += mass
            inside += mass * regions[i, 0, y, x].item()
            if mass > peak:
                peak, hit = mass, regions[i, 0, y, x].item()
        assert measured.share[i, m, s].item() == pytest.approx(inside / total, rel=1e-12)
        assert measured.hit[i, m, s] == hit


def test_equal_peaks_share_the_hit():
    values = torch.zeros(12, 12)
    values[3, 4] = values[0, 0] = values[11, 11] = 2.0
    assert measure(values, REGION).hit[POSITIVE].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("scale", [1e-6, 0.37, 1e6])
def test_scaling_a_map_changes_nothing_and_its_negative_swaps_the_signs(rng, scale):
    maps = torch.randn(4, 12, 12, generator=rng)
    plain, scaled, opposite = (measure(m, REGION) for m in (maps, scale * maps, -maps))
    torch.testing.assert_close(scaled.share, plain.share, rtol=1e-5, atol=0)
    assert torch.equal(scaled.hit, plain.hit)
    assert torch.equal(opposite.share, plain.share[:, [NEGATIVE, POSITIVE, ABSOLUTE]])
    assert torch.equal(opposite.hit, plain.hit[:, [NEGATIVE, POSITIVE, ABSOLUTE]])


def test_a_region_and_the_rest_of_the_image_share_the_mass(rng):
    maps = torch.randn(4, 12, 12, generator=rng)
    both = measure(maps, REGION), measure(maps, ~REGION)
    torch.testing.assert_close(both[0].share + both[1].share, torch.ones(4, 3, dtype=torch.float64))
    assert ((both[0].hit + both[1].hit) == 1).all()


@pytest.mark.parametrize("sigma", [0.0, -0.25, math.nan, math.inf])
def test_a_gaussian_has_a_width(sigma):
    with pytest.raises(ValueError, match=f"must be finite and above 0, got {sigma}"):
        gaussian(8, sigma)


@pytest.mark.parametrize(("size", "sigma"), [(200, 0.25), (201, 0.1)])
def test_share_of_the_centred_gaussian_is_the_error_functions(size, sigma):
    """Mass of a truncated Gaussian in a rectangle: the product of two quotients of error functions."""
    top, bottom, left, right = 40, 90, 70, 150

    def mass(low, high):
        return math.erf((high - 0.5) / sigma / math.sqrt(2)) - math.erf((low - 0.5) / sigma / math.sqrt(2))

    expected = mass(top / size, bottom / size) * mass(left / size, right / size) / mass(0, 1) ** 2
    measured = measure(gaussian(size, sigma), box(size, top, bottom, left, right))
    assert measured.share[POSITIVE].item() == pytest.approx(expected, rel=2e-3)
    assert measured.hit[POSITIVE] == 0
    assert measure(gaussian(size, sigma), box(size, 90, 110, 90, 110)).hit[POSITIVE] == 1


# --- which mass is evidence -------------------------------------------------------------------------------------


def test_evidence_is_for_the_class_that_is_shown_and_against_its_counterpart():
    leading = torch.tensor([[4, 7], [7, 4], [1, 2]])
    signs = evidence_signs(leading, torch.tensor([4, 4, 9]), ["gradcam", "gradient"])
    assert signs[:, 0].tolist() == [[POSITIVE, NEGATIVE], [NEGATIVE, POSITIVE], [POSITIVE, NEGATIVE]]
    assert (signs[:, 1] == ABSOLUTE).all()  # a sensitivity's sign is no evidence
    # With the two classes in the other order, each class's map is judged by the same sign.
    assert torch.equal(evidence_signs(leading[:2].flip(1), torch.tensor([4, 4]), ["gradcam"]), signs[:2, :1].flip(2))


# --- maps of a network ------------------------------------------------------------------------------------------


def random_regions(rng):
    regions = torch.rand(4, 16, 16, generator=rng) < 0.2
    regions[:, 3, 5] = True
    return regions


def test_values_are_those_of_single_explanations(network, images, rng):
    regions, layer = random_regions(rng), network.features[4]
    leading = network(images).topk(2).indices
    together = localise(network, images, leading, regions, list(OF_ANY_NETWORK), CONTRASTS, layer)
    assert together.share.shape == (4, len(OF_ANY_NETWORK), 4, 2, 3)
    for (e, explainer), (c, contrast), t, i in product(
        enumerate(OF_ANY_NETWORK), enumerate(CONTRASTS), range(2), range(4)
    ):
        tapped = None if explainer == "gradient" else layer
        single = explain(network, images[i : i + 1], leading[i : i + 1, t], explainer, contrast, tapped)[0]
        for values, expected in zip(together, measure(single, regions[i])):
            torch.testing.assert_close(values[i, e, c, t], expected)


def test_a_batch_gives_what_single_images_give(network, images, rng):
    regions, layer = random_regions(rng), network.features[4]
    leading = network(images).topk(2).indices
    arguments = (["gradient", "xgradcam"], CONTRASTS, layer)
    together = localise(network, images, leading, regions, *arguments)
    for i in range(4):
        alone = localise(network, images[[i]], leading[[i]], regions[[i]], *arguments)
        for values, expected in zip(together, alone):
            torch.testing.assert_close(values[[i]], expected)


def test_exchanged_targets_exchange_the_values(network, images, rng):
    regions, layer = random_regions(rng), network.features[4]
    leading = network(images).topk(2).indices
    arguments = (regions, ["gradcam"], CONTRASTS, layer)
    values = localise(network, images, leading, *arguments)
    exchanged = localise(network, images, leading.flip(1), *arguments)
    for one, other in zip(values, exchanged):
        torch.testing.assert_close(one, other.flip(3))


def test_a_contrast_of_ones_own_is_localised_too(network, images, rng):
    regions, layer = random_regions(rng), network.features[4]
    leading = network(images).topk(2).indices
    named, own = (localise(network, images, leading, regions, ["gradcam"], [c], layer) for c in ("weighted", weighted))
    assert torch.equal(named.share, own.share)


def test_an_unknown_explainer_is_named(pooled, images):
    with pytest.raises(ValueError, match="unknown explainer 'nonsense'"):
        localise(pooled, images, torch.zeros(4, 2).long(), images[:, 0] > 0, ["nonsense"], ["max"], pooled.features[4])


# --- from the source image to the prepared one ------------------------------------------------------------------


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize(("width", "height"), [(250, 170), (130, 256), (200, 200), (64, 90), (255, 113)])
def test_prepared_pixels_lie_where_the_preprocessing_takes_them_from(width, height, crop):
    """Two ramps as an image: a prepared pixel's colour is the place it came from."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    ramps = np.stack([x, y, 0 * x], -1).astype(np.uint8)
    prepared = images.preprocessing(56, crop)(Image.fromarray(ramps)) * 255
    columns, rows = images.source_pixels(width, height, 56, crop)
    inner = slice(3, -3)  # at the border the filter has fewer pixels to take
    assert np.abs(prepared[0].numpy()[:, inner] - columns[inner]).max() <= 0.76
    assert np.abs(prepared[1].numpy()[inner] - rows[inner, None]).max() <= 0.76
    assert abs((prepared[0].numpy()[:, inner] - columns[inner]).mean()) < 0.15
    assert abs((prepared[1].numpy()[inner] - rows[inner, None]).mean()) < 0.15
    for places, side in ((columns, width), (rows, height)):
        assert places[0] > -0.5 and places[-1] < side - 0.5
        if not crop:
            assert places.mean() == pytest.approx((side - 1) / 2)


def test_a_mask_is_prepared_as_its_image(tmp_path):
    """A mask that is also the image: where the prepared image is bright, the region is."""
    for (width, height), crop in product([(160, 90), (75, 120)], [True, False]):
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[height // 3 : 2 * height // 3, width // 3 : width // 2] = 7
        folder = tmp_path / f"{width}{crop}"
        for place, values, suffix in (("images", np.stack([mask * 36] * 3, -1), "png"), ("parts/masks", mask, "png")):
            (folder / place).mkdir(parents=True)
            Image.fromarray(values).save(folder / place / f"a.{suffix}")
        known = parts.Parts(folder, {"beak": 7}, False, True, {})
        samples = images.Samples((folder / "images" / "a.png",), (0,), ("bird",))
        (region,) = parts.regions(known, samples, [(0, 1)], 48, crop)
        prepared = images.preprocessing(48, crop)(images.decode(samples.paths[0]))[0].numpy()
        assert ((prepared > 0.5) != region).mean() < 0.02
        assert region[prepared > 0.97].all() and not region[prepared < 0.01].any()


# --- the truth of a folder --------------------------------------------------------------------------------------

SIZE = 64


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("birds") / "data"
    settings = {"species_per_family": 3, "train_per_species": 1, "test_per_species": 2, "ambiguity": 0.3}
    generate(folder, image_size=SIZE, seed=4, **settings)
    return folder


def test_regions_of_synthbirds_are_the_parts_as_they_were_drawn(birds):
    """Paint the same individuals again: the drawing's own part numbers are the truth."""
    samples, known = images.read(birds), parts.read(birds, 0.1)
    assert known.masks and known.discriminative
    for offset in (1, 2):  # the next sibling, and the one after it
        pairs = [(label, label // 3 * 3 + (label + offset) % 3) for label in samples.labels]
        regions = parts.regions(known, samples, pairs, SIZE, False)
        for index, (label, pair) in enumerate(zip(samples.labels, pairs)):
            family, k = label // 3, index % 2
            members = species_of(FAMILIES[family], 3)
            generator = np.random.default_rng([4, family, label % 3, 0, k])
            painting = paint_individual(members[label % 3], members, SIZE, 0.3, generator)
            names = cub.discriminative_parts(birds, *pair)
            expected = np.isin(painting.parts, [PART_ID[name] for name in names])
            np.testing.assert_array_equal(regions[index], expected)
            assert expected.any()
            assert not expected[~painting.bird].any()


def test_the_order_of_a_pair_is_of_no_importance_and_one_class_has_no_region(birds):
    samples, known = images.read(birds), parts.read(birds, 0.1)
    pairs = list(combinations(range(12), 2))[: len(samples)]
    there, back = (parts.regions(known, samples, p, 32, False) for p in (pairs, [pair[::-1] for pair in pairs]))
    np.testing.assert_array_equal(there, back)
    assert not parts.regions(known, samples, [(5, 5)] * len(samples), 32, False).any()


@pytest.mark.parametrize("crop", [True, False])
def test_discs_are_scaled_as_a_slow_loop_scales_them(birds, tmp_path, crop):
    """A disc of a tenth of the box's diagonal around each location, pixel by pixel, on pictures that are not square."""
    folder = without(birds, tmp_path, "parts/masks")
    stretched = {}
    for line in (birds / "images.txt").read_text().splitlines()[:6]:
        number, name = line.split()
        Image.open(folder / "images" / name).resize((96, 64)).save(folder / "images" / name)
        stretched[number] = name
    samples, known = images.read(folder, "train"), parts.read(folder, 0.1)
    assert known.discriminative and not known.masks
    chosen = [i for i, path in enumerate(samples.paths) if f"{path.parent.name}/{path.name}" in stretched.values()]
    some = images.Samples(
        tuple(samples.paths[i] for i in chosen), tuple(samples.labels[i] for i in chosen), samples.classes
    )
    pairs = [(label, (label + 1) % 3) for label in some.labels]
    regions = parts.regions(known, some, pairs, 28, crop)
    locations = np.loadtxt(folder / "parts" / "part_locs.txt")
    boxes = np.loadtxt(folder / "bounding_boxes.txt")
    numbers = {name: float(number) for number, name in stretched.items()}
    for path, pair, region in zip(some.paths, pairs, regions):
        number = numbers[f"{path.parent.name}/{path.name}"]
        ((_, _, _, width, height),) = boxes[boxes[:, 0] == number]
        names = cub.discriminative_parts(folder, *pair)
        wanted = [
            (x, y)
            for image, part, x, y, visible in locations
            if image == number and visible and int(part) in [PART_ID[name] for name in names]
        ]
        for row, column in product(range(28), range(28)):
            # 28 is cut out of 32 for the short side; or both sides are resized to 28.
            if crop:
                x, y = (column + 0.5 + 10) * 96 / 48 - 0.5, (row + 0.5 + 2) * 64 / 32 - 0.5
            else:
                x, y = (column + 0.5) * 96 / 28 - 0.5, (row + 0.5) * 64 / 28 - 0.5
            inside = any(math.hypot(x - a, y - b) <= 0.1 * math.hypot(width, height) for a, b in wanted)
            assert region[row, column] == inside


def test_discs_lie_on_the_masks(birds, tmp_path):
    """Both truths of SynthBirds agree: a small disc around a part's location is mostly that part."""
    samples = images.read(birds)
    pairs = [(label, label // 3 * 3 + (label + 1) % 3) for label in samples.labels]
    masks = parts.regions(parts.read(birds, 0.1), samples, pairs, SIZE, False)
    known = parts.read(without(birds, tmp_path, "parts/masks"), 0.05)
    discs = parts.regions(replace(known, folder=birds), samples, pairs, SIZE, False)
    assert masks[discs].mean() > 0.7


def test_without_attributes_the_region_is_the_whole_birds_parts_for_any_pair(birds, tmp_path):
    samples, known = images.read(birds), parts.read(without(birds, tmp_path, "attributes"), 0.1)
    assert not known.discriminative
    regions = parts.regions(replace(known, folder=birds), samples, [(0, 0)] * len(samples), SIZE, False)
    for path, region in zip(samples.paths, regions):
        mask = np.asarray(Image.open(birds / "parts" / "masks" / path.parent.name / f"{path.stem}.png"))
        np.testing.assert_array_equal(region, mask > 0)


def without(folder, tmp_path, *removed):
    """A copy of a folder that lacks some of its files and folders; the pictures are copies too."""
    copy = tmp_path / "copy"
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(name == r or name.startswith(f"{r}/") for r in removed):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(path.read_bytes())
    return copy


@pytest.mark.parametrize(
    ("removed", "named"),
    [
        (["parts"], r"parts\.txt is missing"),
        (["parts/masks", "parts/part_locs.txt"], r"part_locs\.txt is missing: localisation needs part locations"),
        (["parts/masks", "bounding_boxes.txt"], r"bounding_boxes\.txt is missing"),
    ],
)
def test_a_folder_without_parts_is_refused_in_one_line(birds, tmp_path, removed, named):
    folder = without(birds, tmp_path, *removed)
    with pytest.raises(ValueError, match=named) as error:
        parts.read(folder, 0.1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "edit", "named"),
    [
        ("parts/part_locs.txt", lambda lines: ["1 1 here 2 1", *lines[1:]], r"part_locs\.txt, line 1: expected"),
        ("parts/part_locs.txt", lambda lines: [*lines[:2], "1 3"], r"part_locs\.txt, line 3: expected"),
        ("bounding_boxes.txt", lambda lines: lines[1:], r"bounding_boxes\.txt has no box .* of image 1"),
        ("bounding_boxes.txt", lambda lines: ["1 2 3", *lines[1:]], r"bounding_boxes\.txt has no box .* of image 1"),
    ],
)
def test_a_broken_list_of_parts_is_named_with_its_line(birds, tmp_path, file, edit, named):
    folder = without(birds, tmp_path, "parts/masks")
    lines = (folder / file).read_text().splitlines()
    (folder / file).write_text("\n".join(edit(lines)) + "\n")
    with pytest.raises(ValueError, match=named):
        parts.read(folder, 0.1)


def test_an_image_without_a_mask_or_a_location_is_named(birds, tmp_path):
    folder = without(birds, tmp_path)
    samples = images.read(folder)
    pairs = [(0, 1)] * len(samples)
    mask = folder / "parts" / "masks" / samples.paths[3].parent.name / f"{samples.paths[3].stem}.png"
    mask.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=f"{mask.name} cannot be read"):
        parts.regions(parts.read(folder, 0.1), samples, pairs, SIZE, False)
    mask.unlink()
    with pytest.raises(ValueError, match=f"{mask.name} cannot be read"):
        parts.regions(parts.read(folder, 0.1), samples, pairs, SIZE, False)
    known = parts.read(folder, 0.1)
    with pytest.raises(ValueError, match=f"no line for .*{samples.paths[0].name}"):
        parts.regions(replace(known, masks=False), samples, pairs, SIZE, False)


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan, math.inf])
def test_a_radius_must_be_positive(birds, radius):
    with pytest.raises(ValueError, match="radius"):
        parts.read(birds, radius)
