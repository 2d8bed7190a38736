"""The profile `paper` in miniature, through DVC itself: from tiny archives in their true layouts to the verdicts."""

import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace
from unittest import mock

import pandas as pd
import pytest
import torch
import torchvision
from test_datasets import picture
from test_fetch import devkit_tar, md5, tar_of
from test_params import ROOT, load_module

from cxlib.synthbirds import species

#: Four minutes on two cores that are shared; for slower ones.
pytestmark = pytest.mark.timeout(2700)
NINE = (
    "resnet18", "alexnet", "googlenet", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet1_0", "vgg16",
    "efficientnet_b1", "densenet161",
)  # fmt: skip
VGG, VIT = {"vgg16_bn": "vgg16_bn", "vgg16_birds": "vgg16"}, ("vit_b_16", "vit_b_16_imagenet")
SMALL = (
    *(f"networks.{name}.images.image_size={64 if name == 'alexnet' else 32}" for name in (*NINE, *VGG)),
    # A transformer that learns in a second, under the published one's name.
    *(f"networks.{name}.network={{architecture: vit_mini, weights: random}}" for name in VIT),
    *(f"networks.{name}.images.image_size=32" for name in VIT),
    "networks.vit_b_16.training.options.epochs=1",
    *(f"networks.{name}.training.options.epochs=1" for name in VGG),
    *(f"networks.{name}.training.options.batch_size=8" for name in VGG),
    "perturb.options.epsilons=[0.003]",
    "perturb.options.n_iterations=[1]",
    "mask.options.threshold=1e-6",  # made-up weights are sure of whatever they see
    "mask.options.max_images=1",
    "mask.options.max_images_below=1",
    "localise.options.max_images=1",
    "localise.options.max_images_below=1",
    "relate.options.max_images=2",
    "saturate.options.max_images=2",
    "saturate.options.n_iterations=1",
    "gradient_norms.network=mobilenet_v3_small",
    "gradient_norms.options.max_images=1",
    "vit.options.max_images=1",
    "vit.options.max_images_below=1",
)

#: What the verdicts need, all data sets among it: the other stages run in test_stages.py.
TARGETS = ("claims",)


def small_weights(architecture, folder):
    """A small file of an architecture's weights, named by its hash: every tensor steps along a short random line."""
    with torch.device("meta"):
        state = torchvision.models.get_model(architecture).state_dict()
    draw = torch.Generator().manual_seed(0)
    for key, value in state.items():
        line = torch.randn(sum(value.shape) + 1, generator=draw) * math.sqrt(2 / max(1, math.prod(value.shape[1:])))
        line = 1 + line.square() if "running_var" in key else line
        state[key] = line.to(value.dtype).as_strided(value.shape, (1,) * value.ndim)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    name = f"{architecture}-{hashlib.sha256(buffer.getvalue()).hexdigest()[:8]}"
    (folder / f"{name}.pth").write_bytes(buffer.getvalue())
    return name


def birds(folder):
    """CUB-200-2011's archive: `attributes.txt` lies beside the folder, and parts are known by location only."""
    cub = folder / "CUB_200_2011"
    species.generate(
        cub, species_per_family=2, train_per_species=1, test_per_species=2, image_size=48, ambiguity=0, seed=0
    )
    (cub / "attributes" / "attributes.txt").rename(folder / "attributes.txt")
    shutil.rmtree(cub / "parts" / "masks")
    return tar_of(folder)


def dishes(folder):
    """Food-101's archive, of three dishes."""
    split = {"train": (1, 2), "test": (3, 4)}
    names = ("apple_pie", "baklava", "waffles")
    (folder / "food-101" / "meta").mkdir(parents=True)
    (folder / "food-101" / "meta" / "classes.txt").write_text("\n".join(names))
    for side, numbers in split.items():
        listed = {name: [f"{name}/{number}" for number in numbers] for name in names}
        (folder / "food-101" / "meta" / f"{side}.json").write_text(json.dumps(listed))
        for member in (m for members in listed.values() for m in members):
            picture(folder / "food-101" / "images" / f"{member}.jpg", seed=len(member))
    return tar_of(folder)


