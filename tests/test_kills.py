"""Whatever is killed at whatever moment ends, when it is run again, in the files of a run that nobody interrupted.

By hand, `KILLS=20 python -m pytest --timeout 0 tests/test_kills.py` kills every stage of the pipeline as often.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from test_params import ROOT, composed, resolved
from test_stages import MACHINE, MINIATURE, in_order

KILLS = int(os.environ.get("KILLS", "0"))
#: One stage of each kind that takes long, made shorter.
LONG = (
    "data@synthbirds", "train@probed", "train@vgg16_bn_narrow", "train@vit_mini", "train@squeezenet1_1",
    "perturb@squeezenet1_1", "saturate@squeezenet1_1", "gradient_norms", "mask@vgg16_bn_narrow",
    "control@vgg16_bn_narrow", "localise@vgg16_bn_narrow", "relate@vgg16_bn_narrow", "maps@figure_3", "vit@vit_mini",
    "vit_maps@figure_5",
)  # fmt: skip
SHORTER = (
    "mask.options.explainers=[gradcam]", "mask.options.baselines=[zeros]", "mask.options.max_images=5",
    "localise.options.explainers=[gradcam]", "localise.options.max_images=5", "relate.options.explainers=[gradcam]",
)  # fmt: skip


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What was seen of each stage, killed once by SIGKILL and once by SIGTERM, or as often as is asked for."""
    folder = tmp_path_factory.mktemp("kills") / "repo"
    stages = in_order(resolved(folder, composed(*MINIATURE, *(() if KILLS else SHORTER))))
    shutil.copytree(ROOT / "data" / "reference", folder / "data" / "reference")
    (folder / "stages").symlink_to(ROOT / "stages")
    chosen = {stage.name: [stage.cmd, [out.def_path for out in stage.outs]] for stage in stages}
    if not KILLS:
        chosen = {name: command for name, command in chosen.items() if name in LONG}
        assert set(chosen) == set(LONG)
    commands, seen = folder.parent / "commands.json", folder.parent / "seen.json"
    commands.write_text(json.dumps(chosen))
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("kills.py"), commands, seen, str(KILLS or 2)],
        cwd=folder, env=os.environ | MACHINE | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(seen.read_text())
    assert {name: one["status"] for name, one in found.items() if one["status"] or not one["files"]} == {}, done.stderr
    return found


def test_a_stage_that_was_killed_ends_with_the_same_bytes(seen):
    assert {name: one["again"] for name, one in seen.items() if one["again"]} == {}
    assert [name for name, one in seen.items() if not one["same"]] == []


def test_no_kill_leaves_a_file_or_folder_half_written(seen):
    assert {name: one["torn"] for name, one in seen.items() if one["torn"]} == {}


def test_a_kill_meets_work_and_what_it_leaves_is_gone_at_the_end(seen):
    """Both signals; and some kills while there was unfinished work to take up."""
    ends = Counter(end for one in seen.values() for end in one["ends"])
    assert set(ends) <= {0, -9, -15} and ends[-9] > len(seen) / 2 < ends[-15], ends
    assert sum(any(one["kept"]) for one in seen.values()) > len(seen) / 3
    assert {name: one["left"] for name, one in seen.items() if one["left"]} == {}
    if KILLS:
        print(f"\n{len(seen)} stages, {sum(ends.values())} kills: {dict(ends)}")
