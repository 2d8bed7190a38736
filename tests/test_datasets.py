"""The readers number classes as networks do, break with one clear line, and prepare images as published."""

import json
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torchvision.datasets import Food101, ImageFolder
from torchvision.models import ResNet18_Weights
from torchvision.transforms import InterpolationMode, functional
from torchvision.transforms._presets import ImageClassification

from cxlib.datasets import classfolders, cub, food101, imagenet, images
from cxlib.datasets.samples import Samples
from cxlib.synthbirds.species import generate

CATEGORIES = ResNet18_Weights.DEFAULT.meta["categories"]
KNOWN = {"n01440764": 0, "n01443537": 1, "n02056570": 145, "n02123045": 281, "n03637318": 619, "n04557648": 898}
NAMES = ("tench", "goldfish", "king penguin", "tabby", "lampshade", "water bottle")


def picture(path, size=(20, 14), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


# Ids have gaps and stand in no order; image 9 comes first in images.txt, and class 7 before class 3.
LISTS = {
    "classes.txt": "7 007.Parakeet_Auklet\n3 003.Sooty_Albatross\n",
    "images.txt": "9 b/one.jpg\n2 a/two.jpg\n5 b/three.jpg\n4 a/four.jpg\n",
    "image_class_labels.txt": "2 3\n4 3\n5 7\n9 7\n",
    "train_test_split.txt": "2 0\n4 1\n5 0\n9 0\n",
}


@pytest.fixture
def birds(tmp_path):
    folder = tmp_path / "birds"
    for seed, name in enumerate(("b/one", "a/two", "b/three", "a/four")):
        picture(folder / "images" / f"{name}.jpg", seed=seed)
    for name, text in LISTS.items():
        (folder / name).write_text(text)
    return folder


def edit(folder, name, old, new):
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


# --- CUB's layout -----------------------------------------------------------------------------------------------


def test_cub_keeps_the_order_of_images_txt_and_numbers_classes_by_their_place(birds):
    test, train = cub.read(birds, "test"), cub.read(birds, "train")
    assert test.paths == tuple(birds / "images" / name for name in ("b/one.jpg", "a/two.jpg", "b/three.jpg"))
    assert test.labels == (0, 1, 0)
    assert (train.paths, train.labels) == ((birds / "images" / "a/four.jpg",), (1,))
    assert test.classes == train.classes == ("Parakeet_Auklet", "Sooty_Albatross")
    assert len(test) == 3


def test_synthbirds_is_read_as_cub(tmp_path):
    generate(tmp_path, species_per_family=2, train_per_species=2, test_per_species=1, image_size=24)
    test, train = images.read(tmp_path, "test"), images.read(tmp_path, "train")
    assert (len(test), len(train), len(test.classes)) == (8, 16, 8)
    for samples in (test, train):
        folders = [path.parent.name.split(".")[1] for path in samples.paths]
        assert folders == [samples.classes[label] for label in samples.labels]
    assert not set(test.paths) & set(train.paths)


@pytest.mark.parametrize("name", LISTS)
def test_missing_list_is_named(birds, name):
    (birds / name).unlink()
    with pytest.raises(ValueError, match=re.escape(f"{birds / name} is missing")):
        images.read(birds)


@pytest.mark.parametrize("name", LISTS)
def test_line_without_a_value_is_named(birds, name):
    edit(birds, name, LISTS[name].splitlines()[1], LISTS[name].split()[2])
    with pytest.raises(ValueError, match=re.escape(f"{birds / name}, line 2")):
        images.read(birds)


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"9 1\nfive 1\n", ", line 2: the id 'five' is not a number"),
        (b"9 1\n4 1\n9 1\n", ", line 3: the id 9 has a line before"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "is not a text file"),
    ],
)
def test_list_of_something_else_is_named(birds, name, text, named):
    (birds / name).write_bytes(text)
    with pytest.raises(ValueError, match=re.escape(f"{birds / name}") + ".*" + re.escape(named)) as caught:
        images.read(birds)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["image_class_labels.txt", "train_test_split.txt"])
