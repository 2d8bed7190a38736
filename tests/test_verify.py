"""`stages/verify.py` finds what DVC does not look at: damaged files, folders, cached copies and lock files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

VERIFY = Path(__file__).parents[1] / "stages" / "verify.py"
PIPELINE = """
stages:
  cells:
    foreach: [one, two]
    do:
      cmd: mkdir -p data && echo ${item} > data/${item}.txt
      deps: [source.txt]
      outs: ["data/${item}.txt"]
  folder:
    cmd: mkdir -p folder/b folder/b.d && echo 1 > folder/b/x && echo 2 > folder/b.d/x && echo 3 > folder/bä && touch folder/.e
    deps: [data]
    outs: [folder]
  numbers:
    cmd: echo '{}' > numbers.json
    deps: [folder]
    metrics: [{numbers.json: {cache: false}}]
"""  # noqa: E501


def run(*command, cwd):
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def dvc(*arguments, cwd):
    done = run(sys.executable, "-m", "dvc", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr


def verify(repository):
    done = run(sys.executable, str(VERIFY), "--root", str(repository), cwd="/")
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def cached(repository, stage):
    lock = yaml.safe_load((repository / "dvc.lock").read_text())
    md5 = lock["stages"][stage]["outs"][0]["md5"]
    return repository / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]


def damage(path):
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b"!")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    repository = tmp_path_factory.mktemp("verify") / "repository"
    repository.mkdir()
    run("git", "init", "-q", cwd=repository)
    (repository / ".dvc").mkdir()
    (repository / ".dvc" / "config").touch()  # as good as `dvc init`, and fast
    (repository / ".dvcignore").write_text("# not x ours\n**/.gitignore\n")
    (repository / "source.txt").write_text("source\n")
    (repository / "dvc.yaml").write_text(PIPELINE)
    dvc("repro", "-q", cwd=repository)
    return repository


@pytest.fixture
def repository(clean, tmp_path):
    """A copy of the reproduced pipeline, to be damaged."""
    done = run("cp", "-a", str(clean), str(tmp_path / "copy"), cwd="/")
    assert done.returncode == 0
    return tmp_path / "copy"


def test_clean_repository_passes(repository):
    """So our folder md5 is DVC's: order of paths, non-ASCII and hidden names, .dvcignore."""
    assert verify(repository) == (0, "4 outputs of 4 stages match dvc.lock\n", "")


@pytest.mark.parametrize(
    ("path", "stage"),
    [("data/one.txt", "cells@one"), ("folder/b/x", "folder"), ("numbers.json", "numbers")],
)
def test_changed_output_is_found(repository, path, stage):
    damage(repository / path)
    code, out, err = verify(repository)
    assert code == 1
    assert f"output of {stage} has md5" in out
    assert "match" not in out + err


def test_missing_and_superfluous_files_are_found_and_the_remedy_works(repository):
    (repository / "data" / "one.txt").unlink()
    (repository / "folder" / "new").write_text("")
    code, out, err = verify(repository)
    assert code == 1
    assert (
        "data/one.txt: output of cells@one is missing: `rm -rf data/one.txt`, then `dvc checkout data/one.txt`" in out
    )
    assert "folder: output of folder has md5" in out
    assert "4 problems in 4 outputs of 4 stages" in err  # two are dependencies as well
    shutil.rmtree(repository / "folder")
    dvc("checkout", "data/one.txt", "folder", cwd=repository)
    assert verify(repository)[0] == 0


def test_changed_dependency_is_found(repository):
    damage(repository / "source.txt")
    code, out, _ = verify(repository)
    assert code == 1
    assert out.splitlines() == [
        f"source.txt: not what cells@{name} was run on: `dvc repro cells@{name}`" for name in ("one", "two")
    ]


