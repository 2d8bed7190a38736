"""A map over its image, against the closed form, and the picture that asks why this class and not that one."""

from itertools import combinations, pairwise, product

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.transforms import Bbox
from PIL import Image
from torch.nn import functional as F

from cxlib import overlay, pictures
from cxlib.overlay import AGAINST, FOR, blended

NAMES = ("marsh heron", "ashen heron")
LIKELY = {"marsh heron": 0.71, "ashen heron": 0.2, "mere duck": 0.05, "barred finch": 0.0002}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def image(rng):
    return rng.random((6, 8, 3))


@pytest.fixture
def values(rng):
    return rng.normal(size=(6, 8))


def grey(image):
    """Luminance as Pillow has it, in eight bits."""
    return np.asarray(Image.fromarray((255 * image).round().astype(np.uint8)).convert("L")) / 255


def test_a_map_of_zeros_leaves_the_image_in_grey(image):
    seen = blended(image, np.zeros((6, 8)))
    assert (np.ptp(seen, axis=-1) == 0).all()
    np.testing.assert_allclose(seen[..., 0], grey(image), atol=1.5 / 255)


def test_the_strongest_values_are_the_full_colours_over_any_image(image):
    values = np.where(np.arange(8) < 4, 2.0, -2.0) * np.ones((6, 1))
    for limit in (None, 2, 0.5):
        seen = blended(image, values, limit)
        np.testing.assert_allclose(seen[:, :4], np.broadcast_to(to_rgb(FOR), (6, 4, 3)))
        np.testing.assert_allclose(seen[:, 4:], np.broadcast_to(to_rgb(AGAINST), (6, 4, 3)))


def test_every_pixel_is_the_mixture_that_its_value_says(image, values):
    without = blended(image, np.zeros((6, 8)))
    for opacity in (1, 0.6):
        seen = blended(image, values, 1.5, opacity)
        for place in np.ndindex(6, 8):
            strength = opacity * min(abs(values[place]) / 1.5, 1)
            colour = np.array(to_rgb(FOR if values[place] > 0 else AGAINST))
            np.testing.assert_allclose(seen[place], without[place] + strength * (colour - without[place]))


def test_a_change_of_sign_exchanges_the_colours(image, values, monkeypatch):
    opposite = blended(image, -values)
    assert np.abs(opposite - blended(image, values)).max() > 0.1
    monkeypatch.setattr(overlay, "FOR", AGAINST)
    monkeypatch.setattr(overlay, "AGAINST", FOR)
    np.testing.assert_allclose(blended(image, values), opposite)


def test_a_few_extreme_pixels_do_not_pale_the_rest(rng):
    values = rng.uniform(-1, 1, (100, 100))
    values[50, :20] = 1000
    black = np.zeros((100, 100, 3))
    assert blended(black, values).mean() > 0.9 * blended(black, values, 1.0).mean()
    assert blended(black, values, 1000.0).mean() < 0.05 * blended(black, values).mean()


def test_a_map_that_is_zero_nearly_everywhere_is_seen():
    values = np.zeros((100, 100))
    values[50, 50] = 1e-9
    seen = blended(np.zeros((100, 100, 3)), values)
    np.testing.assert_allclose(seen[50, 50], to_rgb(FOR))
    assert np.count_nonzero(seen.any(-1)) == 1


def test_channels_lie_first_or_last_and_tensors_are_taken(image, values):
    seen = blended(image, values)
    np.testing.assert_array_equal(blended(image.transpose(2, 0, 1), values), seen)
    np.testing.assert_array_equal(blended(torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(values)), seen)


@pytest.mark.parametrize("size", [(3, 4), (1, 1), (7, 2), (6, 8)])
def test_a_layers_map_is_resized_as_explain_does(rng, size):
    values = rng.normal(size=size)
    wanted = F.interpolate(torch.from_numpy(values)[None, None], (6, 8), mode="bilinear", align_corners=True)[0, 0]
    np.testing.assert_allclose(overlay.resized(values, (6, 8)), wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("image", "values", "limit", "named"),
    [
        (np.ones((4, 5)), np.ones((4, 5)), None, r"\(4, 5\)"),
        (np.ones((4, 5, 4)), np.ones((4, 5)), None, r"\(4, 5, 4\)"),
        (np.full((4, 5, 3), 1.01), np.ones((4, 5)), None, "normalisation"),
        (np.full((4, 5, 3), np.nan), np.ones((4, 5)), None, r"lies in \[0, 1\]"),
        (np.ones((4, 5, 3)), np.ones((2, 4, 5)), None, r"\(2, 4, 5\)"),
        (np.ones((4, 5, 3)), np.full((4, 5), np.inf), None, "finite"),
        (np.ones((4, 5, 3)), np.ones((4, 5)), 0.0, "positive, not 0.0"),
    ],
)
def test_what_is_no_image_or_map_is_one_line(image, values, limit, named):
    with pytest.raises(ValueError, match=named) as caught:
        blended(image, values, limit)
    assert "\n" not in str(caught.value)