def test_image_that_images_txt_does_not_know_is_named(birds, name):
    """Else an images.txt that was cut short would pass for a smaller data set."""
    edit(birds, name, LISTS[name], LISTS[name] + "12 1\n")
    with pytest.raises(ValueError, match=re.escape(f"{birds / name} has image 12, which images.txt lacks")):
        images.read(birds)


def test_image_that_is_on_neither_side_is_named(birds):
    edit(birds, "train_test_split.txt", "5 0", "5 2")
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=r"train_test_split\.txt: image 5 has '2', not 0 or 1"):
            images.read(birds, split)


def test_image_on_disk_that_no_list_names_is_left_out(birds):
    picture(birds / "images" / "a" / "five.jpg")
    assert len(images.read(birds, "test")) == 3


def test_listed_image_that_is_absent_is_named(birds):
    (birds / "images" / "a" / "two.jpg").unlink()
    with pytest.raises(ValueError, match=re.escape(str(birds / "images" / "a" / "two.jpg"))):
        images.read(birds)


@pytest.mark.parametrize(("name", "line"), [("image_class_labels.txt", "5 7\n"), ("train_test_split.txt", "5 0\n")])
def test_image_without_a_label_or_a_side_is_named(birds, name, line):
    edit(birds, name, line, "")
    with pytest.raises(ValueError, match=re.escape(f"{birds / name} has no line for image 5 (b/three.jpg)")):
        images.read(birds)


@pytest.mark.parametrize("label", ["8", "auklet"])
def test_unknown_class_is_named(birds, label):
    edit(birds, "image_class_labels.txt", "5 7", f"5 {label}")
    with pytest.raises(ValueError, match=rf"image_class_labels\.txt: image 5 has unknown class {label}"):
        images.read(birds)


@pytest.mark.parametrize(("split", "side", "other"), [("test", "0", "1"), ("train", "1", "0")])
def test_empty_side_is_named(birds, split, side, other):
    edit(birds, "train_test_split.txt", f" {side}\n", f" {other}\n")
    with pytest.raises(ValueError, match=rf"train_test_split\.txt leaves the {split} side empty"):
        images.read(birds, split)


def test_every_complaint_is_one_line(birds, tmp_path):
    edit(birds, "train_test_split.txt", " 0\n", " 1\n")
    for folder in (birds, tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError) as caught:
            images.read(folder)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)


# --- ImageNet's layout ------------------------------------------------------------------------------------------


@pytest.fixture(params=[".", "val"])
def photographs(request, tmp_path):
    for wnid in reversed(KNOWN):
        picture(tmp_path / request.param / wnid / "ILSVRC2012_val_00000293.JPEG")
    (tmp_path / request.param / "n02123045" / "README.md").write_text("no image")
    picture(tmp_path / request.param / "n02123045" / "0.png")
    return tmp_path


def test_a_subset_of_imagenet_keeps_torchvisions_thousand_indices(photographs):
    samples = images.read(photographs, "test")
    wnids = [path.parent.name for path in samples.paths]
    assert wnids == sorted([*KNOWN, "n02123045"])
    assert samples.labels == tuple(KNOWN[wnid] for wnid in wnids)
    assert list(dict.fromkeys(CATEGORIES[label] for label in samples.labels)) == list(NAMES)
    assert next(path.name for path in samples.paths if path.parent.name == "n02123045") == "0.png"


def test_imagenets_training_images_are_those_of_train(tmp_path):
    for split, wnids in (("train", ("n01440764", "n04557648")), ("val", ("n04557648",))):
        for wnid in wnids:
            picture(tmp_path / split / wnid / f"{split}.JPEG")
    read = {split: images.read(tmp_path, split) for split in ("train", "test")}
    assert [path.name for path in read["train"].paths] == ["train.JPEG"] * 2
    assert [path.name for path in read["test"].paths] == ["val.JPEG"]
    assert (read["train"].labels, read["test"].labels) == ((0, 898), (898,))


def test_imagenet_without_a_side_to_train_on_says_so(photographs):
    assert len(images.read(photographs, "test")) == len(KNOWN) + 1
    with pytest.raises(ValueError, match=re.escape(f"{photographs} has no train/ with folders n01440764")):
        images.read(photographs, "train")


