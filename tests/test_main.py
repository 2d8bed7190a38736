"""The command line answers why this class and not that one, in files; and bad input with one line."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cxlib import __main__ as cli
from cxlib import classnames, networks, photographs, pictures, runtime
from cxlib.contrasts import CONTRASTS
from cxlib.datasets.images import decode, preprocessing
from cxlib.explainers import EXPLAINERS, explain
from cxlib.overlay import AGAINST, FOR, blended

NAMES = ["1 001.Marsh_Heron", "2 002.Ashen_Heron", "3 003.Marsh_Hawk", "4 004.Ashen_Gull"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three photographs, a network's file, a transformer's state_dict, and a list of classes."""
    folder = tmp_path_factory.mktemp("cli")
    for number, name in enumerate(("photos/a.jpg", "photos/deep/a.png", "photos/b.JPEG")):
        noise = np.random.default_rng(number).integers(0, 256, (9, 11, 3), dtype=np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).resize((60, 50), Image.Resampling.BICUBIC).save(folder / name)
    with runtime.seeded(2):
        networks.save(networks.build("vgg16_bn_narrow", num_classes=4), folder / "birds.pt")
        torch.save(networks.build("vit_mini", num_classes=4).inner.state_dict(), folder / "vit.pth")
    (folder / "classes.txt").write_text("\n".join(NAMES) + "\n")
    (folder / "photos" / "README.md").write_text("no image")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def here(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    return tmp_path / "out"


def run(*words):
    return CliRunner().invoke(cli.main, [str(word) for word in words])


def succeed(*words):
    result = run(*words)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result


BIRDS = ("--network", "birds.pt", "--classes", "classes.txt", "--device", "cpu", "--image-size", "32")


def test_an_image_is_explained_in_a_picture_numbers_and_maps(here):
    succeed("explain", "photos/a.jpg", *BIRDS, "--explainer", "gradcam", "--explainer", "gradient", "--out", here)
    assert sorted(path.name for path in here.iterdir()) == ["a.json", "a.npz", "a.png"]
    network = networks.load("birds.pt")
    x = preprocessing(32, crop=False)(decode("photos/a.jpg"))[None]
    p = network(x).double().softmax(1)[0]
    order = p.argsort(descending=True)
    told = json.loads((here / "a.json").read_text())
    assert [told[role]["index"] for role in ("target", "versus")] == order[:2].tolist()
    assert told["target"]["name"] == ["Marsh_Heron", "Ashen_Heron", "Marsh_Hawk", "Ashen_Gull"][order[0]]
    assert told["target"]["probability"] == pytest.approx(float(p[order[0]]), rel=1e-5)
    assert told["layer"] is None  # the network's own
    with np.load(here / "a.npz") as arrays:
        assert arrays["classes"].tolist() == order[:2].tolist()
        for e, name in enumerate(("gradcam", "gradient")):
            expected = explain(network, x, order[None, :2], name, "weighted")[0]
            np.testing.assert_allclose(arrays["maps"][e, 0], expected, rtol=1e-4, atol=1e-7)
            values = told["maps"][f"{name} weighted"]["target"]
            assert values["highest"] == pytest.approx(float(expected[0].max()), rel=1e-4)
            share = expected[0].clamp(min=0).sum() / expected[0].abs().sum()
            assert values["positive_share"] == pytest.approx(float(share), rel=1e-4)
            assert expected[0][values["peak_row"], values["peak_column"]] == expected[0].max()
    with Image.open(here / "a.png") as picture:
        assert len(picture.convert("RGB").getcolors(10**6)) > 100


def test_the_picture_asks_about_the_two_classes_with_their_probabilities(here, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "rendered", lambda figure: drawn.append(figure) or Image.new("RGB", (1, 1)))
    asked = ("explain", "photos/a.jpg", *BIRDS, "--target", "3", "--versus", "1")
    succeed(*asked, "--explainer", "xgradcam", "--contrast", "versus", "--contrast", "weighted", "--out", here)
    said = [text.get_text() for text in drawn[0].texts]
    p = networks.load("birds.pt")(preprocessing(32, crop=False)(decode("photos/a.jpg"))[None]).softmax(1)[0]
    for k, colour in ((3, FOR), (1, AGAINST)):
        name = ["Marsh Heron", "Ashen Heron", "Marsh Hawk", "Ashen Gull"][k]
        assert {name, f"for {name}", f"{100 * float(p[k]):.1f} %"} <= {
            text.get_text() for text in drawn[0].texts if text.get_color() == colour
        }
    assert "vgg16_bn_narrow" in said
    photograph, *maps = [axis.images[0].get_array() for axis in drawn[0].axes if axis.images][:-1]
    with np.load(here / "a.npz") as arrays:
        np.testing.assert_array_equal(photograph, arrays["image"].transpose(1, 2, 0))
        signed = arrays["maps"][0] * np.array([1, -1]).reshape(1, 2, 1, 1)
        wanted = [blended(photograph, each, opacity=pictures.OPACITY) for each in signed.reshape(4, 32, 32)]
        assert all(any(np.allclose(one, other) for other in maps) for one in wanted)
        assert len(maps) == 4


def test_names_that_several_classes_have_are_told_apart_by_their_index():
    classes = ["crane", "barn_owl", "crane", "3"]
    assert photographs.spelled(classes, [0, 1, 2, 3]) == {0: "crane (0)", 1: "barn owl", 2: "crane (2)", 3: "class 3"}
    assert photographs.spelled(classes, [2, 1]) == {2: "crane", 1: "barn owl"}


@pytest.mark.parametrize("crop", [True, False])
def test_a_picture_is_prepared_as_those_that_the_network_was_trained_with(here, tmp_path, crop):
    network, how = networks.load("birds.pt"), {"image_size": 40, "crop": crop}
    network.preparation = how
    networks.save(network, tmp_path / "trained.pt")
    asked = ("explain", "photos/a.jpg", "--network", tmp_path / "trained.pt", "--device", "cpu", "--out", here)
    for options, expected in (((), how), (("--image-size", "36"), {"image_size": 36, "crop": False})):
        succeed(*asked, *options)
        with np.load(here / "a.npz") as arrays:
            np.testing.assert_array_equal(arrays["image"], preprocessing(**expected)(decode("photos/a.jpg")))


def test_a_picture_is_explained_as_viewers_show_it(here, tmp_path):
    with Image.open("photos/a.jpg") as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(tmp_path / "turned.png", exif=exif)
        upright = image.transpose(Image.Transpose.ROTATE_270)
    succeed("explain", tmp_path / "turned.png", *BIRDS, "--out", here)
    with np.load(here / "turned.npz") as arrays:
        np.testing.assert_array_equal(arrays["image"], preprocessing(32, crop=False)(upright))


@pytest.mark.parametrize(("target", "versus"), [("Marsh_Hawk", "ashen gull"), ("2", "3"), ("hawk", "gull")])
def test_versus_is_the_difference_of_the_two_classes(here, target, versus):
    succeed("explain", "photos/a.jpg", *BIRDS, "--target", target, "--versus", versus, "--out", here)
    told = json.loads((here / "a.json").read_text())
    assert (told["target"]["index"], told["versus"]["index"]) == (2, 3)
    network = networks.load("birds.pt")
    x = preprocessing(32, crop=False)(decode("photos/a.jpg"))[None]
    of_classes = explain(network, x, torch.tensor([[2, 3]]), "gradcam", "original")[0]
    with np.load(here / "a.npz") as arrays:
        assert arrays["contrasts"].tolist() == ["versus"]
        difference = (of_classes[0] - of_classes[1]).numpy()
        np.testing.assert_allclose(arrays["maps"][0, 0], [difference, -difference], rtol=1e-3, atol=1e-6)


def test_without_a_target_versus_is_told_from_the_most_probable_class(here):
    x = preprocessing(32, crop=False)(decode("photos/a.jpg"))[None]
    order = networks.load("birds.pt")(x)[0].argsort(descending=True).tolist()
    for versus, expected in ((order[0], (order[1], order[0])), (order[3], (order[0], order[3])), ("second", order[:2])):
        succeed("explain", "photos/a.jpg", *BIRDS, "--versus", versus, "--out", here)
        told = json.loads((here / "a.json").read_text())
        assert (told["target"]["index"], told["versus"]["index"]) == tuple(expected)


def test_a_head_of_one_logit_tells_two_classes_apart(here, tmp_path):
    with runtime.seeded(2):
        network = networks.build("vgg16_bn_narrow", num_classes=1)
    networks.save(network, tmp_path / "one.pt")
    (tmp_path / "classes.txt").write_text("no bird\nbird\n")
    asked = ("explain", "photos/a.jpg", "--network", tmp_path / "one.pt", "--device", "cpu", "--image-size", "32")
    x = preprocessing(32, crop=False)(decode("photos/a.jpg"))[None]
    p = float(network(x).sigmoid())
    t = int(p > 0.5)
    for versus in ((), ("--versus", "second"), ("--target", "bird"), ("--versus", "no bird")):
        succeed(*asked, *versus, "--out", here)
        told = json.loads((here / "a.json").read_text())
        chosen = 1 if "bird" in versus or "no bird" in versus else t
        assert [told[role]["name"] for role in ("target", "versus")] == [
            ("no bird", "bird")[k] for k in (chosen, 1 - chosen)
        ]
        assert told["target"]["probability"] == pytest.approx(p if chosen else 1 - p, rel=1e-5)
        with np.load(here / "a.npz") as arrays:
            expected = explain(network, x, torch.tensor([[chosen, 1 - chosen]]), contrast="weighted")[0]
            np.testing.assert_allclose(arrays["maps"][0, 0], expected, rtol=1e-4, atol=1e-7)


def test_folders_and_patterns_are_searched_and_no_result_is_overwritten(here):
    result = succeed("explain", "photos", *BIRDS, "--out", here)
    assert "3 images explained" in result.output
    assert sorted(path.name for path in here.glob("*.json")) == ["a.json", "a_2.json", "b.json"]
    sources = {json.loads(path.read_text())["image"] for path in here.glob("*.json")}
    assert sources == {"photos/a.jpg", "photos/deep/a.png", "photos/b.JPEG"}
    assert [str(path) for path in cli.image_files(["photos/*.jpg", "photos/a.jpg", "photos/**/*.png"])] == [
        "photos/a.jpg",
        "photos/deep/a.png",
    ]


def test_a_numbered_result_does_not_overwrite_that_of_a_file_with_this_name(here):
    for name in ("a.png", "a_2.jpg", "a_2.png"):
        shutil.copy("photos/b.JPEG", here.parent / name)
    pictures = ["photos/a.jpg", *(here.parent / name for name in ("a.png", "a_2.jpg", "a_2.png"))]
    succeed("explain", *pictures, *BIRDS, "--out", here)
    told = {path.stem: json.loads(path.read_text())["image"] for path in here.glob("*.json")}
    assert told == dict(zip(["a", "a_3", "a_2", "a_2_2"], map(str, pictures)))


def test_a_result_does_not_overwrite_an_image(here):
    here.mkdir()
    shutil.copy("photos/deep/a.png", here)
    before = (here / "a.png").read_bytes()
    result = run("explain", here, *BIRDS, "--out", here)
    assert result.exit_code == 1
    assert result.stderr.strip() == f"Error: the results in {here} would overwrite the image a.png: name another --out"
    assert [(path.name, path.read_bytes()) for path in here.iterdir()] == [("a.png", before)]


def test_a_state_dict_of_a_transformer_is_explained_by_tokens(here):
    network = ("--network", "vit_mini", "--weights", "vit.pth", "--device", "cpu")
    succeed("explain", "photos/a.jpg", *network, "--explainer", "attention_rollout", "--explainer", "vit_gradcam",
            "--contrast", "original", "--contrast", "weighted", "--relu", "--out", here)  # fmt: skip
    with np.load(here / "a.npz") as arrays:
        size = networks.SMALL_TRANSFORMERS["vit_mini"][0]["img_size"]
        assert arrays["maps"].shape == (2, 2, 2, size, size)
        assert (arrays["maps"] >= 0).all()
    succeed("explain", "photos/a.jpg", *network, "--out", here)
    with np.load(here / "a.npz") as arrays:
        assert arrays["explainers"].tolist() == ["vit_gradcam"]
    assert json.loads((here / "a.json").read_text())["target"]["name"] in " ".join(NAMES)  # of classes.txt beside it


def test_names_come_from_beside_the_weights_or_from_torchvision(tmp_path):
    with torch.device("meta"):
        model = networks.build("squeezenet1_1")
    assert classnames.class_names(model, 1000, "squeezenet1_1", "DEFAULT", None, None)[:2] == ["tench", "goldfish"]
    assert classnames.class_names(model, 3, "squeezenet1_1", "DEFAULT", None, None) == ["0", "1", "2"]
    (tmp_path / "birds.labels.txt").write_text("Great Tit\nRobin\nWren\n")
    assert classnames.class_names(model, 3, "squeezenet1_1", "birds", str(tmp_path), None) == [
        "Great Tit",
        "Robin",
        "Wren",
    ]
    assert classnames.class_names(model, 4, "squeezenet1_1", "birds", str(tmp_path), None) == ["0", "1", "2", "3"]


def names(model, network, weights, n_classes=1000):
    return classnames.class_names(model, n_classes, network, weights, None, None)


def test_names_of_timms_networks_are_those_of_its_weights():
    with torch.device("meta"):
        model = networks.build("tf_efficientnet_lite0")
    for weights in ("DEFAULT", "efficientnet-lite0-57934424"):
        told = names(model, "tf_efficientnet_lite0", weights)
        assert (len(told), told[0], told[22], told[251], told[999]) == (
            1000, "tench", "bald eagle", "dalmatian", "toilet tissue",
        )  # fmt: skip
    assert names(model, "tf_efficientnet_lite0", "random") == [str(index) for index in range(1000)]
    assert names(model, "tf_efficientnet_lite0", "DEFAULT", 3) == ["0", "1", "2"]


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "squeezenet1_1"])
def test_a_file_of_ones_own_has_no_names_that_others_published(tmp_path, name):
    """A thousand outputs are not ImageNet's for that."""
    with torch.device("meta"):
        model = networks.build(name)
    indices = [str(index) for index in range(1000)]
    assert names(model, name, "DEFAULT")[0] == "tench"
    for file in (tmp_path / "mine.pt", tmp_path / "mine.pth"):
        assert names(model, str(file), "DEFAULT") == indices
        assert names(model, name, str(file)) == indices
        (tmp_path / "classes.txt").write_text("\n".join(f"bird {index}" for index in indices))
        assert names(model, name, str(file))[999] == names(model, str(file), "DEFAULT")[999] == "bird 999"
        (tmp_path / "classes.txt").unlink()


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "squeezenet1_1"])
@pytest.mark.parametrize("weights", ["mine", "mine-0123abcd", "DEFAULT"])
def test_a_folders_weights_have_published_names_where_their_hash_is_published(tmp_path, name, weights):
    with torch.device("meta"):
        model = networks.build(name)
    stem = name if weights == "DEFAULT" else "mine"
    published = {"squeezenet1_1": "squeezenet1_1-b8a52dc0", "tf_efficientnet_lite0": "tf_efficientnet_lite0-57934424"}
    (tmp_path / f"{stem}-0123abcd.pth").write_bytes(b"")
    assert classnames.class_names(model, 1000, name, weights, str(tmp_path), None)[0] == "0"
    (tmp_path / f"{stem}-0123abcd.pth").rename(tmp_path / f"{published[name]}.pth")
    for known in ("DEFAULT", published[name]):
        assert classnames.class_names(model, 1000, name, known, str(tmp_path), None)[0] == "tench"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("3 door car\n5 door car\n", ["3 door car", "5 door car"]),
        ("1 door car\n2 door car\n3 door car\n", ["1 door car", "2 door car", "3 door car"]),
        ("2 wheeler\n3 wheeler\n4 x 4\n", ["2 wheeler", "3 wheeler", "4 x 4"]),
        ("1 001.Marsh_Heron\n2 002.Ashen_Heron\n", ["Marsh_Heron", "Ashen_Heron"]),
        ("7 007.Parakeet_Auklet\n3 003.St._Bernard\n", ["Parakeet_Auklet", "St._Bernard"]),
        ("0 tench\n1 goldfish\n\n2 great white shark\n", ["tench", "goldfish", "great white shark"]),
        ("1 tench\n2  goldfish\n", ["tench", "goldfish"]),
        ("1 tench\ngoldfish\n", ["1 tench", "goldfish"]),
    ],
)
def test_names_lose_numbers_that_count_them_and_no_others(tmp_path, lines, expected):
    (tmp_path / "classes.txt").write_text(lines)
    assert classnames.read_names(tmp_path / "classes.txt") == expected


