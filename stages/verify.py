"""Hash everything that `dvc.lock` records again and compare: outputs, cached copies, dependencies in the repository.

Stages that `dvc.yaml` no longer has are not looked at: nothing comes of them, and DVC does not mind their entries.
One that it has must have run. DVC exits with 0 when a write of a folder to its cache fails, and trusts what it pulled;
this script trusts neither.
"""

import configparser
import hashlib
import json
import os
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import click
import yaml
from dvc.exceptions import DvcException
from dvc.repo import Repo
from tqdm import tqdm


@cache
def file_md5(path: Path) -> str:
    """Return the md5 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def on_disk(path: Path, ignored: list[str]) -> str | None:
    """Return the md5 that DVC 3 records for a file or folder (then it ends in `.dir`), None where there is nothing."""
    if not path.is_dir():
        return file_md5(path) if path.is_file() else None
    listing = []
    for parent, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not any(fnmatch(name, pattern) for pattern in ignored)]
        for name in names:
            if not any(fnmatch(name, pattern) for pattern in ignored):
                file = Path(parent, name)
                listing.append({"md5": file_md5(file), "relpath": file.relative_to(path).as_posix()})
    content = json.dumps(sorted(listing, key=lambda entry: entry["relpath"]), sort_keys=True)
    return hashlib.md5(content.encode()).hexdigest() + ".dir"


def cached(md5: str, objects: Path) -> Iterator[tuple[str, Path]]:
    """Yield the md5 and the path of an output's object in the cache, and of a folder's files' objects."""
    path = objects / md5[:2] / md5[2:]
    yield md5.removesuffix(".dir"), path
    if md5.endswith(".dir") and path.is_file() and file_md5(path) == md5.removesuffix(".dir"):
        for entry in json.loads(path.read_bytes()):
            yield entry["md5"], objects / entry["md5"][:2] / entry["md5"][2:]


def read_lock(path: Path) -> dict[str, dict[str, Any]]:
    """Return the stages of a lock file; one clear error when it is missing or damaged."""
    try:
        stages = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]
        for stage in stages.values():
            if not all(isinstance(entry["path"], str) for kind in ("deps", "outs") for entry in stage.get(kind, [])):
                raise TypeError("a path is no text")
            if not all(len(entry["md5"]) in (32, 36) for entry in stage.get("outs", [])):
                raise ValueError("an md5 has the wrong length")
    except FileNotFoundError:
        raise click.ClickException(f"{path} is missing: `git checkout dvc.lock`, or `dvc repro` to make it") from None
    except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise click.ClickException(f"{path} is damaged ({reason}): `git checkout dvc.lock`, or `dvc repro`") from None
    return stages


def asked_for(root: Path) -> dict[str, set[str]]:
    """Return the stages of `dvc.yaml`, each with those of its outputs that DVC keeps in its cache, git the others.

    One clear error when it cannot be read.
    """
    try:
        stages = Repo(str(root)).index.stages
    except DvcException as error:
        raise click.ClickException(f"dvc.yaml cannot be read ({' '.join(str(error).split())})") from None
    return {stage.name: {out.def_path for out in stage.outs if out.use_cache} for stage in stages}


def check_out(
    stage: str, entry: dict[str, Any], root: Path, ignored: list[str], objects: Path, is_cached: bool
) -> Iterator[str]:
    """Yield what is wrong with a stage's output and its copies in the cache, and the remedy."""
    path, found = entry["path"], on_disk(root / entry["path"], ignored)
    copies = list(cached(entry["md5"], objects))
    damaged = [copy for md5, copy in copies if copy.is_file() and file_md5(copy) != md5]
    absent = [copy for _, copy in copies if not copy.is_file()]
    intact = found == entry["md5"]
    # `rm` comes first: DVC neither replaces what its database takes for intact nor overwrites an object of its cache.
    refill = (
        f"dvc commit --force {stage}" if intact else f"dvc pull {path}` or `dvc repro --force --single-item {stage}"
    )
    for copy in damaged:
        yield f"{path}: cached copy of {stage}'s output is damaged: `rm -f {copy}`, then `{refill}`"
    if not intact:
        what = "is missing" if found is None else f"has md5 {found} instead of {entry['md5']}"
        again = refill if damaged or absent else f"dvc checkout {path}"
        yield f"{path}: output of {stage} {what}: `rm -rf {path}`, then `{again}`"
    elif absent and is_cached:
        yield f"{path}: output of {stage} is not in the cache ({absent[0]}): `{refill}`"


@click.command()
@click.option("--root", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".", help="Repository.")
def main(root: Path) -> None:
    """Compare all that dvc.lock records with the disk and the cache; exit with 1 if anything differs."""
    root = root.resolve()
    recorded, asked = read_lock(root / "dvc.lock"), asked_for(root)
    stages = {name: stage for name, stage in recorded.items() if name in asked}
    config = configparser.ConfigParser(interpolation=None, strict=False)
    config.read([root / ".dvc" / "config", root / ".dvc" / "config.local"])
    objects = root / ".dvc" / config.get("cache", "dir", fallback="cache") / "files" / "md5"
    lines = (root / ".dvcignore").read_text().splitlines() if (root / ".dvcignore").is_file() else []
    lines = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    ignored = [".git", ".hg", ".dvc", *(line.removeprefix("**/").strip("/") for line in lines)]  # plain names only
    kinds = ("outs", "deps")
    work = [(name, kind, entry) for name in stages for kind in kinds for entry in stages[name].get(kind, [])]
    n_outs = sum(kind == "outs" for _, kind, _ in work)
    problems = [
        f"{name}: not in dvc.lock, for it has not run: `dvc repro {name}`" for name in asked if name not in stages
    ]
    for name, kind, entry in tqdm(work, "Hashing", leave=False, disable=None):
        path = (root / entry["path"]).resolve()
        if kind == "outs":
            problems += check_out(name, entry, root, ignored, objects, entry["path"] in asked[name])
        elif "md5" in entry and path.is_relative_to(root) and on_disk(path, ignored) != entry["md5"]:
            problems.append(f"{entry['path']}: not what {name} was run on: `dvc repro {name}`")
    click.echo("".join(f"{problem}\n" for problem in problems), nl=False)
    if gone := sorted(recorded.keys() - asked.keys()):
        click.echo(f"Not looked at, for dvc.yaml no longer has them: {', '.join(gone)}")
    if problems:
        raise click.ClickException(f"{len(problems)} problems in {n_outs} outputs of {len(stages)} stages")
    click.echo(f"{n_outs} outputs of {len(stages)} stages match dvc.lock")


if __name__ == "__main__":
    main()
