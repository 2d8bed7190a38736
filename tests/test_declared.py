"""What a stage reads is what dvc.yaml says of it, and the other way round: seen on the files that its process opens."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from dvc.dependency.param import ParamsDependency
from imports import says_nothing
from test_params import ROOT, composed, resolved
from test_stages import MACHINE, MINIATURE, in_order

from cxlib import runtime

#: A pipeline, every file of which is traced: slow cores, or busy ones, need more than other tests may take.
pytestmark = pytest.mark.timeout(1500)

#: Tables that `claims` names for the order of the stages alone: as dvc.yaml says.
ORDER = {"claims": ["perturbation", "saturation", "table1", "localisation", "intervention", "vit"]}
#: What no result depends on: see `runtime.Machine`; and the launcher's mark of its own processes.
MACHINES = {f"CXLIB_{field.name.upper()}" for field in fields(runtime.Machine)} | {"TORCHELASTIC_RUN_ID"}


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """The miniature pipeline once more, in a repository of its own with all the code: what each stage has read."""
    folder = tmp_path_factory.mktemp("declared") / "repo"
    repo = resolved(folder, composed(*MINIATURE))
    for name in ("cxlib", "stages", "conf", "data/reference"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    stages = in_order(repo)
    commands, reads = folder.parent / "commands.json", folder.parent / "reads.json"
    commands.write_text(json.dumps({stage.name: stage.cmd for stage in stages}))
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("reads.py"), commands, reads],
        cwd=folder, env=os.environ | MACHINE | {"PYTHONPATH": str(folder)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(reads.read_text())
    assert {name: found["status"] for name, found in seen.items() if found["status"]} == {}, done.stderr
    return [declared(stage, seen[stage.name], folder) for stage in stages]


def declared(stage, seen, folder):
    """A stage's files: those that dvc.yaml lists, those that it read without its own; and the rest of what is known."""
    outs = [out.def_path for out in stage.outs]
    # An `__init__.py` may be a docstring. DVCLive asks for DVC's configuration, unfinished work is the stage's own.
    aside = {file for file in seen["code"] if says_nothing(folder / file)}
    files = {*seen["read"], *seen["code"]} - aside
    files = {file for file in files if not file.startswith((".dvc", ".resume/")) and "__pycache__" not in file}
    return SimpleNamespace(
        name=stage.name,
        deps=[dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency)],
        params=[name for dep in stage.deps if isinstance(dep, ParamsDependency) for name in dep.params],
        read=[file for file in sorted(files) if not any(is_in(file, out) for out in outs)],
        # Beside an output, what an earlier run left of it is looked for.
        listed=[place for place in seen["listed"] if not any(is_in(place, out) or is_in(out, place) for out in outs)],
        environment=set(seen["environment"]),
    )


def is_in(file, place):
    """Whether a file or folder is this one, or lies in it."""
    return f"{file}/".startswith(f"{place}/")


def test_what_is_read_is_declared(traced):
    undeclared = {
        stage.name: [file for file in stage.read if not any(is_in(file, dep) for dep in stage.deps)] for stage in traced
    }
    assert {name: files for name, files in undeclared.items() if files} == {}


def test_what_is_declared_is_read(traced):
    unread = {
        stage.name: [dep for dep in stage.deps if not any(is_in(file, dep) for file in stage.read)] for stage in traced
    }
    expected = {name: [f"plots/{table}.csv" for table in tables] for name, tables in ORDER.items()}
    assert {name: deps for name, deps in unread.items() if deps} == expected


def test_no_folder_of_data_is_listed_that_is_not_declared(traced):
    for stage in traced:
        places = [place for place in stage.listed if place.startswith(("data", "plots", "metrics", "conf"))]
        assert [place for place in places if not any(is_in(place, dep) for dep in stage.deps)] == [], stage.name


def test_parameters_are_the_identity_of_the_networks_that_are_read(traced):
    """All others reach a stage through its command line; so no stage reads params.yaml."""
    for stage in traced:
        read = [Path(dep).stem for dep in stage.deps if is_in(dep, "data/networks")]
        assert stage.params == [f"networks.{name}.network" for name in read], stage.name


def test_the_environment_is_asked_for_the_machine_alone(traced):
    assert set().union(*(stage.environment for stage in traced)) - MACHINES == set()
    assert {"CXLIB_DEVICE", "CXLIB_BATCH_SIZE"} <= set().union(*(stage.environment for stage in traced))