# --- the whole picture ------------------------------------------------------------------------------------------

GRIDS = [*product((1, 2, 3), (1, 2, 3), (1, 2)), (4, 1, 1), (5, 1, 1), (7, 1, 1), (9, 1, 1), (5, 2, 1), (1, 6, 2)]


@pytest.mark.parametrize("shape", GRIDS)
def test_panels_fill_a_rectangle_whose_lines_have_something_in_common(shape):
    places = pictures.arranged(shape)
    rows, columns = places.shape
    assert sorted(places.flat) == list(range(np.prod(shape)))
    assert rows <= columns
    if sum(size > 1 for size in shape) > 1:
        of = np.stack(np.unravel_index(places, shape), -1)
        assert any((of[:, :, axis] == of[:, :1, axis]).all() for axis in range(3))
        assert all(
            (of[:, :, axis] == of[:, :1, axis]).all() or (of[:, :, axis] == of[:1, :, axis]).all() for axis in range(3)
        )


def some_maps(rng, shape, size=(6, 8)):
    return rng.normal(size=(*shape, *size))


def drawn(rng, shape, names=NAMES, likely=LIKELY, maps=None):
    explainers = ["gradcam", "xgradcam", "lrp", "fullgrad", "gradient", "layercam", "smoothgrad"][: shape[0]]
    contrasts = ["weighted", "original", "max"][: shape[1]]
    maps = some_maps(rng, shape) if maps is None else maps
    return pictures.figure(rng.random((6, 8, 3)), maps, names, likely, explainers, contrasts, "a network, a layer")


def texts(figure):
    return [text.get_text() for text in figure.texts]


def panels(figure):
    """Pixels of the photograph and of the maps, without the strip of colours."""
    pixels = [np.asarray(axis.images[0].get_array()) for axis in figure.axes if axis.images]
    return [each for each in pixels if each.shape == (6, 8, 3)]


def test_each_panel_is_its_map_over_the_image_under_its_names(rng):
    maps = some_maps(rng, (2, 3, 2))
    figure = drawn(rng, (2, 3, 2), maps=maps)
    photograph, *rest = panels(figure)
    wanted = {
        (e, c, r): blended(photograph, maps[e, c, r] * (1 if r == 0 else -1), opacity=pictures.OPACITY)
        for e, c, r in np.ndindex(2, 3, 2)
    }
    assert len(rest) == 12
    for key, pixels in wanted.items():
        assert sum(np.allclose(pixels, seen) for seen in rest) == 1, key
    for name in ("GradCAM", "XGradCAM"):
        assert texts(figure).count(name) == 6
    assert sum("why marsh" in text for text in texts(figure)) == 6
    assert sum(text.startswith("original") for text in texts(figure)) == 4


def test_what_speaks_for_the_second_class_is_blue_in_the_maps_of_both(rng):
    """Two maps of one pixel of truth: for the second class, against the first."""
    maps = np.zeros((1, 1, 2, 6, 8))
    maps[0, 0, :, 2, 3] = -1, 5
    maps[0, 0, 1, 0, 0] = -5
    _, of_first, of_second = panels(drawn(rng, (1, 1, 2), maps=maps))
    for seen in (of_first, of_second):
        assert seen[2, 3, 2] > seen[2, 3, 0] + 0.2, "blue"
    assert of_second[0, 0, 0] > of_second[0, 0, 2] + 0.2, "orange: for the first class's side"


def test_opposite_maps_are_shown_once(rng):
    one = some_maps(rng, (2, 1, 1))
    both = np.concatenate([one, -one * (1 + 1e-6)], 2)
    assert len(panels(drawn(rng, (2, 1, 2), maps=both))) == 1 + 2
    both[1, 0, 1, 0, 0] += 0.5
    assert len(panels(drawn(rng, (2, 1, 2), maps=both))) == 1 + 4


