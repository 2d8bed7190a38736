"""A stage of dvc.yaml depends on exactly the code it executes: no more, or figures retrain networks; no less."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from imports import LAYERS, executed, shortest_deps, wrong_deps

ROOT = Path(__file__).parents[1]

# `lib/deep` is a layer, of which the stage executes a part; all of `lib/whole` is executed.
TREE = {
    "lib/__init__.py": "import lib.whole.one\n",
    "lib/deep/__init__.py": "from ..base import VALUE\n",
    "lib/deep/leaf.py": "def f():\n    from lib import late\n",
    "lib/deep/other.py": "from lib import unused\n",
    "lib/base.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lib import unused\nVALUE = 1\n",
    "lib/late.py": "import numpy\n",
    "lib/unused.py": "",
    "lib/whole/__init__.py": '"""Says what it is, and does nothing."""\n',
    "lib/whole/one.py": "from lib.whole.inner import two\n",
    "lib/whole/inner/__init__.py": "",
    "lib/whole/inner/two.py": "",
    "stages/_shared.py": "import click\nfrom lib import base\n",
    "stages/_idle.py": "",
    "stages/work.py": "from _shared import option\nfrom lib.deep.leaf import f\n",
}
IDLE = {
    "lib/unused.py", "lib/deep/other.py", "lib/whole/__init__.py", "lib/whole/inner/__init__.py", "stages/_idle.py",
}  # fmt: skip
NEEDED = sorted(TREE.keys() - IDLE)
SHORTEST = [
    "lib/__init__.py",
    "lib/base.py",
    "lib/deep",
    "lib/late.py",
    "lib/whole",
    "stages/_shared.py",
    "stages/work.py",
]


@pytest.fixture
def tree(tmp_path):
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def write_stages(tree, *deps, cmd="python stages/work.py ${item.x}", shape="{matrix: {x: [1]}, %s}"):
    body = f'cmd: "{cmd}", deps: [{", ".join(deps)}]'
    (tree / "dvc.yaml").write_text(f"stages:\n  work: {shape % body}\n")


def wrong(tree, *deps, **more):
    write_stages(tree, *deps, **more)
    return wrong_deps(tree, "lib", ("lib/deep",))


def without(removed, *added):
    return [dep for dep in SHORTEST if dep != removed] + list(added)


# --- the repository ---------------------------------------------------------------------------------------------


def test_stages_depend_on_exactly_the_code_they_execute():
    found = wrong_deps(ROOT)
    assert not found, "\n".join(["dvc.yaml:", *found, "`python -m tests.imports stages/NAME.py` prints a stage's list"])


@pytest.mark.parametrize("folder", LAYERS)
def test_layers_are_folders_that_some_stage_depends_on(folder):
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    assert (ROOT / folder).is_dir()
    assert any(folder in stage.get("do", stage).get("deps", []) for stage in stages)


@pytest.mark.parametrize("script", ["stages/train.py", "stages/vit.py", "stages/figure.py"])
def test_printed_list_is_one_that_dvc_yaml_may_hold(script, tmp_path):
    command = [sys.executable, "-m", "tests.imports", script]
    printed = yaml.safe_load(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert printed == shortest_deps(script, ROOT)
    for folder in ("cxlib", "stages"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"it": {"cmd": f"python {script}", "deps": printed}}}))
    assert wrong_deps(tmp_path) == []


# --- the check itself, on a small tree --------------------------------------------------------------------------


def test_imports_are_followed_through_packages_functions_and_what_lies_beside_the_script(tree):
    assert executed("stages/work.py", tree, "lib") == set(NEEDED)


@pytest.mark.parametrize("shape", ["{matrix: {x: [1]}, %s}", "{foreach: [1], do: {%s}}", "{%s}"])
@pytest.mark.parametrize(
    "deps",
    [
        NEEDED,
        SHORTEST,
        without("lib/deep", "lib/deep/"),
        without("lib/deep", "lib/deep/__init__.py", "lib/deep/leaf.py"),
        without("lib/whole", "lib/whole/inner", "lib/whole/one.py"),
    ],
)
def test_exact_list_of_files_or_folders_is_accepted(tree, deps, shape):
    assert wrong(tree, *deps, "data/birds", shape=shape) == []


def test_shortest_list_is_folders_where_they_will_do(tree):
    assert shortest_deps("stages/work.py", tree, "lib", ("lib/deep",)) == SHORTEST


@pytest.mark.parametrize("missing", NEEDED)
def test_missing_file_is_named(tree, missing):
    assert wrong(tree, *(file for file in NEEDED if file != missing)) == [f"work: deps lack {missing}"]


@pytest.mark.parametrize(
    ("folder", "files"),
    [
        ("lib/deep", ["lib/deep/__init__.py", "lib/deep/leaf.py"]),
        ("lib/whole", ["lib/whole/inner/two.py", "lib/whole/one.py"]),
    ],
)
def test_missing_folder_is_named_by_what_is_executed_of_it(tree, folder, files):
    assert wrong(tree, *without(folder)) == [f"work: deps lack {file}" for file in files]


@pytest.mark.parametrize("extra", [*sorted(IDLE), "lib", "stages", "lib/gone.py"])
def test_superfluous_file_or_folder_is_named(tree, extra):
    # A docstring is nothing to execute; `lib` and `stages` hold files that are not executed.
    assert wrong(tree, *NEEDED, extra) == [f"work: deps list {extra}, which it does not execute"]


@pytest.mark.parametrize(
    ("extra", "folder"),
    [("lib/deep/leaf.py", "lib/deep"), ("lib/whole/inner", "lib/whole"), ("lib/whole/inner/two.py", "lib/whole")],
)
def test_what_a_listed_folder_has_is_not_listed_again(tree, extra, folder):
    assert wrong(tree, *SHORTEST, extra) == [f"work: deps list {extra}, which is in {folder}"]


def test_layer_of_which_nothing_is_executed_is_superfluous(tree):
    (tree / "stages" / "work.py").write_text("from _shared import option\n")
    deps = [dep for dep in SHORTEST if dep not in ("lib/deep", "lib/late.py")]
    assert wrong(tree, *deps) == []
    assert wrong(tree, *deps, "lib/deep") == ["work: deps list lib/deep, which it does not execute"]


def test_folder_that_is_no_layer_must_be_executed_as_a_whole(tree):
    (tree / "lib" / "whole" / "inner" / "new.py").touch()
    assert wrong(tree, *SHORTEST) == [
        "work: deps lack lib/whole/inner/two.py",
        "work: deps lack lib/whole/one.py",
        "work: deps list lib/whole, which it does not execute",
    ]


@pytest.mark.parametrize("imported", ["import lib", "from lib import explain"])
def test_import_through_the_lazy_public_face_is_an_error(tree, imported):
    (tree / "lib" / "__init__.py").write_text("def __getattr__(name):\n    ...\n")
    (tree / "stages" / "work.py").write_text(f"{imported}\n")
    name = imported.split()[1] if imported.startswith("import") else "lib.explain"
    assert wrong(tree) == [f"work: stages/work.py imports {name} through the public face: name its module"]


def test_stage_without_a_script_is_named(tree):
    assert wrong(tree, cmd="python stages/gone.py") == ["work: its cmd runs stages/gone.py, which does not exist"]
    assert wrong(tree, cmd="echo") == ["work: its cmd runs no stages/*.py"]
