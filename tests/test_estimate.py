"""How long a profile takes: counts times measured seconds."""

import os
import subprocess
import sys

import pytest
from test_params import ROOT, load_module

from cxlib.datasets.images import read

SIZES = (100, 40)  # images to train on and to test on
MASKED = [
    "--explainers",
    "a",
    "--explainers",
    "b",
    "--contrasts",
    "c",
    "--contrasts",
    "d",
    "--contrasts",
    "e",
    "--baselines",
    "f",
    "--rules",
    "g",
    "--rules",
    "h",
]


@pytest.fixture(scope="module")
def estimate():
    if str(ROOT / "stages") not in sys.path:
        sys.path.append(str(ROOT / "stages"))
    return load_module(ROOT / "stages" / "estimate.py")


@pytest.mark.parametrize(
    ("stage", "words", "per_image", "expected"),
    [
        ("perturb@x", ["--max_images", "10"], 2.0, (10, 20.0)),
        ("perturb@x", ["--max_images", "0"], 2.0, (40, 80.0)),
        ("perturb@x", ["--max_images", "50"], 2.0, (40, 80.0)),
        ("train@x", ["fine_tune", "--epochs", "3"], (2.0, 5.0), (420, 3 * 100 * 5.0 + 3 * 40 * 2.0)),
        ("train@x", ["fine_tune", "--epochs", "0"], (2.0, 5.0), (40, 80.0)),
        ("train@x", ["fine_tune", "--frozen", "none", "--epochs", "3"], (2.0, 5.0), (420, 1740.0)),
        # Behind a frozen part, the part's work on every image is done once, whatever the epochs.
        ("train@x", ["fine_tune", "--frozen", "trunk", "--epochs", "3"], (2.0, 5.0), (440, 300 * 5.0 + 140 * 2.0)),
        ("train@x", ["as_it_came", "--labels"], (2.0, 5.0), (40, 80.0)),
        # The features of every training image once, as dear as its test.
        ("train@x", ["probe", "--penalty", "0.003"], (2.0, 5.0), (140, 280.0)),
        ("relate@x", ["--max_images", "10"], 2.0, (10, 20.0)),
        ("relate@x", ["--max_images", "0"], 2.0, (40, 80.0)),
        ("data@x", [], 0.5, (140, 70.0)),
        ("maps@x", ["--max_images", "4"], 2.0, (0, 0.0)),
    ],
)
def test_seconds_are_counts_times_what_an_image_takes(estimate, stage, words, per_image, expected):
    assert estimate.work(stage, words, SIZES, per_image, 0.0) == expected


def test_every_mask_costs_at_least_a_forward_pass(estimate):
    """Half of 40 images lie on each side; 2 explainers, 3 contrasts, 2 targets, 2 features, 1 baseline, 2 rules."""
    words = [*MASKED, "--max_images", "0", "--max_images_below", "5"]
    n, seconds = estimate.work("mask@x", words, SIZES, 0.001, 0.1)
    assert n == 20 + 5
    assert seconds == pytest.approx(25 * 48 * estimate.DISTINCT * 0.1)
    assert estimate.work("mask@x", words, SIZES, 100.0, 0.1)[1] == pytest.approx(25 * 100.0)


@pytest.mark.parametrize(("name", "n_train"), [("synthbirds", 16), ("cub", 16), ("imagenet", 0), ("photographs", 0)])
def test_made_up_data_are_read_as_the_data_set_is(estimate, tmp_path, name, n_train):
    estimate.made_up(tmp_path / name, name, 2)
    assert len(read(tmp_path / name, "test")) == 16
    assert estimate.counts(name, {"path": tmp_path / name})[:2] == (n_train, 16)


def test_a_profile_that_there_is_not_is_named(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "stages" / "estimate.py", "profile=nowhere"], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ") and "nowhere" in done.stderr
    assert done.stderr.count("\n") == 1
