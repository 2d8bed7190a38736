"""Python packages as a source of weights and photographs: found, checked, and what they say they are."""

import hashlib
import importlib.util
import json
import re
import shutil
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from click.testing import CliRunner
from torch.testing import assert_close

from cxlib import __main__ as cli
from cxlib import fetch, networks, runtime
from cxlib.datasets import images
from cxlib.networks import build, weights
from cxlib.networks.build import TRUNK
from cxlib.networks.weights import PACKAGES

LITE0 = "tf_efficientnet_lite0"
#: Of some photographs the class and its WordNet id, as ILSVRC2012's list has them.
SEEN = {
    "imagenet_16_251.jpg": ("dalmatian", "n02110341"),
    "imagenet_17_22.jpg": ("bald eagle", "n01614925"),
    "imagenet_04_949.jpg": ("strawberry", "n07745940"),
    "imagenet_19_305.jpg": ("dung beetle", "n02172182"),
}


def where(package):
    """The folder of an installed package, by Python's own import; None where there is none."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    return spec and Path(spec.submodule_search_locations[0])


def needs(package):
    return pytest.mark.skipif(where(package) is None, reason=f"the package {package} is not installed")


def file_of(name):
    (file,) = where(PACKAGES[name]).rglob("*.pth")
    return file


def photographs():
    """Paths of the photographs that foolbox ships, by the class in their names."""
    found = {path: int(path.stem.split("_")[2]) for path in sorted((where("foolbox") / "data").glob("imagenet_*.jpg"))}
    assert len(found) == 20
    return found


PACKAGED = [pytest.param(name, marks=needs(package)) for name, package in PACKAGES.items()]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise URLError("no network in tests")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)


@pytest.fixture
def shipped(monkeypatch):
    """A function that makes some files those of every package."""
    return lambda *files: monkeypatch.setattr(runtime, "packaged", lambda _distribution: list(files))


def message_of(*args, **kwargs):
    with pytest.raises(ValueError) as caught:
        build(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKAGED)
def test_weights_of_a_package_are_found_by_their_hash_and_by_default(name, tmp_path):
    """They are the file's tensors in its order, under timm's names."""
    import timm

    file = file_of(name)
    digits = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    assert file.stem.endswith(f"-{digits}")
    theirs = list(torch.load(file, weights_only=True).values())
    for given in ("DEFAULT", file.stem, f"any name-{digits}"):
        for folder in (None, tmp_path):
            found = weights.find(name, given, folder)
            assert list(found) == list(timm.create_model(name).state_dict())
            assert len(found) == len(theirs) > 200
            assert all(torch.equal(one, other) for one, other in zip(found.values(), theirs))
    network = build(name, file.stem)
    assert torch.equal(network.inner.classifier.bias, theirs[-1])


@pytest.mark.parametrize("name", PACKAGED)
@needs("foolbox")
def test_a_packages_weights_know_the_photographs_of_foolbox(name):
    """Tensors under the wrong names would know none."""
    network, prepare = build(name, "DEFAULT"), networks.transform(name)
    right = [network(prepare(images.decode(path))[None]).argmax().item() == k for path, k in photographs().items()]
    assert sum(right) >= 17


@needs(PACKAGES[LITE0])
def test_weights_in_the_folder_come_before_a_packages(tmp_path):
    with runtime.seeded(1):
        state = build(LITE0, num_classes=3).inner.state_dict()
    torch.save(state, tmp_path / "one")
    digits = hashlib.sha256((tmp_path / "one").read_bytes()).hexdigest()[:8]
    (tmp_path / "one").rename(tmp_path / f"{LITE0}-{digits}.pth")
    for given in ("DEFAULT", f"{LITE0}-{digits}"):
        assert torch.equal(weights.find(LITE0, given, tmp_path)["classifier.weight"], state["classifier.weight"])
    assert len(weights.find(LITE0, file_of(LITE0).stem, tmp_path)["classifier.weight"]) == 1000


@needs(PACKAGES[LITE0])
@pytest.mark.parametrize("given", ["efficientnet-lite0-00000000", "birds", "DEFAULT-57934424x"])
def test_other_weights_than_the_packages_are_not_the_packages(tmp_path, given):
    told = message_of(LITE0, given, folder=tmp_path)
    assert told.startswith(f"no weights {given!r} for {LITE0}: there is no {given}")
    assert told.endswith(f".pth in {tmp_path}, nor in the package {PACKAGES[LITE0]}")


@needs(PACKAGES[LITE0])
@pytest.mark.parametrize("given", ["DEFAULT", "efficientnet-lite0-57934424"])
def test_a_damaged_copy_is_refused(tmp_path, shipped, given):
    file = file_of(LITE0)
    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes()[:-1000])
    shipped(tmp_path / "__init__.py", copy)
    told = message_of(LITE0, given)
    assert told.startswith(f"{copy} is damaged: its SHA-256 does not begin with 57934424")
    shutil.copyfile(file, copy)
    assert build(LITE0, given).inner.classifier.out_features == 1000


@needs(PACKAGES["tf_efficientnet_lite1"])
def test_a_package_of_another_network_is_refused(shipped):
    shipped(file_of("tf_efficientnet_lite1"))
    told = message_of(LITE0, "DEFAULT")
    assert "efficientnet-lite1-77cc7160.pth does not fit timm's tf_efficientnet_lite0: install another version" in told
    assert PACKAGES[LITE0] in told


@pytest.mark.parametrize("name", [LITE0, "vit_lite0"])
def test_where_the_package_is_missing_it_is_named(tmp_path, shipped, name):
    shipped()
    told = message_of(name, "efficientnet-lite0-57934424", folder=tmp_path)
    assert f"there is no efficientnet-lite0-57934424.pth in {tmp_path}, nor is there the package" in told
    assert told.endswith(PACKAGES[LITE0])
    told = message_of(name, "DEFAULT", folder=tmp_path)
    assert f"put {LITE0}-<hash8>.pth into {tmp_path}, or install the package {PACKAGES[LITE0]}" in told


def test_a_missing_package_has_no_files_and_an_installed_one_those_that_are_there():
    assert runtime.packaged("no-such-package-anywhere") == []
    files = runtime.packaged("torch")
    assert Path(torch.__file__) in [file.resolve() for file in files if file.name == "__init__.py"]


@needs(PACKAGES[LITE0])
def test_a_hybrid_stands_on_the_packages_trunk():
    """Its maps are those of the whole network behind its fifth stage of seven, a sixteenth of the image's size."""
    with runtime.seeded(0):
        hybrid, whole = build("vit_lite0", "efficientnet-lite0-57934424", 3), build(LITE0, "DEFAULT")
    seen = []
    whole.inner.blocks[4].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    x = torch.rand(2, 3, 144, 144, generator=torch.Generator().manual_seed(0))
    whole(x)
    (maps,) = hybrid.inner.get_submodule(TRUNK)((x - hybrid.mean) / hybrid.std)
    assert maps.shape[-2:] == (9, 9)
    assert_close(maps, seen[0], rtol=1e-4, atol=1e-5)
    assert hybrid(x).shape == (2, 3)


