"""Compare this working tree's review with another: OTHER is a folder, or a git revision of this repository."""

import json
import subprocess
import sys
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path
from typing import Any

import click
import pandas as pd
from _command import Stage

from cxlib.review.report.comparison import TOLERANCE, Comparison, check, compare

#: Fnmatch's `*` takes `/` as well, but neither folder is listed with its sub-folders.
FILES = ("plots/*.csv", "metrics/*.json")
#: How many verdicts are named, how many of a file's numbers, and how many lines the files may take.
VERDICTS, WORST, LINES = 18, 3, 36


def git(root: Path, *arguments: str) -> bytes | None:
    """What git writes; None if it fails."""
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True)
    return None if done.returncode else done.stdout


def read(root: Path, other: str | None = None) -> dict[str, Any]:
    """Read the tables and metrics of a folder, or of a revision of its repository."""
    if other is None:
        found = [path for pattern in FILES for path in root.glob(pattern)]
        contents = {path.relative_to(root).as_posix(): path.read_bytes() for path in found}
    else:
        commit = git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{other}^{{commit}}")
        if commit is None:
            raise ValueError(f"{other} is neither a folder nor a revision of the repository in {root.resolve()}")
        revision = commit.decode().strip()
        listed = (git(root, "ls-tree", "-z", "--name-only", revision, "plots/", "metrics/") or b"").decode().split("\0")
        names = [name for name in listed if any(fnmatch(name, pattern) for pattern in FILES)]
        contents = {name: git(root, "show", f"{revision}:./{name}") or b"" for name in names}
    name = other or str(root)
    review = {}
    for file, content in contents.items():
        try:
            review[file] = pd.read_csv(BytesIO(content)) if file.endswith(".csv") else json.loads(content)
        except ValueError as error:
            raise ValueError(f"{file} of {name} is damaged: {' '.join(str(error).split())}") from error
    check(review, name)
    return review


def lines(result: Comparison) -> list[str]:
    """What a person reads: verdicts first, then files, the summary last."""
    told = ["Verdicts that differ, here → there:"] if result.verdicts else []
    for verdict in result.verdicts[:VERDICTS]:
        sides = ("no such row" if side is None else side or "(empty)" for side in (verdict.here, verdict.there))
        told.append(f"  {verdict.of}: {' → '.join(sides)}")
    if len(result.verdicts) > VERDICTS:
        told.append(f"  … and {len(result.verdicts) - VERDICTS} more")
    files = [file for file in result.files if file.moved or file.only_here or file.only_there]
    left = LINES - len(files)
    for file in sorted(files, key=lambda file: -len(file.moved) / max(file.compared, 1)):
        only = [f"{n} only {where}" for n, where in ((file.only_here, "here"), (file.only_there, "there")) if n]
        told.append(", ".join([f"{file.name}: {len(file.moved)} of {file.compared} numbers moved", *only]))
        worst = file.moved[: max(0, min(WORST, left))]
        left -= len(worst)
        told += [f"  {n.key}: {n.here:.6g} → {n.there:.6g} (allowed {n.allowed:.2g})" for n in worst]
    for where, names in (("here", result.only_here), ("there", result.only_there)):
        told += [f"Only {where}: {', '.join(names)}"] if names else []
    return [*told, f"Tolerance: {TOLERANCE}", result.summary]


@click.command(cls=Stage)
@click.option("--root", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".", help="This tree.")
@click.argument("other")
def main(root: Path, other: str) -> None:
    """Compare verdicts and numbers with OTHER, a folder or a git revision; exit with 1 if a verdict differs."""
    try:
        folder = Path(other)
        there = read(folder) if folder.is_dir() else read(root, other)
        result = compare(read(root), there)
    except (ValueError, OSError) as error:
        # 1 says that a verdict differs.
        wrong = click.ClickException(str(error))
        wrong.exit_code = 2
        raise wrong from error
    click.echo("\n".join(lines(result)))
    sys.exit(bool(result.verdicts))


if __name__ == "__main__":
    main()
