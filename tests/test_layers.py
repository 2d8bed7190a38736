"""Imports run downwards: who installs the library for a network of their own gets no paper, and no pandas."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import networkx as nx
import pytest
from imports import imported_names

ROOT = Path(__file__).parents[1]

#: From bottom to top, names below `cxlib`; a folder's files are in its layer. `__init__` and `__main__` are its face.
LIBRARY = (
    ("runtime",),
    ("runs",),
    ("contrasts",),
    ("overlay",),
    ("pictures",),
    ("networks",),
    ("datasets",),
    ("taps",),
    ("outputs",),
    ("explainers",),
    ("adapters",),
    ("metrics",),
    ("classnames",),
    ("photographs",),
    ("app",),
    ("__init__", "__main__"),
)
REVIEW = (("fetch",), ("synthbirds",), ("training",), ("review.ledger",), ("review.report",), ("review",))
RANK = {name: rank for rank, layer in enumerate([*LIBRARY, *REVIEW]) for name in layer}
LINE = len(LIBRARY)  # ranks from here on are above it
#: What the library needs besides Python.
THIRD_PARTIES = {"torch", "torchvision", "timm", "numpy", "PIL", "tqdm", "click", "matplotlib"}
#: What the review's tables and pipeline need on top.
REVIEW_ONLY = {"pandas", "scipy", "yaml", "dvc"}


# --- the checks -------------------------------------------------------------------------------------------------


def modules(root):
    """`{dotted name: path}` of everything in cxlib; a package is its `__init__.py`, also where there is none."""
    folders = {path.parent for path in (root / "cxlib").rglob("*.py")}
    files = {path for path in (root / "cxlib").rglob("*.py") if path.name != "__init__.py"}
    dotted = {path: ".".join(path.relative_to(root).with_suffix("").parts) for path in folders | files}
    return {name: path / "__init__.py" if path in folders else path for path, name in sorted(dotted.items())}


def names_imported(root):
    """`{module: names that it imports}`, also inside functions, but not for type checkers only."""
    found = modules(root)
    within = {name: name if path.name == "__init__.py" else name.rpartition(".")[0] for name, path in found.items()}
    return {
        name: sorted(set(imported_names(path, within[name]))) if path.is_file() else [] for name, path in found.items()
    }


def graph(root):
    """Modules of cxlib, with an edge to each one that they import by name.

    What Python executes on the way, the `__init__.py` above a module, has no edge: `hidden_imports` looks at it.
    """
    imports = names_imported(root)
    edges = nx.DiGraph()
    edges.add_nodes_from(imports)
    for name, targets in imports.items():
        for target in targets:
            while target and target not in imports:
                target = target.rpartition(".")[0]
            if target:
                edges.add_edge(name, target)
    return edges


def layer(module):
    """The layer of a module, the most special that holds it; None where there is none."""
    within = module.partition(".")[2] or "__init__"
    holders = [name for name in RANK if f"{within}.".startswith(f"{name}.")]
    return max(holders, key=len, default=None)


def rank(module):
    """The place of a module's layer, from 0; what is in none (`unplaced` says so) is above them all."""
    return RANK.get(layer(module), len(RANK))


def unplaced(root):
    """A line for each module that is in no layer, and for each layer of which there is nothing."""
    layers = {module: layer(module) for module in modules(root)}
    lines = [f"{module} is in no layer" for module, found in layers.items() if found is None]
    return lines + [f"the layer {name} has no module" for name in RANK if name not in layers.values()]


def upward_imports(root):
    """A line for each import of a higher layer."""
    lines = []
    for importer, imported in graph(root).edges:
        low, high = rank(importer), rank(imported)
        if low < high:
            where = "is the review above the line" if low < LINE <= high else "is of a higher layer"
            lines.append(f"{importer} imports {imported}, which {where}")
    return sorted(lines)


def cycles(root):
    """A line for each circle of modules that import one another."""
    circles = [circle for circle in nx.strongly_connected_components(graph(root)) if len(circle) > 1]
    return [f"{', '.join(sorted(circle))} import one another" for circle in circles]


