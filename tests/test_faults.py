"""A disk that is full, or that nobody may write to, and two who work at once: one line, and nothing half-written."""

import contextlib
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_params import command

from cxlib import networks, runs
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


@contextlib.contextmanager
def mounted(place, how):
    """Inside, a disk of its own at this place; where nobody may mount one, the test is skipped."""
    place.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", how, "none", place], capture_output=True).returncode:
        pytest.skip("only root may mount a disk")
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.fixture
def read_only(here):
    """The folder of the results, on a disk that is mounted for reading."""
    with mounted(here / "out", "ro"):
        yield here


@pytest.mark.parametrize(
    ("name", "named"), [("paint", "'out/birds'"), ("perturb", "'out/changes.npz'"), ("explain", "'out/bird.")]
)
def test_a_folder_for_reading_only_is_one_line(read_only, name, named):
    assert_one_line(run(name, read_only), "Read-only file system", named)
    assert written(read_only) == set()


def test_curves_on_a_full_disk_are_one_line_with_their_folder(tmp_path):
    command("stages/train.py")  # and so the scripts' folder can be imported from
    from _training import live

    curves = tmp_path / "disk" / "curves"
    with mounted(tmp_path / "disk", "size=4k"), pytest.raises(OSError, match=f"No space left on device: '{curves}'"):
        live(curves, runs.Ranks())(1, training_loss=1.0, test_accuracy=0.5)


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
DVC = [sys.executable, "-m", "dvc"]
VERIFY = [sys.executable, ROOT / "stages" / "verify.py"]
TOLD = {"env": os.environ | {"DVC_NO_ANALYTICS": "1"}, "text": True, "stdout": -1, "stderr": -2}


def repository(folder, pipeline):
    """Make a folder a repository of DVC."""
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    (folder / ".dvc").mkdir(exist_ok=True)
    (folder / ".dvc" / "config").touch()
    (folder / "dvc.yaml").write_text(pipeline)


def told(command, folder):
    """How a command ends, and all that it says."""
    done = subprocess.run(command, cwd=folder, **TOLD)
    return done.returncode, done.stdout


def test_two_who_reproduce_at_once_do_not_spoil_each_others_results(tmp_path):
    """Both end well, or one says that the other is at work; whoever comes next finds everything done."""
    repository(tmp_path, PIPELINE)
    both = [subprocess.Popen([*DVC, "repro"], cwd=tmp_path, **TOLD) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    failed = [text for process, text in zip(both, said) if process.returncode]
    assert len(failed) < 2, said
    assert all("lock" in text for text in failed), said
    code, text = told([*DVC, "repro"], tmp_path)
    assert code == 0 and "Running stage" not in text, text
    assert (tmp_path / "sum.txt").read_text() == "1\n2\n"
    assert told(VERIFY, tmp_path) == (0, "2 outputs of 2 stages match dvc.lock\n")


LARGE = """
stages:
  large:
    cmd: mkdir -p folder && for i in 1 2 3 4; do head -c 60000 /dev/zero | tr '\\0' $i > folder/$i; done
    outs: [folder]
  after:
    cmd: cat folder/* | md5sum > sum.txt
    deps: [folder]
    outs: [sum.txt]
"""


def test_a_full_cache_is_found_by_verify_and_filled_once_there_is_room(tmp_path):
    """DVC says so of every file that it cannot keep, and ends with 0 all the same."""
    with mounted(tmp_path / ".dvc" / "cache", "size=128k"):
        repository(tmp_path, LARGE)
        code, text = told([*DVC, "repro", "large"], tmp_path)
        assert code == 0 and "No space left on device" in text, text
        code, text = told(VERIFY, tmp_path)
        lines = text.splitlines()
        assert code == 1 and len(lines) == 3, text
        assert lines[0] == "after: not in dvc.lock, for it has not run: `dvc repro after`"
        assert lines[1].startswith("folder: output of large is not in the cache (")
        code, text = told([*DVC, "repro"], tmp_path)
        assert code != 0 and "No space left on device" in text, text
        subprocess.run(["mount", "-o", "remount,size=8m", tmp_path / ".dvc" / "cache"], check=True)
        code, text = told([*DVC, "repro"], tmp_path)
        assert code == 0 and "No space" not in text, text
        whole = b"".join(b"%d" % i * 60000 for i in range(1, 5))
        assert (tmp_path / "sum.txt").read_text().split()[0] == hashlib.md5(whole).hexdigest()
        assert told(VERIFY, tmp_path) == (0, "2 outputs of 2 stages match dvc.lock\n")


def test_where_a_killed_dvc_seems_to_be_at_work_one_file_is_to_be_removed(tmp_path):
    """A dead one is passed over (test_kills.py), unless its number was taken again or half of the file is there."""
    repository(tmp_path, "stages:\n  sum:\n    cmd: echo 3 > sum.txt\n    outs: [sum.txt]\n")
    (tmp_path / ".dvc" / "tmp").mkdir()
    (tmp_path / ".dvc" / "tmp" / "lock").write_text("4194305\n")
    left = tmp_path / ".dvc" / "tmp" / "rwlock"
    busy = json.dumps({"write": {str(tmp_path / "sum.txt"): {"pid": os.getpid(), "cmd": "dvc repro"}}, "read": {}})
    for content, says in ((busy, "is busy"), (busy[:-1], "RWLock-file '.dvc/tmp/rwlock'. JSON structure is corrupted")):
        left.write_text(content)
        code, text = told([*DVC, "repro"], tmp_path)
        assert code != 0 and says in text, text
    assert "`rm -f .dvc/tmp/rwlock`" in (ROOT / "docs" / "machine.md").read_text()
    left.unlink()
    assert told([*DVC, "repro"], tmp_path)[0] == 0
    assert (tmp_path / "sum.txt").read_text() == "3\n"
