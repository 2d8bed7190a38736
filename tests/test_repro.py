"""`make repro`: stages side by side in a real DVC repository, with the record that `dvc repro` would have left."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_faults import DVC, VERIFY, repository, told

ROOT = Path(__file__).parents[1]
REPRO = [sys.executable, str(ROOT / "stages" / "repro.py"), "--jobs", "2"]

# `left` ends only if `right` runs meanwhile, and the other way round.
MEET = (
    "touch {it}.begun; for i in $(seq 600); do test -e {other}.begun && break; sleep 0.1; done; test -e {other}.begun"
)
PIPELINE = f"""
stages:
  left: {{cmd: "({MEET.format(it="left", other="right")}) && cat source > left", deps: [source], outs: [left]}}
  right: {{cmd: "({MEET.format(it="right", other="left")}) && cat source > right", deps: [source], outs: [right]}}
  source: {{cmd: echo 7 > source, deps: [given], outs: [source]}}
  both: {{cmd: cat left right > both, deps: [left, right], outs: [both]}}
  alone: {{cmd: echo $CXLIB_THREADS > alone, outs: [alone]}}
  after: {{cmd: cat alone > after, deps: [alone], outs: [after]}}
"""


@pytest.fixture
def repo(tmp_path):
    repository(tmp_path, PIPELINE)
    (tmp_path / "given").write_text("1")
    return tmp_path


def started(text):
    return [line.split("'")[1] for line in text.splitlines() if line.startswith("Running stage")]


def test_stages_run_side_by_side_and_after_what_they_depend_on(repo):
    code, text = told(REPRO, repo)
    assert code == 0, text
    assert sorted(started(text)) == ["after", "alone", "both", "left", "right", "source"]
    assert (repo / "both").read_text() == "7\n7\n"
    assert (repo / "after").read_text() == f"{max(1, len(os.sched_getaffinity(0)) // 2)}\n"  # they share the cores
    assert told(VERIFY, repo) == (0, "6 outputs of 6 stages match dvc.lock\n")
    record = yaml.safe_load((repo / "dvc.lock").read_text())
    # What DVC itself makes of it: nothing to do, and the same record.
    code, text = told([*DVC, "repro"], repo)
    assert (code, started(text)) == (0, [])
    assert yaml.safe_load((repo / "dvc.lock").read_text()) == record
    code, text = told(REPRO, repo)
    assert (code, text) == (0, "6 stages are up to date\n")


def test_what_many_wait_for_begins_first(tmp_path):
    stages = ["idle: {cmd: touch idle, outs: [idle]}", "d: {cmd: touch d, deps: [c], outs: [d]}"]
    stages += ["c: {cmd: touch c, deps: [b], outs: [c]}", "b: {cmd: touch b, outs: [b]}"]
    repository(tmp_path, "\n  ".join(["stages:", *stages, "z: {cmd: touch z, outs: [z]}"]))
    code, text = told([*REPRO[:-1], "1"], tmp_path)
    assert code == 0, text
    assert started(text)[:2] == ["b", "c"]
    assert sorted(started(text)[2:]) == ["d", "idle", "z"]


def test_only_what_is_stale_runs_and_what_comes_of_it_unchanged_stops_there(repo):
    told(REPRO, repo)
    (repo / "given").write_text("2")
    code, text = told(REPRO, repo)  # `source` is what it was, so that nothing follows
    assert (code, started(text)) == (0, ["source"])
    (repo / "both").unlink()
    code, text = told(REPRO, repo)
    assert code == 0 and (repo / "both").read_text() == "7\n7\n"


def test_targets_are_reproduced_with_what_they_need_alone(repo):
    code, text = told([*REPRO, "after"], repo)
    assert (code, started(text)) == (0, ["alone", "after"])
    code, text = told([*REPRO, "nothing"], repo)
    assert code == 1 and "nothing" in text and "Traceback" not in text


def test_a_stage_that_fails_is_named_and_nothing_follows_it(repo):
    for side in ("left", "right"):
        (repo / f"{side}.begun").touch()  # one of them alone may begin before the other stage fails
    broken = (repo / "dvc.yaml").read_text().replace("echo $CXLIB_THREADS > alone", "exit 3")
    (repo / "dvc.yaml").write_text(broken)
    code, text = told(REPRO, repo)
    assert code == 1 and "Error: failed to reproduce alone" in text
    assert "after" not in started(text) and not (repo / "after").exists()
    (repo / "dvc.yaml").write_text(broken.replace("exit 3", "echo $CXLIB_THREADS > alone"))
    assert told(REPRO, repo)[0] == 0
    assert told(VERIFY, repo)[0] == 0


def test_a_dvc_yaml_that_is_none_is_one_line(repo):
    (repo / "dvc.yaml").write_text("stages: [")
    done = subprocess.run(REPRO, cwd=repo, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("Error: ") and len(done.stderr.splitlines()) == 1, done