def test_imagenets_classes_are_torchvisions(photographs):
    classes = imagenet.read(photographs).classes
    # torchvision tells the two cranes and the two maillots apart.
    renamed = {134: "crane", 517: "crane", 638: "maillot", 639: "maillot"}
    expected = [renamed.get(index, name) for index, name in enumerate(CATEGORIES)]
    assert [renamed.get(index, name) for index, name in enumerate(classes)] == expected


def test_unknown_wnid_is_named(photographs):
    base = imagenet.root(photographs)
    picture(base / "n00000001" / "0.png")
    with pytest.raises(ValueError, match=re.escape(str(base / "n00000001"))):
        images.read(photographs)


def test_class_folders_without_images_are_an_error(tmp_path):
    (tmp_path / "n01440764").mkdir()
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} holds class folders but no images")):
        images.read(tmp_path)


def test_folder_without_wnids_is_an_error(tmp_path):
    (tmp_path / "tench").mkdir()
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        imagenet.read(tmp_path)
    with pytest.raises(ValueError, match="neither CUB's layout"):
        images.read(tmp_path)


# --- Food-101's layout, and one folder a class -------------------------------------------------------------------

DISHES = ("tiramisu", "apple_pie", "sushi")


@pytest.fixture(params=[".", "food-101"])
def food(request, tmp_path):
    base = tmp_path / request.param
    (base / "meta").mkdir(parents=True)
    # In no order, as any list may be.
    (base / "meta" / "classes.txt").write_text("\n".join(DISHES) + "\n")
    for split, numbers in (("train", (3, 1)), ("test", (2,))):
        lists = {dish: [f"{dish}/{10 * place + number}" for number in numbers] for place, dish in enumerate(DISHES)}
        (base / "meta" / f"{split}.json").write_text(json.dumps(lists))
        for names in lists.values():
            for name in names:
                picture(base / "images" / f"{name}.jpg")
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
def test_food101_is_read_as_torchvision_reads_it(food, split):
    samples = images.read(food, split)
    base = food101.root(food)
    (food / "root").mkdir()
    (food / "root" / "food-101").symlink_to(base.resolve())
    theirs = Food101(food / "root", split)
    assert samples.classes == tuple(theirs.classes)
    assert samples.labels == tuple(theirs._labels)
    assert [path.relative_to(base / "images") for path in samples.paths] == [
        path.relative_to(food / "root" / "food-101" / "images") for path in theirs._image_files
    ]


def test_broken_food101_is_named(food):
    base = food101.root(food)
    (base / "images" / "sushi" / "22.jpg").unlink()
    with pytest.raises(ValueError, match=r"22\.jpg is listed in test\.json but is not there"):
        images.read(food)
    for content in ("[", '{"pizza": ["pizza/1"]}', "3", "{}"):
        (base / "meta" / "test.json").write_text(content)
        with pytest.raises(ValueError, match=r"test\.json (is missing or broken|lists no image)") as caught:
            images.read(food)
        assert "\n" not in str(caught.value)


def test_class_folders_are_read_as_torchvision_reads_them(tmp_path):
    for split in ("train", "test"):
        for name in ("truck", "airplane", "frog"):
            for number in range(2):
                picture(tmp_path / split / name / f"{number:04}.jpg")
    for folder, split in ((tmp_path, "test"), (tmp_path, "train"), (tmp_path / "test", "test")):
        samples = images.read(folder, split)
        theirs = ImageFolder(tmp_path / split)
        assert samples.classes == tuple(theirs.classes) == ("airplane", "frog", "truck")
        assert [(str(p), label) for p, label in zip(samples.paths, samples.labels)] == theirs.samples


def test_class_folders_that_cannot_be_used_are_named(tmp_path):
    picture(tmp_path / "test" / "frog" / "0.jpg")
    with pytest.raises(ValueError, match="nor does it hold a folder of images for each class"):
        images.read(tmp_path)  # one class is no choice
    with pytest.raises(ValueError, match="holds no class folders with images"):
        classfolders.read(tmp_path)
    picture(tmp_path / "test" / "truck" / "0.jpg")
    with pytest.raises(ValueError, match="has no train/ beside a test/: its images can be tested"):
        images.read(tmp_path, "train")


