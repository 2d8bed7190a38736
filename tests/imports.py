"""Which of the repository's files a stage script executes: `python -m tests.imports stages/perturb.py` prints them."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

SCRIPT = re.compile(r"\bstages/\w+\.py\b")


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


def executed(script: str, root: Path, package: str = "cxlib") -> set[str]:
    """Return the script and the package's modules that it imports, also through others.

    What scripts share in `stages/` parses options; a change of it must not retrain a network.
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
                todo += files_of(name, root)
    return {path.relative_to(root).as_posix() for path in found}


def wrong_deps(root: Path, package: str = "cxlib") -> list[str]:
    """Return a line for each stage of `dvc.yaml` whose listed Python files are not those that its scripts execute."""
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
        needed = set().union(*(executed(script, root, package) for script in scripts))
        ours = tuple(f"{folder}/" for folder in (package, "stages"))
        listed = {dep for dep in stage.get("deps", []) if isinstance(dep, str) and f"{dep}/".startswith(ours)}
        wrong += [f"{name}: deps lack {file}" for file in sorted(needed - listed)]
        wrong += [f"{name}: deps list {file}, which it does not execute" for file in sorted(listed - needed)]
    return wrong


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(*(f"      - {file}" for file in sorted(executed(argument, Path.cwd()))), sep="\n")
