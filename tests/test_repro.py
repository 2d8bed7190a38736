"""`make repro`: stages side by side in a real DVC repository, with the record that `dvc repro` would have left."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_faults import DVC, VERIFY, repository, told
from test_params import load_module
from test_runs import children, wait_for

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
    assert re.findall(r"(\d of \d) stages, \d+ s: .* has ended", text) == [f"{n} of 6" for n in range(1, 7)]
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


def test_one_process_follows_the_longest_chain_and_the_other_takes_the_shortest(tmp_path):
    chain = """
  {it}: {{cmd: sleep 2 && touch {it}, outs: [{it}]}}
  {it}_table: {{cmd: touch {it}_table, deps: [{it}], outs: [{it}_table]}}"""
    alone = "\n  alone: {cmd: touch alone, outs: [alone]}"
    repository(tmp_path, "stages:" + chain.format(it="left") + chain.format(it="right") + alone)
    code, text = told(REPRO, tmp_path)
    assert code == 0, text
    assert "alone" in started(text)[:2]


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


# --- stages that begin warm -----------------------------------------------------------------------------

TELLS = """
import json, os, sys
found = {"warm": "torch" in sys.modules, "words": sys.argv, "name": __name__, "beside": sys.path[0], "cwd": os.getcwd()}
found |= {"stage": os.environ["DVC_STAGE"], "threads": os.environ.get("OMP_NUM_THREADS")}
print("to the terminal", flush=True)
json.dump(found, open("told.json", "w"))
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere stages begin cold")


def script(folder, text, name="some.py"):
    (folder / "stages").mkdir(exist_ok=True)
    (folder / "stages" / name).write_text(text)


@linux
def test_a_script_that_begins_warm_sees_what_it_would_see_cold(tmp_path):
    repository(tmp_path, "stages:\n  told: {cmd: \"python stages/some.py 'two words' --a=1\", outs: [told.json]}")
    script(tmp_path, TELLS)
    found = []
    for command in (REPRO, [*DVC, "repro", "--force"]):
        code, text = told(command, tmp_path)
        assert code == 0 and "to the terminal" in text, text
        found.append(json.loads((tmp_path / "told.json").read_text()))
    assert [one.pop("warm") for one in found] == [True, False]
    assert found[0] == found[1]
    assert found[0]["words"] == ["stages/some.py", "two words", "--a=1"] and found[0]["stage"] == "told"


@linux
def test_a_warm_script_that_fails_fails_its_stage(tmp_path):
    repository(tmp_path, "stages:\n  fails: {cmd: python stages/some.py, outs: [none]}")
    script(tmp_path, "1 / 0")
    code, text = told(REPRO, tmp_path)
    assert code == 1 and "failed to reproduce fails" in text and "ZeroDivisionError" in text


@pytest.fixture(scope="module")
def shell():
    """The shell to which DVC hands a stage's command: from the folder of `some.py` to what came of it."""
    with load_module(ROOT / "stages" / "_warm.py").warm():
        command = [os.environ["SHELL"], "-c", "python stages/some.py"]
        yield lambda folder: subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


@linux
@pytest.mark.parametrize(
    ("end", "code"), [("raise SystemExit(3)", 3), ("1 / 0", 1), ("import os; os.kill(os.getpid(), 9)", 128 + 9)]
)
def test_a_warm_script_that_fails_ends_as_it_would_cold(shell, tmp_path, end, code):
    script(tmp_path, end)
    done = shell(tmp_path)
    assert done.returncode == code
    assert ("ZeroDivisionError" in done.stderr) == (end == "1 / 0")


LINGERS = """
import atexit, threading, time
atexit.register(lambda: open("ended.txt", "a").write("last"))
open("ended.txt", "w")
waits = threading.Thread(target=lambda: (time.sleep(0.5), open("ended.txt", "a").write("thread, ")), daemon={daemon})
waits.start()
print("not flushed", end="")
raise SystemExit({code})
"""


@linux
@pytest.mark.parametrize(("code", "daemon"), [(None, False), (0, True), ("'in words'", True)])
def test_a_warm_script_leaves_nothing_undone(shell, tmp_path, code, daemon):
    script(tmp_path, LINGERS.format(code=code, daemon=daemon))
    done = shell(tmp_path)
    assert done.returncode == (code == "'in words'") and done.stdout == "not flushed"
    assert ("in words" in done.stderr) == bool(done.returncode)
    assert (tmp_path / "ended.txt").read_text() == ("last" if daemon else "thread, last")


@linux
def test_a_warm_script_ends_with_whoever_asked_for_it(tmp_path):
    script(tmp_path, "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)")
    asks = f"""
import os, subprocess, sys
sys.path.insert(0, {str(ROOT / "stages")!r})
from _warm import warm
with warm():
    subprocess.run([os.environ["SHELL"], "-c", "python stages/some.py"])
    sys.stdin.read()
"""
    script(tmp_path, asks, "asks.py")
    at_work = tmp_path / "pid"
    with subprocess.Popen([sys.executable, "stages/asks.py"], cwd=tmp_path, stdin=subprocess.PIPE) as asking:
        wait_for(lambda: at_work.exists() and at_work.read_text(), asking)
        pid = at_work.read_text()
        (shell,) = [one for one in children(asking.pid) if b"-c" in Path(f"/proc/{one}/cmdline").read_bytes()]
        os.kill(shell, signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), asking)