@pytest.mark.parametrize("side", ["train", "test"])
def test_a_class_that_one_side_lacks_is_named_whichever_side_is_read(tmp_path, side):
    """Numbered by side, the class behind it would have two labels."""
    other = {"train": "test", "test": "train"}[side]
    for folder, names in ((side, ("cat", "wolf")), (other, ("cat", "fox", "wolf"))):
        for name in names:
            picture(tmp_path / folder / name / "0.jpg")
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path / side} has no images of fox, which {other}/ has")):
            images.read(tmp_path, split)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "train"):
        picture(tmp_path / name / "0.jpg")
    assert images.read(tmp_path).classes == ("bus", "train")
    with pytest.raises(ValueError, match="can be tested, not trained on"):
        images.read(tmp_path, "train")


# --- images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(300, 400), (519, 260), (200, 130)])
def test_crop_is_torchvisions_published_transform(tmp_path, size):
    with Image.open(picture(tmp_path / "image.png", size)) as image:
        unnormalised = ImageClassification(crop_size=224, resize_size=256, mean=(0, 0, 0), std=(1, 1, 1))
        ours = images.preprocessing(224, crop=True)(image)
        theirs = unnormalised(image)
    assert torch.equal((255 * ours).round(), (255 * theirs).round())
    assert_close(ours, theirs, rtol=0, atol=6e-8)  # v2 multiplies by 1/255 where torchvision's own divides by 255
    assert (ours.shape, ours.dtype) == ((3, 224, 224), torch.float32)


def test_without_crop_both_sides_are_resized(tmp_path):
    with Image.open(picture(tmp_path / "image.png", (30, 40))) as image:
        resized = functional.resize(image, [24, 24], InterpolationMode.BILINEAR)
        ours = images.preprocessing(24, crop=False)(image)
    assert_close(ours, functional.to_tensor(resized), rtol=0, atol=6e-8)


def test_images_lie_in_the_unit_range(tmp_path):
    for value in (0, 255):
        Image.new("RGB", (30, 30), (value,) * 3).save(tmp_path / "plain.png")
        x = images.preprocessing(24, crop=False)(images.decode(tmp_path / "plain.png"))
        assert_close(x, torch.full((3, 24, 24), value / 255), rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_picture_becomes_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    grey = Image.new("RGB", (8, 8), (200, 200, 200))
    (grey.quantize() if mode == "P" else grey.convert(mode)).save(tmp_path / f"image.{suffix}")
    image = images.decode(tmp_path / f"image.{suffix}")
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - 200).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_of_ones_own_stands_as_its_exif_says_and_one_of_a_data_set_as_it_lies(tmp_path, orientation):
    """A red corner, by the definition: row 0 and column 0 of the file are these sides of the scene."""
    sides = ["top left", "top right", "bottom right", "bottom left", "left top", "right top", "right bottom",
             "left bottom"][orientation - 1]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.new("RGB", (4, 6), "blue")
    picture.putpixel((0, 0), (255, 0, 0))
    picture.save(tmp_path / "turned.png", exif=exif)
    shown, lies = images.as_shown(tmp_path / "turned.png"), images.decode(tmp_path / "turned.png")
    assert (shown.size, lies.size) == ((4, 6) if orientation < 5 else (6, 4), (4, 6))
    corner = (shown.width - 1 if "right" in sides else 0, shown.height - 1 if "bottom" in sides else 0)
    assert shown.getpixel(corner) == lies.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_of_a_picture_of_ones_own_become_eight(tmp_path, suffix):
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(ramp).save(tmp_path / f"deep.{suffix}")
    shown = np.asarray(images.as_shown(tmp_path / f"deep.{suffix}"))
    np.testing.assert_array_equal(shown, (ramp // 257)[..., None].repeat(3, 2))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_colour_that_nobody_sees_is_white_in_a_picture_of_ones_own(tmp_path, mode):
    pixels = np.array([[[200, 0, 0, 0], [200, 0, 0, 255]]], dtype=np.uint8)
    picture = Image.fromarray(pixels).convert(mode if mode != "P" else "RGB")
    options = {}
    if mode == "P":
        picture = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
        picture.putpalette([200, 0, 0, 100, 0, 0])
        options = {"transparency": 0}
    picture.save(tmp_path / "clear.png", **options)
    hidden, seen = np.asarray(images.as_shown(tmp_path / "clear.png"))[0].tolist()
    assert hidden == [255, 255, 255]
    assert seen == {"RGBA": [200, 0, 0], "LA": [60] * 3, "P": [100, 0, 0]}[mode]


def test_half_of_a_colour_lies_over_white(tmp_path):
    Image.new("RGBA", (3, 3), (200, 0, 0, 51)).save(tmp_path / "pale.png")
    assert images.as_shown(tmp_path / "pale.png").getpixel((1, 1)) == (244, 204, 204)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_no_known_range_are_one_line(tmp_path, dtype):
    Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / "counts.tif")
    with pytest.raises(ValueError, match=r"counts\.tif cannot be decoded \(it has neither 8 nor 16 bits"):
        images.as_shown(tmp_path / "counts.tif")


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: data[:-30], lambda data: b"", lambda data: b"GIF89a no"],
    ids=["half", "all but the end", "nothing", "another format"],
)
def test_damaged_image_is_named(birds, damage):
    path = birds / "images" / "a" / "two.jpg"
    path.write_bytes(damage(path.read_bytes()))
    samples = images.read(birds)
    with pytest.raises(ValueError, match=re.escape(f"{path} cannot be decoded")):
        images.load(samples, range(3), images.preprocessing(8, crop=False))
    with pytest.raises(ValueError, match=re.escape(f"{path} cannot be decoded")):
        images.as_shown(path)


