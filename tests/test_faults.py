"""A disk that is full, or that nobody may write to, and two who work at once: one line, and nothing half-written."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cxlib import networks
from cxlib.synthbirds import species

ROOT = Path(__file__).parents[1]
BIRDS = {"species_per_family": 2, "train_per_species": 1, "test_per_species": 2, "image_size": 40, "seed": 0}


def words(**options):
    return [str(word) for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]


SEEN = ["--no-crop", *words(data="birds", image_size=32, seed=0)]
COMMANDS = {
    "paint": ["stages/data.py", "synthbirds", *words(path="out/birds", out="out/birds", ambiguity=0, **BIRDS)],
    "train": [
        *("stages/train.py", "fine_tune", *SEEN, *words(architecture="vgg16_bn_narrow", weights="random", epochs=1)),
        *words(weights_path="none", frozen="none", batch_size=7, optimiser="sgd", learning_rate=0.01, momentum=0.9),
        *words(weight_decay=0, schedule="constant", clip=1, augmentation="none", batch_norm="fast"),
        *words(precision="float32", out="out/network.pt", report="out/report.npz", curves="out/curves"),
    ],
    "perturb": [
        *("stages/perturb.py", *SEEN, *words(network="network.pt", contrasts="original", epsilons=0.001)),
        *words(n_iterations=1, precision="float32", dose_images=0, max_images=4, out="out/changes.npz"),
    ],
    "explain": [
        "-m",
        "cxlib",
        "explain",
        "bird.jpg",
        *words(network="network.pt", image_size=32, device="cpu", out="out"),
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Birds, one of them by itself, and a network."""
    folder = tmp_path_factory.mktemp("faults")
    species.generate(folder / "birds", ambiguity=0, **BIRDS)
    shutil.copy(min((folder / "birds").rglob("*.jpg")), folder / "bird.jpg")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks.save(networks.build("vgg16_bn_narrow", num_classes=8), folder / "network.pt")
    return folder


@pytest.fixture
def here(folder, tmp_path):
    for name in ("birds", "bird.jpg", "network.pt"):
        (tmp_path / name).symlink_to(folder / name)
    return tmp_path


def run(name, here, most=resource.RLIM_INFINITY):
    """Run a command in a folder, on a disk that takes files of so many bytes at most."""
    first, *more = COMMANDS[name]
    machine = {"DEVICE": "cpu", "THREADS": 1, "WORKERS": 0, "PROCESSES": 1, "BATCH_SIZE": 2}
    return subprocess.run(
        [sys.executable, ROOT / first if first.endswith(".py") else first, *more], cwd=here, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | {f"CXLIB_{key}": str(value) for key, value in machine.items()},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)), capture_output=True,
    )  # fmt: skip


def assert_one_line(done, *named):
    told = [line for line in done.stderr.splitlines() if line.strip() and "/s]" not in line and "it/s" not in line]
    assert done.returncode == 1, done.stderr
    assert len(told) == 1 and told[0].startswith("Error: "), done.stderr
    assert all(text in told[0] for text in named), told


def written(here):
    """Files but those of unfinished work, and of the curves, which grow while a network learns."""
    names = [path.relative_to(here) for path in here.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(name) for name in names if not {".resume", "curves"} & {*name.parts}}


@pytest.mark.parametrize(
    ("name", "most", "named"),
    [
        ("paint", 500, "out/birds"), ("train", 100_000, "checkpoint.pt"), ("perturb", 600, ".npz"),
        ("explain", 2_000, "out/bird.npz"), ("explain", 13_000, "out/bird.png"),
    ],
)  # fmt: skip
def test_full_disk_is_one_line_with_the_file_and_nothing_is_half_written(here, name, most, named):
    before = written(here)
    assert_one_line(run(name, here, most), "File too large", named)
    assert written(here) == before
    assert not list(here.rglob(".*.partial*"))
    done = run(name, here)
    assert done.returncode == 0, done.stderr
    assert written(here) > before and not (here / ".resume").exists()


@pytest.fixture
def read_only(here):
    """The folder of the results, on a disk that is mounted for reading."""
    (here / "out").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", here / "out"], capture_output=True).returncode:
        pytest.skip("only root may mount a disk")
    yield here
    subprocess.run(["umount", here / "out"], check=True)


@pytest.mark.parametrize(
    ("name", "named"), [("paint", "'out/birds'"), ("perturb", "'out/changes.npz'"), ("explain", "'out/bird.")]
)
def test_a_folder_for_reading_only_is_one_line(read_only, name, named):
    assert_one_line(run(name, read_only), "Read-only file system", named)
    assert written(read_only) == set()


PIPELINE = """
stages:
  slow:
    cmd: sleep 2 && mkdir -p folder && echo 1 > folder/a && echo 2 > folder/b
    outs: [folder]
  after:
    cmd: cat folder/a folder/b > sum.txt
    deps: [folder]
    outs: [sum.txt]
"""


def test_two_who_reproduce_at_once_do_not_spoil_each_others_results(tmp_path):
    """Both end well, or one says that the other is at work; whoever comes next finds everything done."""
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").touch()
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    how = {"cwd": tmp_path, "env": os.environ | {"DVC_NO_ANALYTICS": "1"}, "text": True}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    repro = [sys.executable, "-m", "dvc", "repro"]
    both = [subprocess.Popen(repro, **how, **pipes) for _ in range(2)]
    told = [process.communicate(timeout=120)[0] for process in both]
    failed = [text for process, text in zip(both, told) if process.returncode]
    assert len(failed) < 2, told
    assert all("lock" in text for text in failed), told
    again = subprocess.run(repro, **how, **pipes)
    assert again.returncode == 0 and "Running stage" not in again.stdout, again.stdout
    assert (tmp_path / "sum.txt").read_text() == "1\n2\n"
    verified = subprocess.run([sys.executable, ROOT / "stages" / "verify.py"], **how, **pipes)
    assert (verified.returncode, verified.stdout) == (0, "2 outputs of 2 stages match dvc.lock\n")