def hidden_imports(root):
    """A line for each package that lower layers cannot be imported without, and that imports something itself."""
    lines, imports = [], names_imported(root)
    for package, names in imports.items():
        below = [name for name in imports if name.startswith(f"{package}.")]
        if any(rank(name) < rank(package) for name in below):
            names = [name for name in names if name.partition(".")[0] not in sys.stdlib_module_names]
            lines += [f"{package} imports {name}, and so does each lower layer inside it" for name in names]
    return lines


def foreign_imports(root):
    """A line for each import of another's package that is out of place."""
    lines = []
    for module, names in names_imported(root).items():
        for foreign in sorted({name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"cxlib"}):
            if rank(module) < LINE and foreign not in THIRD_PARTIES:
                lines.append(f"{module} imports {foreign}, which the library does without")
            elif foreign == "click" and module != "cxlib.__main__":
                lines.append(f"{module} imports click, which is for the command line")
            elif foreign == "dvc":
                lines.append(f"{module} imports dvc, which calls us and not the other way round")
            elif foreign in ("torch", "torchvision", "timm") and layer(module) in ("review.ledger", "review.report"):
                lines.append(f"{module} imports {foreign}: tables and figures are made of arrays")
    return lines


CHECKS = (unplaced, upward_imports, cycles, hidden_imports, foreign_imports)


# --- the repository ---------------------------------------------------------------------------------------------


def test_every_module_is_in_one_layer():
    assert unplaced(ROOT) == []
    assert len(RANK) == sum(map(len, [*LIBRARY, *REVIEW]))  # no name stands twice


@pytest.mark.parametrize("check", CHECKS[1:], ids=lambda check: check.__name__)
def test_imports_are_in_order(check):
    found = check(ROOT)
    assert not found, "\n".join(found)


# Absent as on a machine where they are not installed: importing one fails, and looking for it finds nothing.
ABSENT = """
import sys
from importlib import import_module

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
for name in {absent}:
    try:
        import_module(name)
    except ImportError:
        continue
    raise AssertionError(name)
"""
EXPLAIN = """
import cxlib
import torch
from torch import nn

torch.manual_seed(0)
layers = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 5)
maps = cxlib.explain(nn.Sequential(*layers), torch.rand(2, 3, 8, 8), torch.tensor([[0, 1], [2, 3]]), layer="0")
assert maps.shape == (2, 2, 8, 8)
assert maps.isfinite().all() and maps.any()
"""


def python(program):
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_library_explains_without_what_the_review_needs():
    modules_of_library = [name for name in modules(ROOT) if rank(name) < LINE]
    imports = "\n".join(f"import_module({name!r})" for name in modules_of_library)
    python(ABSENT.format(absent=REVIEW_ONLY) + EXPLAIN + imports)


def test_report_is_made_without_torch():
    # Not even through others: `overlay`, `runtime`, a package's `__init__.py`.
    imports = "\n".join(f"import {name}" for name in modules(ROOT) if layer(name) in ("review.ledger", "review.report"))
    python(ABSENT.format(absent={"torch", "torchvision", "timm", "dvc"}) + imports)


# --- the checks themselves, on a small tree ---------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """A module for each layer, two in `explainers`, that import nothing."""
    for name in (*RANK, "explainers.cam", "explainers.vit"):
        package = any(other.startswith(f"{name}.") for other in (*RANK, "explainers.cam"))
        path = tmp_path / "cxlib" / name.replace(".", "/")
        path = path / "__init__.py" if package else path.with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def problems(tree, files):
    for name, text in files.items():
        (tree / "cxlib" / name).write_text(text)
    return [line for check in CHECKS for line in check(tree)]


def test_imports_downwards_of_what_there_may_be_are_accepted(tree):
    below = "from cxlib import contrasts, datasets, metrics, runtime\nfrom cxlib.explainers.cam import MAPS\n"
    checked_only = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import dvc\n    from cxlib import metrics\n"
    )
    files = {
        "__init__.py": checked_only,
        "__main__.py": "import click\n",
        "runs.py": checked_only,
        "explainers/__init__.py": "from cxlib.explainers import cam, vit\nfrom .cam import MAPS\n",
        "explainers/vit.py": "import os\nimport torch.nn\nfrom cxlib.explainers import cam\n",
        "fetch.py": f"import scipy.io\n{below}",
        "review/report.py": f"import pandas\n{below}",
        "training.py": f"def f():\n    import torch\n{below}",
    }
    assert problems(tree, files) == []


