"""A stage of dvc.yaml depends on exactly the code it executes: no more, or figures retrain networks; no less."""

from pathlib import Path

import pytest
from imports import executed, wrong_deps

ROOT = Path(__file__).parents[1]

TREE = {
    "lib/__init__.py": "",
    "lib/deep/__init__.py": "from ..base import VALUE\n",
    "lib/deep/leaf.py": "def f():\n    from lib import late\n",
    "lib/base.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lib import unused\nVALUE = 1\n",
    "lib/late.py": "import numpy\n",
    "lib/unused.py": "",
    "stages/_shared.py": "import click\n",
    "stages/work.py": "from _shared import option\nfrom lib.deep.leaf import f\n",
}
NEEDED = [file for file in TREE if file not in ("lib/unused.py", "stages/_shared.py")]


@pytest.fixture
def tree(tmp_path):
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def write_stages(tree, *deps, cmd="${launch} stages/work.py --x ${item.x}", shape="{matrix: {x: [1]}, %s}"):
    body = f'cmd: "{cmd}", deps: [{", ".join(deps)}]'
    (tree / "dvc.yaml").write_text(f"stages:\n  work: {shape % body}\n")


@pytest.mark.skipif(not (ROOT / "dvc.yaml").is_file(), reason="there is no dvc.yaml")
def test_stages_depend_on_exactly_the_code_they_execute():
    wrong = wrong_deps(ROOT)
    assert not wrong, "\n".join(["dvc.yaml:", *wrong, "`python -m tests.imports stages/NAME.py` prints a stage's list"])


def test_imports_are_followed_through_packages_and_functions(tree):
    assert executed("stages/work.py", tree, "lib") == set(NEEDED)


@pytest.mark.parametrize("shape", ["{matrix: {x: [1]}, %s}", "{foreach: [1], do: {%s}}", "{%s}"])
def test_exact_list_is_accepted(tree, shape):
    write_stages(tree, *NEEDED, "data/birds", shape=shape)
    assert wrong_deps(tree, "lib") == []


@pytest.mark.parametrize("missing", NEEDED)
def test_missing_file_is_named(tree, missing):
    write_stages(tree, *(file for file in NEEDED if file != missing))
    assert wrong_deps(tree, "lib") == [f"work: deps lack {missing}"]


@pytest.mark.parametrize("extra", ["lib/unused.py", "lib", "lib/", "lib/deep", "stages/"])
def test_superfluous_file_or_folder_is_named(tree, extra):
    write_stages(tree, *NEEDED, extra)
    assert wrong_deps(tree, "lib") == [f"work: deps list {extra}, which it does not execute"]


def test_stage_without_a_script_is_named(tree):
    write_stages(tree, cmd="python stages/gone.py")
    assert wrong_deps(tree, "lib") == ["work: its cmd runs stages/gone.py, which does not exist"]
    write_stages(tree, cmd="echo")
    assert wrong_deps(tree, "lib") == ["work: its cmd runs no stages/*.py"]
