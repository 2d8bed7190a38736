"""Whatever is killed at whatever moment ends, when it is run again, in the files of a run that nobody interrupted.

By hand, `KILLS=20 python -m pytest --timeout 0 tests/test_kills.py` kills every stage of the pipeline as often, and
`dvc repro` on a part of it.
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
    "data@synthbirds", "train@probed", "train@vgg16_bn_narrow", "train@vit_mini", "perturb@vgg16_bn_narrow",
    "saturate@vgg16_bn_narrow", "gradient_norms", "mask@vgg16_bn_narrow", "localise@vgg16_bn_narrow",
    "judge@vgg16_bn_narrow", "relate@vgg16_bn_narrow", "maps@figure_3", "vit@vit_mini", "vit_maps@figure_5",
)  # fmt: skip
SHORTER = (
    "+perturb.networks.vgg16_bn_narrow=${networks.vgg16_bn_narrow.images}", "gradient_norms.network=vgg16_bn_narrow",
    "mask.options.explainers=[gradcam]", "mask.options.baselines=[zeros]", "mask.options.max_images=5",
    "localise.options.explainers=[gradcam]", "localise.options.max_images=5", "relate.options.explainers=[gradcam]",
)  # fmt: skip
#: Stages that take a moment, write as ours do, and of what DVC makes one of two.
PIPELINE = """
stages:
  folder:
    cmd: >-
      mkdir .$$.partial && echo 1 > .$$.partial/a && sleep 0.3 && echo 2 > .$$.partial/b && rm -rf folder &&
      mv .$$.partial folder
    outs: [folder]
  sum:
    cmd: cat folder/a folder/b > .$$.partial && sleep 0.3 && mv .$$.partial sum.txt
    deps: [folder]
    outs: [sum.txt]
"""
#: By hand: what real stages are killed with DVC.
TARGETS = ("mask@vgg16_bn_narrow", "saturate@vgg16_bn_narrow", "vit_maps@figure_5")


def repository(folder, *overrides):
    """The miniature pipeline's folder and stages."""
    stages = in_order(resolved(folder, composed(*MINIATURE, *overrides)))
    shutil.copytree(ROOT / "data" / "reference", folder / "data" / "reference")
    for name in ("cxlib", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return stages


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What was seen of each command, killed by turns by SIGKILL and SIGTERM."""
    top = tmp_path_factory.mktemp("kills")
    light, commands = top / "light", {}
    stages = {stage.name: stage for stage in repository(top / "repo", *(() if KILLS else SHORTER))}
    for name in stages if KILLS else sorted(LONG, key=list(stages).index):
        outs = [out.def_path for out in stages[name].outs]
        commands[name] = (str(top / "repo"), stages[name].cmd, outs, outs, KILLS or 2)
    light.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=light, check=True)
    (light / ".dvc").mkdir()
    (light / ".dvc" / "config").touch()
    (light / "dvc.yaml").write_text(PIPELINE)
    outs = ["folder", "sum.txt", "dvc.lock"]
    commands["dvc"] = (str(light), "dvc repro", outs, [*outs, ".dvc/cache"], KILLS or 4)
    if KILLS:
        stages = {stage.name: stage for stage in repository(top / "real", *SHORTER)}
        outs = [out.def_path for name in TARGETS for out in stages[name].outs] + ["dvc.lock"]
        made = ["data/sets", "data/networks", "data/reports", "dvclive", ".dvc/cache", *outs]
        commands["dvc, real stages"] = (str(top / "real"), f"dvc repro {' '.join(TARGETS)}", outs, made, KILLS)
    commands["dvc, verified"] = (str(light), f"python {ROOT / 'stages' / 'verify.py'}", ["dvc.lock"], [], 0)
    (top / "commands.json").write_text(json.dumps(commands))
    machine = os.environ | MACHINE | {"PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("kills.py"), top / "commands.json", top / "seen.json"],
        cwd=top, env=machine, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((top / "seen.json").read_text())
    assert {name: one["status"] for name, one in found.items() if one["status"] or not one["files"]} == {}, done.stderr
    return found


def test_what_was_killed_ends_with_the_same_bytes(seen):
    assert {name: one["again"] for name, one in seen.items() if one["again"]} == {}
    assert [name for name, one in seen.items() if not one["same"]] == []


def test_no_kill_leaves_a_file_or_folder_half_written(seen):
    assert {name: one["torn"] for name, one in seen.items() if one["torn"]} == {}


def test_a_kill_meets_work_and_what_it_leaves_is_gone_at_the_end(seen):
    """Both signals; and some kills while there was unfinished work to take up."""
    ends = Counter(end for one in seen.values() for end in one["ends"])
    assert ends[-9] > len(seen) / 3 < ends[-15], ends
    # 255: DVC meets what the one before it had started, and that is still at work.
    assert set(ends) <= {0, -9, -15, 255}
    stages = {name: one for name, one in seen.items() if not name.startswith("dvc")}
    assert sum(any(one["kept"]) for one in stages.values()) > len(stages) / 4
    assert {name: one["left"] for name, one in stages.items() if one["left"]} == {}
    if KILLS:
        print(f"\n{len(seen)} commands, {sum(ends.values())} kills: {dict(ends)}")
