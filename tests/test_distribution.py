"""What is handed to others: the wheel, the source archive and the citation."""

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = "from setuptools import build_meta; build_meta.build_sdist('../built'); build_meta.build_wheel('../built')"


def test_the_wheel_is_the_typed_library_with_its_licence_and_the_source_archive_no_more(tmp_path):
    tree = tmp_path / "tree"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = [name for name in listed.split("\0") if (ROOT / name).is_file()]
    for name in tracked:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tree / name)
    # What a run and the tools leave.
    for name in ("data/sets/birds/0.png", "cxlib/__pycache__/taps.cpython-311.pyc", ".mypy_cache/3.11/cxlib.json"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    subprocess.run([sys.executable, "-c", BUILD], cwd=tree, capture_output=True, check=True)

    library = {name for name in tracked if name.startswith("cxlib/")}
    assert "cxlib/py.typed" in library
    (wheel,) = (tmp_path / "built").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    about = f"cxlib-{PROJECT['version']}.dist-info"
    assert {name for name in names if not name.startswith(about)} == library
    assert f"{about}/licenses/LICENSE" in names

    (archive,) = (tmp_path / "built").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        members = {PurePosixPath(*PurePosixPath(each.name).parts[1:]).as_posix() for each in opened if each.isfile()}
    made = {"PKG-INFO", "setup.cfg"}
    rest = {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"}
    assert {name for name in members if not name.startswith("cxlib.egg-info/")} == library | made | rest


def test_the_citation_is_of_this_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert f"## {PROJECT['version']}\n" in (ROOT / "CHANGELOG.md").read_text()