@pytest.mark.parametrize("name", ["vit_mini", "vit_lite0", "vgg16_bn_narrow"])
def test_our_own_networks_have_no_published_names(name):
    """Nobody publishes weights for their heads, even where there are a thousand classes."""
    with torch.device("meta"):
        model = networks.build(name)
    assert networks.published_classes(model) == []
    assert names(model, name, "DEFAULT") == [str(index) for index in range(1000)]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("photos/none.jpg", *BIRDS), ["photos/none.jpg names no image"]),
        (("broken.jpg", *BIRDS), ["broken.jpg cannot be decoded"]),
        (("photos/a.jpg", *BIRDS, "--target", "heron"), ["'heron' may be any of 2", "Marsh_Heron (0)"]),
        (("photos/a.jpg", *BIRDS, "--target", "marsh hern"), ["no class 'marsh hern'", "Marsh_Heron"]),
        (("photos/a.jpg", *BIRDS, "--target", "4"), ["no class 4", "0 to 3"]),
        (("photos/a.jpg", *BIRDS, "--target", "1", "--versus", "Ashen_Heron"), ["same class", "Ashen_Heron"]),
        (("photos/a.jpg", *BIRDS, "--explainer", "gradcamp"), ["'gradcamp'", "xgradcam"]),
        (("photos/a.jpg", *BIRDS, "--explainer", "attention_rollout"), ["NarrowVGG is no plain Vision Transformer"]),
        (("photos/a.jpg", *BIRDS, "--contrast", "nonsense"), ["'nonsense'", "versus"]),
        (("photos/a.jpg", *BIRDS, "--layer", "features.99"), ["'features.99'", "features.9"]),
        (("photos/a.jpg", *BIRDS, "--device", "abacus"), ["'abacus'"]),
        (("photos/a.jpg", *BIRDS, "--device", "meta"), ["'meta' is not available"]),
        (("photos/a.jpg", *BIRDS, "--image-size", "8"), ["vgg16_bn_narrow refuses images of shape (1, 3, 8, 8)"]),
        (("photos/a.jpg", "--network", "none.pt"), ["none.pt does not exist"]),
        (("photos/a.jpg", "--network", "vit.pth"), ["vit.pth is not a network written by cxlib"]),
        (("photos/a.jpg", "--network", "resnet19"), ["'resnet19'", "resnet18"]),
        (("photos/a.jpg", "--network", "vit_mini", "--weights", "none.pth"), ["none.pth does not exist"]),
        (
            ("photos/a.jpg", "--network", "birds.pt", "--classes", "photos/README.md"),
            ["README.md names 1 classes", "4"],
        ),
    ],
)
def test_bad_input_is_one_line(here, words, named):
    result = run("explain", *words, "--out", here)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if line.strip() and "image/s" not in line]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    for text in named:
        assert text in lines[0]
    assert not here.exists()