def test_opposites_are_judged_by_each_maps_own_size(rng):
    """A gradient's tiny values beside those of a class activation map."""
    maps = some_maps(rng, (2, 1, 2)) * np.array([1e3, 1e-3]).reshape(2, 1, 1, 1, 1)
    maps[0, 0, 1] = -maps[0, 0, 0]
    assert not pictures.opposite(maps)


def test_question_probabilities_and_colours_are_written_with_the_classes_names(rng):
    figure = drawn(rng, (1, 1, 1))
    said = texts(figure)
    assert "".join(said).startswith("Why marsh heron and not ashen heron?")
    for text in ("71.0 %", "20.0 %", "5.0 %", "< 0.1 %", "for marsh heron", "for ashen heron", "a network, a layer"):
        assert text in said
    bars = [axis.patches[1].get_width() for axis in figure.axes if len(axis.patches) == 2]
    assert bars == list(LIKELY.values())
    colours = {text.get_text(): text.get_color() for text in figure.texts}
    assert (colours["for marsh heron"], colours["for ashen heron"]) == (FOR, AGAINST)


LONG = ("Agelaius phoeniceus (Red-winged Blackbird of the marshes)", "W" * 90)


@pytest.mark.parametrize("names", [NAMES, LONG, ("$a_1$ & %", "100 $")], ids=["short", "long", "signs"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 2), (2, 3, 2), (5, 1, 1)])
def test_nothing_lies_over_anything_else_or_outside_and_no_corner_is_empty(rng, shape, names):
    likely = dict.fromkeys(names, 0.3) | {"mere duck": 0.2, "barred finch": 0.1, "bald eagle": 0.05}
    figure = drawn(rng, shape, names, likely)
    picture = pictures.rendered(figure)
    width, height = picture.size
    written = [text.get_window_extent() for text in figure.texts if text.get_text().strip()]
    boxes = [*written, *(axis.get_window_extent() for axis in figure.axes)]
    for box in boxes:
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) > 5, box
    for one, other in combinations(boxes, 2):
        shared = Bbox.intersection(one, other)
        assert shared is None or min(shared.width, shared.height) < 2, (one, other)
    ink = np.asarray(picture.convert("L")) < 250
    corners = product((slice(height // 4), slice(-height // 4, None)), (slice(width // 4), slice(-width // 4, None)))
    for rows, columns in corners:
        assert ink[rows, columns].mean() > 0.005, (rows, columns)


def test_the_same_picture_is_the_same_pixels(rng):
    maps, image = some_maps(rng, (1, 1, 2)), rng.random((6, 8, 3))
    first, second = (pictures.why_not(image, maps, NAMES, LIKELY) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert first.mode == "RGB"


@pytest.mark.parametrize("shape", [(), (1,), (2,), (1, 2), (1, 1, 2)])
def test_maps_are_taken_as_explain_gives_them(rng, shape):
    maps, image = torch.from_numpy(some_maps(rng, shape, (3, 4))), rng.random((3, 6, 8))
    figure = pictures.figure(image, maps, NAMES)
    assert len(panels(figure)) == 1 + int(np.prod(shape))


@pytest.mark.parametrize("shape", [(3,), (2, 2), (2, 1, 1), (1, 1, 0), (1, 1, 1, 1)])
def test_maps_that_do_not_fit_their_names_are_one_line(rng, shape):
    with pytest.raises(ValueError, match="for 1 explainers and 1 contrasts"):
        pictures.figure(rng.random((6, 8, 3)), some_maps(rng, shape), NAMES)


def test_words_are_shortened_to_their_room():
    for width, words in product((0.3, 0.7, 1.5), ("barred finch of the marshes", "W" * 30)):
        kept = pictures.shortened(words, width, 9)
        assert kept == words or (kept.endswith("…") and words.startswith(kept[:-1].rstrip()))
        assert pictures.width_of(kept, 9) <= width
    lengths = [len(pictures.shortened("barred finch", width, 9)) for width in (0.2, 0.4, 0.6, 2)]
    assert all(less < more for less, more in pairwise(lengths))
    assert pictures.shortened("barred finch", 2, 9) == "barred finch"
