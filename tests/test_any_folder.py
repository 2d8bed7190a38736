"""Whatever lies in a folder of images: samples that can be used, or one line that names the file and what is wrong."""

import io
import json
import os

import numpy as np
import pytest
import torch
from generated import cases, outcome
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cxlib.datasets import cub, images
from cxlib.metrics import parts

FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "ICO", "TGA", "JPEG2000")
MODES = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I;16",
    "I",
    "F",
)
SIDES = st.integers(1, 12)
SIZES = st.tuples(SIDES, SIDES) | st.sampled_from([(1, 1), (4000, 1), (1, 4000), (300, 2), (3, 200)])
#: What stands in a line of a list in place of what should.
ODD_LINES = st.sampled_from(
    [
        b"",
        b" ",
        b"1",
        b"x y",
        b"0 1",
        b"-1 1",
        b"1 ",
        b"99999999999999999999 1",
        b"2 nan",
        b"\xff\xfe 1",
        b"1 1 1 1 1",
        b"\x00",
        b"1 1 nan 2 1",
        b"1 1 inf 2 1",
        b"2 1 1e400 2 1",
        b"1 0 0 nan 1",
        b"1 0 0 -1 1",
        b"\xc2\xb2 1",
        b"1 ../../x",
        b"nan nan",
    ]
) | st.binary(max_size=12)


@pytest.fixture(scope="module", autouse=True)
def small():
    """What damage makes of a size must not fill the memory."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
        yield


@st.composite
def pictures(draw):
    """The bytes of a picture of any kind, whole or damaged."""
    size, mode, kind = draw(SIZES), draw(st.sampled_from(MODES)), draw(st.sampled_from(FORMATS))
    noise = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    options = {}
    exif = Image.Exif()
    exif[0x0112] = draw(st.integers(0, 9))
    if draw(st.booleans()):
        options["exif"] = draw(st.sampled_from([exif.tobytes(), b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff"]))
    if draw(st.booleans()):
        options |= {"save_all": True, "append_images": [Image.new("RGB", size, "red")]}
    file = io.BytesIO()
    try:
        picture = Image.fromarray(noise)
        if mode in ("I;16", "LA", "La", "PA"):
            picture = picture.convert("L").convert(mode)
        elif mode == "LAB":  # what convert makes of it has a fourth byte that nobody set: a PNG of it has any length
            picture = Image.merge(mode, picture.split())
        else:
            picture = picture.convert(mode)
        picture.save(file, kind, **options)
    except (OSError, ValueError, KeyError, TypeError):  # this format has not all modes
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "PNG")
    return draw(damaged(file.getvalue()))


@st.composite
def damaged(draw, data):
    """Bytes as they are, or cut, or with some of them changed."""
    way = draw(st.sampled_from(["whole", "whole", "whole", "cut", "changed", "empty", "text"]))
    place = draw(st.integers(0, max(0, len(data) - 1)))
    if way == "changed":
        return data[:place] + draw(st.binary(min_size=1, max_size=4)) + data[place + 1 :]
    return {"whole": data, "cut": data[:place], "empty": b"", "text": b"no picture"}[way]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loader", [images.decode, images.as_shown], ids=["of a data set", "of ones own"])
def test_a_picture_becomes_numbers_in_the_unit_range_or_is_named(tmp_path, loader):
    path = tmp_path / "picture"

    @cases(400)
    @given(pictures(), st.integers(1, 9), st.booleans())
    def is_read(data, size, crop):
        path.write_bytes(data)
        picture = outcome(loader, path, named=path)
        x = picture and outcome(images.preprocessing(size, crop), picture)
        if x is not None:
            assert picture.mode == "RGB"
            assert (x.shape, x.dtype) == ((3, size, size), torch.float32)
            assert ((x >= 0) & (x <= 1)).all()

    is_read()


@pytest.fixture
def birds(tmp_path):
    """Two classes of two birds in CUB's layout, and its lists by name."""
    names = ["001.a/one.jpg", "001.a/two.jpg", "002.b/one.jpg", "002.b/two.jpg"]
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 5)).save(tmp_path / "images" / name)
    each = {
        "images.txt": names,
        "classes.txt": ["001.a", "002.b"],
        "image_class_labels.txt": ["1", "1", "2", "2"],
        "train_test_split.txt": ["0", "1", "0", "1"],
        "bounding_boxes.txt": ["0.0 0.0 6.0 5.0"] * 4,
        "parts/parts.txt": ["beak", "left wing"],
        "attributes/attributes.txt": ["has_bill_shape::dagger", "has_wing_color::blue"],
    }
    lists = {name: [f"{k} {line}".encode() for k, line in enumerate(lines, 1)] for name, lines in each.items()}
    lists["parts/part_locs.txt"] = [f"{i} {p} 2.5 1.5 {(i + p) % 2}".encode() for i in range(1, 5) for p in (1, 2)]
    lists["attributes/class_attribute_labels_continuous.txt"] = [b"90.0 10.0", b"5.0 12.0"]
    for name in ("parts", "attributes"):
        (tmp_path / name).mkdir()
    return tmp_path, lists