def test_lists_show_what_the_registries_hold():
    everything = succeed("list").output
    for name in (*EXPLAINERS, *CONTRASTS, "versus"):
        assert name in everything
    assert succeed("list", "explainers").output.count("\n") == len(EXPLAINERS)
    assert "vit_tiny_patch16_224\n" in succeed("list", "networks", "vit_tiny*").output
    assert succeed("list", "networks", "resnet18").output.split() == ["resnet18"]


@pytest.mark.parametrize(
    ("network", "own"),
    [
        *(("vgg16_bn", "features.40"), ("resnet18", "layer4"), ("vit_mini", "blocks.2.norm1")),
        *(("regnet_y_400mf", "trunk_output"), ("birds.pt", "features.40")),
    ],
)
@pytest.mark.filterwarnings("error")
def test_layers_are_listed_with_the_one_that_is_explained(here, network, own):
    lines = succeed("list", "layers", network).output.splitlines()
    starred = [line.split()[1] for line in lines if line.startswith("*")]
    assert starred == [own]
    assert len(lines) > 20


def test_what_an_explanation_may_mean_besides_is_one_line_for_all_images_and_explainers(here):
    words = (
        "photos",
        "--network",
        "mobilenet_v3_small",
        "--weights",
        "random",
        "--image-size",
        "64",
        "--device",
        "cpu",
    )
    chosen = ("--layer", "features.12", "--explainer", "gradcam", "--explainer", "xgradcam", "--out", here)
    told = [line for line in succeed("explain", *words, *chosen).stderr.splitlines() if "gradient" in line]
    assert len(told) == 1
    assert told[0].startswith("Warning: the gradient is constant over the layer inner.features.12, so that GradCAM")
    assert {json.loads(path.read_text())["layer"] for path in here.glob("*.json")} == {"features.12"}


def test_the_module_runs_as_a_program_and_exits_with_one_line(folder):
    def program(*words):
        return subprocess.run([sys.executable, "-m", "cxlib", *words], cwd=folder, capture_output=True, text=True)

    done = program("explain", "photos/a.jpg", *BIRDS, "--out", "done")
    assert done.returncode == 0, done.stderr
    assert (folder / "done" / "a.png").stat().st_size > 1000
    failed = program("explain", "photos/a.jpg", *BIRDS, "--target", "9", "--out", "failed")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("Error: there is no class 9")
    assert not (folder / "failed").exists()
