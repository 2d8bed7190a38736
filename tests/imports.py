"""Which of the repository's code a stage script executes: `python -m tests.imports stages/perturb.py` prints it."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

SCRIPT = re.compile(r"\bstages/\w+\.py\b")
#: Folders that are a dependency as a whole, also of a stage that executes but a part of them.
LAYERS = ("cxlib/datasets", "cxlib/networks", "cxlib/explainers", "cxlib/training", "cxlib/synthbirds")


def imported_names(path: Path, package: str) -> Iterator[str]:
    """Yield the absolute dotted names a file imports anywhere in it, except under `if TYPE_CHECKING:`."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"), str(path))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            todo += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from a import b`: b may be a module, or a name in a; a name that is no file is dropped by `files_of`.
            yield from (f"{base}.{alias.name}" for alias in node.names)
        todo += ast.iter_child_nodes(node)


def files_of(name: str, folder: Path) -> Iterator[Path]:
    """Yield the files below a folder that `import name` executes: each package's `__init__.py` and the module."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        path = folder.joinpath(*parts[:length])
        yield from (file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file())


def says_nothing(path: Path) -> bool:
    """Whether a file is an `__init__.py` that holds a docstring at most: executing it does nothing."""
    if path.name != "__init__.py":
        return False
    body = ast.parse(path.read_text(encoding="utf-8"), str(path)).body
    return not body or (len(body) == 1 and ast.get_docstring(ast.Module(body, [])) is not None)


def executed(script: str, root: Path, package: str = "cxlib") -> set[str]:
    """Return the script, what lies beside it and the package's modules, all that it imports, also through others.

    Raises:
        ValueError: something is imported through the package's lazy public face, so that nobody can tell which file.
    """
    found: set[Path] = set()
    todo = [root / script]
    while todo:
        path = todo.pop()
        if path in found:
            continue
        found.add(path)
        within = ".".join(path.parent.relative_to(root).parts)
        for name in imported_names(path, within):
            if name.split(".")[0] == package:
                files = list(files_of(name, root))
                face = root / package / "__init__.py"
                if files == [face] and "__getattr__" in face.read_text(encoding="utf-8"):
                    raise ValueError(
                        f"{path.relative_to(root)} imports {name} through the public face: name its module"
                    )
                todo += files
            else:
                todo += files_of(name, (root / script).parent)  # first on Python's path
    return {path.relative_to(root).as_posix() for path in found if not says_nothing(path)}


def covered(folder: str, needed: set[str], root: Path, layers: tuple[str, ...] = LAYERS) -> set[str]:
    """Return the executed files below a folder that may stand for them in dvc.yaml; none where it may not.

    It may where every file of it is executed, and where it is a layer.
    """
    files = {path.relative_to(root).as_posix() for path in (root / folder).rglob("*.py") if not says_nothing(path)}
    return files & needed if folder in layers or files <= needed else set()


def wrong_deps(root: Path, package: str = "cxlib", layers: tuple[str, ...] = LAYERS) -> list[str]:
    """Return a line for each stage of `dvc.yaml` whose listed code is not what its scripts execute."""
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    wrong = []
    for name, stage in stages.items():
        stage = stage.get("do", stage)
        commands = [stage["cmd"]] if isinstance(stage["cmd"], str) else stage["cmd"]
        scripts = [script for command in commands for script in SCRIPT.findall(command)]
        absent = [script for script in scripts if not (root / script).is_file()]
        if absent or not scripts:
            reason = f"{absent[0]}, which does not exist" if absent else "no stages/*.py"
            wrong.append(f"{name}: its cmd runs {reason}")
            continue
        try:
            needed = set().union(*(executed(script, root, package) for script in scripts))
        except ValueError as error:
            wrong.append(f"{name}: {error}")
            continue
        ours = tuple(f"{folder}/" for folder in (package, "stages"))
        listed = {dep.rstrip("/") for dep in stage.get("deps", []) if isinstance(dep, str)}
        listed = {dep for dep in listed if f"{dep}/".startswith(ours)}
        # What each dependency stands for.
        has = {dep: covered(dep, needed, root, layers) if (root / dep).is_dir() else {dep} & needed for dep in listed}
        wrong += [f"{name}: deps lack {file}" for file in sorted(needed.difference(*has.values()))]
        wrong += [f"{name}: deps list {dep}, which it does not execute" for dep in sorted(listed) if not has[dep]]
        for dep in sorted(listed):
            inside = [folder for folder in listed if has[folder] and dep.startswith(f"{folder}/")]
            wrong += [f"{name}: deps list {dep}, which is in {folder}" for folder in inside if has[dep]]
    return wrong


def shortest_deps(script: str, root: Path, package: str = "cxlib", layers: tuple[str, ...] = LAYERS) -> list[str]:
    """Return what dvc.yaml lists for a script: folders that are a layer or executed as a whole, else files."""
    needed, deps = executed(script, root, package), []
    for folder in sorted((path for path in (root / package).rglob("*") if path.is_dir()), key=lambda p: len(p.parts)):
        below = covered(folder.relative_to(root).as_posix(), needed, root, layers)
        if below:
            deps.append(folder.relative_to(root).as_posix())
            needed -= below
    return sorted({*deps, *needed})


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(*(f"      - {dep}" for dep in shortest_deps(argument, Path.cwd())), sep="\n")