def test_damaged_cached_file_is_found_and_the_remedy_works(repository):
    copy = cached(repository, "cells@one")
    damage(copy)
    code, out, _ = verify(repository)
    assert code == 1
    remedy = f"`rm -f {copy}`, then `dvc commit --force cells@one`"
    assert out == f"data/one.txt: cached copy of cells@one's output is damaged: {remedy}\n"
    copy.unlink()
    code, out, _ = verify(repository)
    assert code == 1
    assert "data/one.txt: output of cells@one is not in the cache" in out
    dvc("commit", "--force", "cells@one", cwd=repository)
    assert verify(repository)[0] == 0


def test_output_damaged_with_its_copy_is_found_and_the_remedy_works(repository):
    """As after a pull of a damaged object, or with outputs that are links into the cache."""
    copy, output = cached(repository, "cells@one"), repository / "data" / "one.txt"
    damage(copy)
    damage(output)
    code, out, _ = verify(repository)
    assert code == 1
    assert out.count("`dvc pull data/one.txt` or `dvc repro --force --single-item cells@one`") == 2
    copy.unlink()
    output.unlink()
    dvc("repro", "--force", "--single-item", "cells@one", cwd=repository)
    assert verify(repository)[0] == 0


@pytest.mark.parametrize("part", ["listing", "file"])
def test_damaged_cached_folder_is_found(repository, part):
    listing = cached(repository, "folder")
    md5 = yaml.safe_load(listing.read_text())[0]["md5"]
    damage(listing if part == "listing" else listing.parents[1] / md5[:2] / md5[2:])
    code, out, _ = verify(repository)
    assert code == 1
    assert "folder: cached copy of folder's output is damaged" in out


def test_what_dvc_yaml_no_longer_has_is_no_problem(repository):
    """As after another profile: its outputs are gone, its entries stay."""
    (repository / "dvc.yaml").write_text(PIPELINE.partition("  numbers:")[0])
    (repository / "numbers.json").unlink()
    code, out, err = verify(repository)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "Not looked at, for dvc.yaml no longer has them: numbers"
    assert out.splitlines()[1] == "3 outputs of 3 stages match dvc.lock"


def test_a_stage_that_has_not_run_is_found(repository):
    """As after a run that broke off: what is recorded matches, and is not all."""
    (repository / "dvc.yaml").write_text(f"{PIPELINE}  more:\n    cmd: echo 1 > more.txt\n    outs: [more.txt]\n")
    code, out, _ = verify(repository)
    assert (code, out) == (1, "more: not in dvc.lock, for it has not run: `dvc repro more`\n")


@pytest.mark.parametrize("text", ["stages: [", "stages: {folder: {}}"])
def test_damaged_pipeline_is_one_clear_line(repository, text):
    (repository / "dvc.yaml").write_text(text)
    code, out, err = verify(repository)
    assert (code, out) == (1, "")
    assert "dvc.yaml cannot be read" in err
    assert len(err.splitlines()) == 1


def test_cache_may_lie_elsewhere(repository):
    (repository / ".dvc" / "cache").rename(repository.parent / "common")
    assert verify(repository)[0] == 1
    dvc("cache", "dir", "--local", "../common", cwd=repository)
    assert verify(repository)[0] == 0


@pytest.mark.parametrize("lock", ["stages: [", "", "stages:\n  a:\n    outs:\n    - path: x\n", "stages: {a: 1}", "\0"])
def test_damaged_lock_is_one_clear_line(repository, lock):
    (repository / "dvc.lock").write_text(lock)
    code, out, err = verify(repository)
    assert code != 0
    assert out == ""
    assert "dvc.lock is damaged" in err
    assert len(err.splitlines()) == 1


def test_code_in_a_lock_is_never_run(repository):
    (repository / "dvc.lock").write_text("stages: !!python/object/apply:os.mkdir [sprung]\n")
    code, _, err = verify(repository)
    assert code != 0
    assert "dvc.lock is damaged" in err
    assert not (repository / "sprung").exists()


def test_missing_lock_is_one_clear_line(repository):
    (repository / "dvc.lock").unlink()
    code, _, err = verify(repository)
    assert code != 0
    assert "dvc.lock is missing" in err
    assert len(err.splitlines()) == 1