@st.composite
def edited(draw, lists):
    """The lists as files, in one or two of which lines are lost, come twice, change places or are something else."""
    edited = dict(lists)
    for name in draw(st.lists(st.sampled_from(sorted(lists)), max_size=2)):
        lines = list(edited[name])
        for _ in range(draw(st.integers(1, 2))):
            place = draw(st.integers(0, max(0, len(lines) - 1)))
            new = draw(st.sampled_from([[], lines[place : place + 1] * 2, [draw(ODD_LINES)]]))
            lines[place : place + 1] = new
        edited[name] = lines
    gone = draw(st.sampled_from([None, None, None, *sorted(lists)]))
    end = draw(st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
    return {name: end.join(lines) + end for name, lines in edited.items() if name != gone}


def usable(samples):
    """Assert what everything behind a reader relies on."""
    assert len(samples.paths) == len(samples.labels) > 0
    assert all(0 <= label < len(samples.classes) for label in samples.labels)
    assert all(path.exists() for path in samples.paths)


def test_lists_in_the_layout_of_cub_give_samples_and_regions_or_are_named(birds):
    folder, lists = birds

    @cases(400)
    @given(edited(lists), st.sampled_from(["train", "test"]), st.booleans())
    def is_read(files, split, crop):
        for name in lists:
            (folder / name).unlink(missing_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        samples = outcome(cub.read, folder, split, named=folder)
        if samples is None:
            return
        usable(samples)
        known = outcome(parts.read, folder, 0.2, named=folder)
        pairs = [(0, len(samples.classes) - 1)] * len(samples)
        region = known and outcome(parts.regions, known, samples, pairs, 7, crop, named=folder)
        if region is not None:
            assert (region.shape, region.dtype) == ((len(samples), 7, 7), bool)

    is_read()


NAMES = st.sampled_from(
    [
        b"a",
        b"b",
        b"train",
        b"test",
        b"val",
        b"n01440764",
        b"n02102040",
        b"n99999999",
        b"\xff\xfe",
        "é".encode(),
        b" ",
        b"meta",
        b"images",
        b"food-101",
        b".hidden",
        b"x.jpg",
        b"a" * 250,
    ]
)
FILES = st.sampled_from(
    [b"0.jpg", b"1.PNG", b"\xff.jpeg", b".jpg", b"notes.txt", b"0.jpg.part", b"folder.jpg", b"._0.jpg"]
)


@cases(200)
@given(st.dictionaries(st.tuples(NAMES, NAMES) | st.tuples(NAMES), st.lists(FILES, max_size=3), max_size=5))
def test_class_folders_give_samples_or_are_named(tmp_path_factory, tree):
    root = tmp_path_factory.mktemp("folders")
    for folders, files in tree.items():
        place = root.joinpath(*map(os.fsdecode, folders))
        place.mkdir(parents=True, exist_ok=True)
        for file in map(os.fsdecode, files):
            (place / file).mkdir(exist_ok=True) if file.startswith("folder") else (place / file).touch()
    for split in ("train", "test"):
        samples = outcome(images.read, root, split, named=root)
        if samples is not None:
            usable(samples)
            assert all(path.is_file() for path in samples.paths)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.sampled_from(["a/1", "b/1", "a/2", "../x"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c", ""]), inner, max_size=3)
    ),
    max_leaves=6,
)


def test_the_lists_of_food101_give_samples_or_are_named(tmp_path):
    for name in ("a/1", "b/1"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / f"{name}.jpg").touch()
    (tmp_path / "meta").mkdir()
    whole = {"a": ["a/1"], "b": ["b/1"]}

    @cases(200)
    @given(
        st.lists(st.sampled_from([b"a", b"b", b"c", b"", b"\xff", b"a b"]), max_size=4),
        st.just(whole) | JSON | st.dictionaries(st.sampled_from("ab"), st.lists(st.sampled_from(["a/1", "b/1"]))),
        st.data(),
    )
    def is_read(classes, listed, data):
        (tmp_path / "meta" / "classes.txt").write_bytes(b"\n".join(classes))
        (tmp_path / "meta" / "test.json").write_bytes(data.draw(damaged(json.dumps(listed).encode())))
        samples = outcome(images.read, tmp_path, "test", named=tmp_path)
        if samples is not None:
            usable(samples)
            assert len(set(samples.classes)) == len(samples.classes)

    is_read()