def photographs(folder):
    """ILSVRC2012's archive of validation images, whose classes the devkit tells."""
    for number in range(1, 6):
        picture(folder / f"ILSVRC2012_val_{number:08d}.JPEG", seed=number)
    return tar_of(folder, "w")


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """A fresh repository in which `dvc exp run -S profile=paper` has run on tiny archives and weights."""
    top = tmp_path_factory.mktemp("paper")
    repo, served = top / "repo", top / "served"
    served.mkdir()
    for name in ("cxlib", "stages", "conf", "data/reference", "data/interventions"):
        shutil.copytree(ROOT / name, repo / name, ignore=shutil.ignore_patterns("__pycache__", "*.npz"))
    (repo / ".dvc").mkdir()
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config"):
        shutil.copy(ROOT / name, repo / name)
    (repo / ".dvc" / "config.local").write_text("[cache]\n    type = hardlink\n")  # half a gigabyte of VGG-16
    (repo / "params.yaml").write_text("{}\n")
    archives, weights = repo / "data" / "archives", repo / "data" / "weights"
    archives.mkdir()
    weights.mkdir()
    brought = {"ILSVRC2012_devkit_t12.tar.gz": devkit_tar(), "ILSVRC2012_img_val.tar": photographs(top / "val")}
    for name, content in brought.items():
        (archives / name).write_bytes(content)
    offered = {"CUB_200_2011.tgz": birds(top / "birds"), "food-101.tar.gz": dishes(top / "food")}
    for name, content in offered.items():
        (served / name).write_bytes(content)

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(served), **kwargs)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    at = f"http://127.0.0.1:{server.server_port}"
    names = {name: small_weights(architecture, weights) for name, architecture in (VGG | dict(zip(NINE, NINE))).items()}
    overrides = [
        "profile=paper", *SMALL, *(f"networks.{key}.network.weights={name}" for key, name in names.items()),
        f"data.cub.url={at}/CUB_200_2011.tgz", f"data.cub.md5={md5(offered['CUB_200_2011.tgz'])}",
        f"data.food101.url={at}/food-101.tar.gz", f"data.food101.md5={md5(offered['food-101.tar.gz'])}",
        f"data.imagenet.devkit_md5={md5(brought['ILSVRC2012_devkit_t12.tar.gz'])}",
        f"data.imagenet.validation_md5={md5(brought['ILSVRC2012_img_val.tar'])}",
    ]  # fmt: skip
    person = {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    machine = {"CXLIB_DEVICE": "cpu", "CXLIB_THREADS": "1", "CXLIB_WORKERS": "0"}  # others use the cores, too
    environment = person | machine | {"PYTHONPATH": str(repo), "no_proxy": "*", "DVC_NO_ANALYTICS": "1"}

    def run(*command):
        return subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=2600)

    with mock.patch.dict(os.environ, environment):
        for command in (("init", "-q"), ("add", "."), ("commit", "-qm", "state")):
            assert run("git", *command).returncode == 0
        with load_module(ROOT / "stages" / "_warm.py").warm():  # some fifty stages
            command = (sys.executable, "-m", "dvc", "exp", "run", *(word for o in overrides for word in ("-S", o)))
            done = run(*command, *TARGETS)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        yield SimpleNamespace(repo=repo, run=run)
    server.shutdown()


def test_the_data_sets_come_from_their_archives(paper):
    sets = paper.repo / "data" / "sets"
    assert sum(path.is_file() for path in (sets / "cub" / "images").rglob("*")) == 8 * 3
    assert (sets / "cub" / "attributes" / "attributes.txt").is_file()
    assert len(list((sets / "food101" / "images").rglob("*.jpg"))) == 12
    assert len(list((sets / "imagenet" / "val").rglob("*.JPEG"))) == 5


def test_every_network_is_perturbed_and_every_statement_judged(paper):
    table = pd.read_csv(paper.repo / "plots" / "perturbation.csv")
    assert set(table["network"]) == set(NINE)
    assert set(table["n_images"]) == {5}
    assert table["change"].notna().all()
    claims = json.loads((paper.repo / "metrics" / "claims.json").read_text())
    ledger = pd.read_csv(paper.repo / "plots" / "claims.csv")
    assert list(claims) == sorted(ledger["statement"].unique())
    assert set(claims) >= {"claim_1", "claim_2", "claim_3", "3.2_alike", "4.3_weights", "eq_4"}
    assert all(claim["holds"] in (True, False) for claim in claims.values())
    judged = ledger.groupby("statement")["network"].agg(set)
    assert judged["claim_1"] == {*NINE, "all networks"}
    assert judged["3.2_alike"] == {*VGG, "all networks"}
    assert judged["claim_2"] == {"vgg16_bn"}  # the other's made-up weights are surer than the threshold
    assert judged["4.3_weights"] == {"mobilenet_v3_small"}
    assert set(pd.read_csv(paper.repo / "plots" / "vit.csv")["network"]) == set(VIT)
    assert set(pd.read_csv(paper.repo / "plots" / "table1.csv")["network"]) == {"vgg16_bn"}


def test_nothing_is_stale_afterwards(paper):
    status = paper.run(sys.executable, "-m", "dvc", "status", "--with-deps", *TARGETS)
    assert "Data and pipelines are up to date." in status.stdout, status.stdout + status.stderr