def test_image_of_absurd_size_is_named(tmp_path, monkeypatch):
    """PIL refuses it with an exception of its own kind."""
    path = picture(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20 * 14 // 3)
    with pytest.raises(ValueError, match=re.escape(f"{path} cannot be decoded")):
        images.decode(path)


@pytest.mark.parametrize("side", [14_000, 2_000_000_000])
def test_a_picture_that_would_fill_the_memory_is_named(tmp_path, side):
    """24 kB of a PNG that are 200 million pixels, and a header that says more: refused before any is decoded."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(min(side, 14_000) * (1 + min(side, 14_000) // 8)))
    chunks = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)) + chunk(b"IDAT", rows)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b""))
    for opened in (images.decode, images.as_shown):
        with pytest.raises(ValueError, match=re.escape(f"{path} cannot be decoded (Image size")) as caught:
            opened(path)
        assert "\n" not in str(caught.value)


def test_loaded_images_keep_the_order(tmp_path):
    paths = tuple(picture(tmp_path / f"{index}.png", seed=index) for index in range(7))
    samples = Samples(paths, (0, 1, 2, 3, 4, 5, 6), tuple("abcdefg"))
    transform = images.preprocessing(8, crop=False)
    x, labels = images.load(samples, [6, 2, 0, 5, 1], transform)
    assert labels.tolist() == [6, 2, 0, 5, 1]
    for index, image in zip([6, 2, 0, 5, 1], x):
        assert_close(image, transform(images.decode(paths[index])), rtol=0, atol=0)


def test_choice_is_seeded_sorted_and_without_repetition():
    candidates = list(range(100, 400, 3))
    chosen = images.choose(candidates, 20, seed=1)
    assert chosen == images.choose(candidates, 20, seed=1)
    assert chosen != images.choose(candidates, 20, seed=2)
    assert chosen == sorted(set(chosen))
    assert set(chosen) < set(candidates)
    assert len(chosen) == 20


@pytest.mark.parametrize("limit", [0, 5, 6])
def test_no_limit_takes_all_in_their_own_order(limit):
    assert images.choose([3, 1, 4, 15, 9], limit, seed=0) == [3, 1, 4, 15, 9]