@pytest.mark.parametrize(("lower", "higher"), pairwise([*LIBRARY, *REVIEW]))
def test_each_layer_may_import_the_one_below_it_only(tree, lower, higher):
    low, high = (f"cxlib.{names[0]}".removesuffix(".__init__") for names in (lower, higher))
    assert graph(tree).number_of_edges() == 0
    modules(tree)[low].write_text(f"def f():\n    from {high} import anything\n")
    crosses = RANK[lower[0]] < LINE <= RANK[higher[0]]
    which = "is the review above the line" if crosses else "is of a higher layer"
    assert upward_imports(tree) == [f"{low} imports {high}, which {which}"]
    modules(tree)[low].write_text("")
    modules(tree)[high].write_text(f"def f():\n    from {low} import anything\n")
    assert upward_imports(tree) == []


FACE, ABOVE, HIGHER = (
    "and so does each lower layer inside it",
    "which is the review above the line",
    "which is of a higher layer",
)
CAM, VIT, REPORT = "explainers/cam.py", "explainers/vit.py", "review/report.py"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # A new file must be placed; what is no module is a name of the public face.
        ({"new.py": ""}, "cxlib.new is in no layer"),
        ({"runs.py": "from cxlib import explain"}, f"cxlib.runs imports cxlib, {HIGHER}"),
        # However the import is spelled.
        ({"taps.py": "from .metrics import f"}, f"cxlib.taps imports cxlib.metrics, {HIGHER}"),
        ({"taps.py": "import cxlib.metrics.f"}, f"cxlib.taps imports cxlib.metrics, {HIGHER}"),
        (
            {CAM: "try:\n    from .. import metrics\nfinally: ..."},
            f"cxlib.explainers.cam imports cxlib.metrics, {HIGHER}",
        ),
        ({"__main__.py": "from cxlib import fetch"}, f"cxlib.__main__ imports cxlib.fetch, {ABOVE}"),
        # Within one layer the order is free, but for circles.
        (
            {CAM: "from . import vit", VIT: "def f():\n    from . import cam"},
            "cxlib.explainers.cam, cxlib.explainers.vit import one another",
        ),
        # A package is executed before what is in it.
        ({"review/__init__.py": "from cxlib import fetch"}, f"cxlib.review imports cxlib.fetch, {FACE}"),
        ({"review/__init__.py": "import torch"}, f"cxlib.review imports torch, {FACE}"),
        ({"__init__.py": "import numpy"}, f"cxlib imports numpy, {FACE}"),
        # Others' packages.
        *(
            (
                {CAM: f"def f():\n    import {name}.io"},
                f"cxlib.explainers.cam imports {name}, which the library does without",
            )
            for name in ("pandas", "scipy", "yaml", "dvc", "hydra", "omegaconf", "captum")
        ),
        ({"taps.py": "from click import echo"}, "cxlib.taps imports click, which is for the command line"),
        ({"fetch.py": "import click"}, "cxlib.fetch imports click, which is for the command line"),
        ({"training.py": "import dvc.api"}, "cxlib.training imports dvc, which calls us and not the other way round"),
        *(
            ({REPORT: f"import {name}"}, f"cxlib.review.report imports {name}: tables and figures are made of arrays")
            for name in ("torch", "torchvision", "timm")
        ),
    ],
)
def test_what_is_out_of_order_is_named(tree, files, expected):
    assert problems(tree, files) == [expected]


def test_layer_of_which_there_is_nothing_is_named(tree):
    (tree / "cxlib" / "taps.py").unlink()
    assert unplaced(tree) == ["the layer taps has no module"]


@pytest.mark.parametrize("name", sorted(REVIEW_ONLY))
def test_library_that_needs_what_the_review_needs_would_not_explain(name):
    with pytest.raises(AssertionError, match=f"No module named '{name}'"):
        python(ABSENT.format(absent=REVIEW_ONLY) + f"import {name}")