# --- photographs ------------------------------------------------------------------------------------------------


@needs("foolbox")
def test_photographs_are_sorted_into_imagenets_folders(tmp_path):
    expected = {path.name: (k, path.read_bytes()) for path, k in photographs().items()}
    assert fetch.foolbox_photographs(tmp_path / "sets" / "photographs") == 20
    samples = images.read(tmp_path / "sets" / "photographs")
    assert len(samples) == 20
    assert len(samples.classes) == 1000
    found = {path.name: (k, path.read_bytes()) for path, k in zip(samples.paths, samples.labels)}
    assert found == expected
    for path, label in zip(samples.paths, samples.labels):
        if path.name in SEEN:
            assert (samples.classes[label], path.parent.name) == SEEN[path.name]
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["photographs"], "nothing else is left"


@needs("foolbox")
def test_a_folder_of_photographs_is_replaced_as_a_whole(tmp_path):
    (tmp_path / "old" / "n01440764").mkdir(parents=True)
    (tmp_path / "old" / "n01440764" / "tench.jpg").write_bytes(b"no picture")
    assert fetch.foolbox_photographs(tmp_path / "old") == 20
    assert not list(tmp_path.rglob("tench.jpg"))


@pytest.mark.parametrize("files", [[], ["foolbox/__init__.py", "foolbox/data/cifar10_00_3.jpg"]])
def test_without_foolbox_there_is_one_line_and_no_folder(tmp_path, shipped, files):
    shipped(*map(Path, files))
    with pytest.raises(ValueError, match=r"^the package foolbox .*is not installed: pip install foolbox$"):
        fetch.foolbox_photographs(tmp_path / "photographs")
    assert list(tmp_path.iterdir()) == []


# --- the command line -------------------------------------------------------------------------------------------


@needs("foolbox")
@needs(PACKAGES[LITE0])
def test_a_photograph_is_explained_in_the_names_of_its_classes(tmp_path):
    photograph = where("foolbox") / "data" / "imagenet_16_251.jpg"
    words = ["explain", photograph, "--network", LITE0, "--versus", "second", "--device", "cpu", "--out", tmp_path]
    result = CliRunner().invoke(cli.main, [str(word) for word in words])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    told = json.loads((tmp_path / "imagenet_16_251.json").read_text())
    assert (told["target"]["index"], told["target"]["name"]) == (251, "dalmatian")
    assert told["target"]["probability"] > 2 * told["versus"]["probability"]
    assert re.fullmatch(r"[a-zA-Z' -]+", told["versus"]["name"]), "a name, no index"
    words[4:6] = ["--versus", "bald eagle"]
    assert CliRunner().invoke(cli.main, [str(word) for word in words]).exit_code == 0
    told = json.loads((tmp_path / "imagenet_16_251.json").read_text())
    assert (told["versus"]["index"], told["versus"]["name"]) == (22, "bald eagle")
