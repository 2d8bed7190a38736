"""Get the data sets that are not painted: CUB-200-2011 and Food-101 downloaded, ILSVRC2012's validation images sorted.

A folder comes into its place complete, or not at all. What a killed process leaves behind, the next one takes up (a
download) or removes (a half-filled folder).
"""

import fcntl
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from cxlib import runtime
from cxlib.datasets import cub, food101, imagenet
from cxlib.datasets.samples import Samples

CUB_ARCHIVE, FOOD_ARCHIVE = "CUB_200_2011.tgz", "food-101.tar.gz"
BLOCK = 1 << 20
#: Members and unpacked bytes beyond which an archive is a bomb: about twice what the published one has.
MOST = {
    CUB_ARCHIVE: (25_000, 3_000_000_000),
    FOOD_ARCHIVE: (210_000, 11_000_000_000),
    imagenet.DEVKIT: (1_000, 100_000_000),
    imagenet.VALIDATION: (101_000, 15_000_000_000),
}
#: Folders in folders, and bytes of a long name: no data set has as many.
DEPTH, NAME = 16, 1 << 16
#: Headers that say the name, or something else, of the next member.
SAID = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


class InterruptedTransferError(Exception):
    """A transfer broke off and may go on; the message says why."""


# --- the data sets ----------------------------------------------------------------------------------------------


def cub_200_2011(folder: str | Path, archives: str | Path, url: str, md5: str) -> int:
    """Download CUB-200-2011 and unpack it as `folder`, with its list of attributes; returns the number of images.

    An archive that lies in `archives` already is taken, and stays there. A folder that is there already is checked, and
    nothing is downloaded.

    Args:
        folder: where the images and lists go.
        archives: the folder for the archive.
        url: its address.
        md5: its checksum.

    Raises:
        ValueError: the folder is there but broken; the archive cannot be had, is another one, or there is no room.
    """
    # The attributes' names lie beside the folder.
    beside = {PurePosixPath("attributes.txt"): PurePosixPath("attributes/attributes.txt")}
    return _unpacked(Path(folder), Path(archives, CUB_ARCHIVE), url, md5, "CUB_200_2011", beside, cub.read)


def food_101(folder: str | Path, archives: str | Path, url: str, md5: str) -> int:
    """Download Food-101 and unpack it as `folder`; as `cub_200_2011`."""
    return _unpacked(Path(folder), Path(archives, FOOD_ARCHIVE), url, md5, "food-101", {}, food101.read)


def _unpacked(
    folder: Path,
    archive: Path,
    url: str,
    md5: str,
    inside: str,
    beside: Mapping[PurePosixPath, PurePosixPath],
    read: Callable[[Path, str], Samples],
) -> int:
    """What `inside` an archive, and `beside` it, is put into the folder, in one piece."""
    folder = folder.resolve()
    if not _is_vacant(folder):
        try:
            return _count(read, folder)
        except ValueError as error:
            raise ValueError(f"{error}; or remove {folder} and fetch it anew") from error
    download(url, archive, md5)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with runtime.atomic(folder) as temporary, _opened(archive) as tar:
        for member in runtime.progress(_files(tar, folder.parent), f"unpack {archive.name}", "file"):
            path = PurePosixPath(member.name)
            place = path.relative_to(inside) if path.is_relative_to(inside) else beside.get(path)
            if place is not None:
                member.name = str(place)
                tar.extract(member, temporary)
        try:
            return _count(read, temporary)
        except ValueError as error:
            raise ValueError(f"{archive} is not the archive of {inside} ({error})") from error


def ilsvrc2012_validation(
    folder: str | Path, archives: str | Path, checksums: Mapping[str, str] = imagenet.ARCHIVES
) -> int:
    """Sort ILSVRC2012's validation images into ``folder/val/<wnid>``; returns their number.

    Class folders that are there already are checked, and nothing is done.

    Args:
        folder: where the images go.
        archives: the folder that holds the two official archives, `imagenet.DEVKIT` and `imagenet.VALIDATION`.
        checksums: the archives' md5 by file name.

    Raises:
        ValueError: an archive is missing, damaged or another one; or there is no room.
    """
    folder, archives = Path(folder).resolve(), Path(archives)
    if imagenet.root(folder) is None:
        sorted_images = folder / "val"
        if not _is_vacant(sorted_images):
            raise ValueError(f"{sorted_images} is there but holds no class folders: remove it, or name another folder")
        for name in checksums:
            if not (archives / name).is_file():
                raise ValueError(f"{archives / name} is missing: get it from {imagenet.SOURCE}, and put it there")
        for name, md5 in checksums.items():
            if (found := _md5(archives / name)) != md5:
                raise ValueError(
                    f"{archives / name} is damaged or another file (md5 {found} in place of {md5}):"
                    f" get it again from {imagenet.SOURCE}"
                )
        with runtime.atomic(sorted_images) as temporary:
            _sort(archives / imagenet.VALIDATION, _wnids(archives / imagenet.DEVKIT), temporary)
            imagenet.read(temporary)
    return len(imagenet.read(folder))


def foolbox_photographs(folder: str | Path) -> int:
    """The ImageNet photographs that the package `foolbox` ships, as ``folder/<wnid>``; returns their number.

    Raises:
        ValueError: the package is not installed, or another version that has none.
    """
    # Only here: the table of 1000 ids lives in timm, whose import takes seconds.
    from timm.data.imagenet_info import ImageNetInfo

    wnids = ImageNetInfo().label_names()
    # Their names end in the class's place among the 1000.
    named = [(re.fullmatch(r"imagenet_\d+_(\d+)\.jpg", file.name), file) for file in runtime.packaged("foolbox")]
    photographs = [(wnids[int(match[1])], file) for match, file in named if match]
    if not photographs:
        raise ValueError("the package foolbox with its photographs is not installed: pip install foolbox")
    with runtime.atomic(folder) as temporary:
        for wnid, file in photographs:
            (temporary / wnid).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, temporary / wnid / file.name)
        return len(imagenet.read(temporary))


def _wnids(devkit: Path) -> list[str]:
    """The WordNet ids of the validation images 1, 2, … by the devkit, whose classes have numbers of their own."""
    # Only here: most who read data sets never sort one.
    from scipy.io import loadmat

    with _opened(devkit) as tar:
        _members(tar)
        try:
            meta, truth = (
                tar.extractfile(f"ILSVRC2012_devkit_t12/data/{name}").read()  # type: ignore[union-attr]
                for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")
            )
            synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
            wnids = {int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"])}
            return [wnids[int(number)] for number in truth.split()]
        except (KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"{devkit} is not ILSVRC2012's devkit ({error})") from error


def _sort(archive: Path, wnids: list[str], folder: Path) -> None:
    """Unpack validation image n of the archive into the folder ``wnids[n - 1]``."""
    with _opened(archive) as tar:
        files = _files(tar, folder.parent)
        expected = {f"ILSVRC2012_val_{number:08d}.JPEG": wnid for number, wnid in enumerate(wnids, 1)}
        names = [PurePosixPath(file.name).name for file in files]
        if sorted(names) != list(expected):
            raise ValueError(f"{archive} holds {len(files)} files, not the {len(wnids)} images that the devkit lists")
        for file, name in zip(runtime.progress(files, f"sort {archive.name}", "image"), names):
            file.name = f"{expected[name]}/{name}"
            tar.extract(file, folder)


def _count(read: Callable[[Path, str], Samples], folder: Path) -> int:
    """Number of images; raises a ValueError when the folder is broken."""
    return sum(len(read(folder, split)) for split in ("train", "test"))


# --- download ---------------------------------------------------------------------------------------------------


def download(
    url: str, path: str | Path, md5: str, timeout: float = 30.0, attempts: int = 5, pause: float = 1.0
) -> None:
    """Download a file; a transfer that breaks off leaves ``<path>.partial``, from which the next one goes on.

    Nothing is downloaded when the file is there. The checksum decides in the end: pieces that do not fit together are
    fetched once more, from the start.

    Args:
        url: its address.
        path: its place; its folder is made when it does not exist.
        md5: its checksum.
        timeout: seconds without a byte after which a connection is given up.
        attempts: connections in a row that may fail without coming further than any before.
        pause: seconds before the second of them; it doubles each time.

    Raises:
        ValueError: there is no such file, it is another one, the connection fails for good, there is no room, or
            another process downloads it.
    """
    path = Path(path)
    if path.is_file():
        if (found := _md5(path)) != md5:
            raise ValueError(f"{path} is damaged or another file (md5 {found} in place of {md5}): remove it")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process downloads {partial}: wait for it") from error
        try:
            for _ in range(2):
                in_pieces = _transfer(url, file, timeout, attempts, pause)
                if (found := _md5(partial)) == md5:
                    partial.replace(path)
                    return
                size = file.tell()
                file.truncate(0)
                if not in_pieces:
                    break
            raise ValueError(
                f"{url} is not the expected file: {size} bytes with md5 {found} in place of {md5};"
                f" put the right one to {path}"
            )
        finally:
            if partial.is_file() and not partial.stat().st_size:
                partial.unlink()


def _transfer(url: str, file: BinaryIO, timeout: float, attempts: int, pause: float) -> bool:
    """Append to the file what it lacks, over as many connections as needed; whether it came in pieces."""
    furthest = file.seek(0, os.SEEK_END)
    in_pieces = furthest > 0
    failures = 0
    while True:
        try:
            _receive(url, file, timeout)
            return in_pieces
        except InterruptedTransferError as error:
            size = file.seek(0, os.SEEK_END)
            failures = 1 if size > furthest else failures + 1
            furthest, in_pieces = max(size, furthest), in_pieces or size > 0
            if failures >= attempts:
                raise ValueError(
                    f"{url} cannot be downloaded ({error}): run this again to go on from {size} bytes,"
                    f" or put the file to {_goal(file)}"
                ) from error
            time.sleep(pause * 2 ** (failures - 1))


def _receive(url: str, file: BinaryIO, timeout: float) -> None:
    """One connection: append to the file what it lacks; all of it when the server does not serve parts."""
    size = file.seek(0, os.SEEK_END)
    request = Request(url, headers={"User-Agent": "cxlib", **({"Range": f"bytes={size}-"} if size else {})})
    try:
        response = urlopen(request, timeout=timeout)
    except HTTPError as error:
        error.close()
        if error.code == 416 and size:
            return  # nothing lies behind what is there
        if error.code in (408, 425, 429) or error.code >= 500:
            raise InterruptedTransferError(f"the server answers {error.code} {error.reason}") from error
        raise ValueError(
            f"{url} cannot be downloaded (the server answers {error.code} {error.reason}): name another address,"
            f" or put the file to {_goal(file)}"
        ) from error
    except (OSError, HTTPException) as error:
        raise InterruptedTransferError(str(getattr(error, "reason", error))) from error
    with response:
        part = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status == 206 and part and int(part[1]) == size:
            total = int(part[2])
        else:
            size = file.truncate(0)
            if response.status == 206:
                raise InterruptedTransferError("the server sends another part than was asked for")
            total = int(response.headers.get("Content-Length", 0))  # 0: the server does not say
        name = _goal(file).name
        _check_room(_goal(file).parent, total - size, name)
        with runtime.byte_progress(f"download {name}", total or None, size) as bar:
            while not total or size < total:
                try:
                    # What has arrived so far: read() would wait for the whole block, and lose it in a stall.
                    block = response.read1(BLOCK)
                except (OSError, HTTPException) as error:
                    raise InterruptedTransferError(str(error)) from error
                if not block:
                    break
                file.write(block)
                size += len(block)
                bar.update(len(block))
        file.flush()
        if size < total:
            raise InterruptedTransferError(f"the connection ended at {size} of {total} bytes")


def _goal(partial: BinaryIO) -> Path:
    """What a partial file is to become."""
    return Path(partial.name).with_suffix("")


# --- files and archives -----------------------------------------------------------------------------------------


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, runtime.byte_progress(f"check {path.name}", path.stat().st_size) as bar:
        while block := file.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    """A tar archive, compressed or not; damage met inside is one error that names it."""
    try:
        with tarfile.open(archive, tarinfo=_Header) as tar:
            # Python 3.11 has it from 3.11.4 on; `_files` refuses what leads out anyway.
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            yield tar
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        reason = str(error).partition(":\n")[0]  # tarfile goes on with a line for every kind of compression
        raise ValueError(f"{archive} is damaged ({reason}): remove it and get it again") from error


class _Header(tarfile.TarInfo):
    """A member, or what is said of the next one, which tarfile would read into memory however long it is."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(tar)
        except (ValueError, RecursionError) as error:  # that makes no sense
            raise tarfile.ReadError(str(error)) from error

    @classmethod
    def frombuf(cls, *arguments: Any) -> "_Header":
        header = super().frombuf(*arguments)
        if header.size < 0 or (header.type in SAID and header.size > NAME):
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


def _members(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """The members of an archive, whose headers are read no further than those of the published one go."""
    (most, most_bytes), size = MOST[Path(str(tar.name)).name], 0
    for number, member in enumerate(tar, 1):
        size += member.size
        if number > most or size > most_bytes:
            raise tarfile.ReadError(f"more than {most:,} members or {most_bytes / 1e9:g} GB")
    return tar.getmembers()


def _files(tar: tarfile.TarFile, folder: Path) -> list[tarfile.TarInfo]:
    """The files of an archive, checked: it holds only them and folders, none leads out, `folder` has room for all."""
    members = _members(tar)
    for member in members:
        path = PurePosixPath(member.name)
        strange = not (member.isreg() or member.isdir()) or len(path.parts) > DEPTH
        if strange or path.is_absolute() or ".." in path.parts:
            raise ValueError(
                f"{tar.name!s} holds {member.name[:100]!r}, a link, a device, or a path that is deep or leads out of"
                " its folder: it is not unpacked"
            )
    files = [member for member in members if member.isreg()]
    _check_room(folder, sum(-(-file.size // 4096) * 4096 for file in files), "the unpacked archive")
    return files


def _check_room(folder: Path, size: int, what: str) -> None:
    """Raise a ValueError when the folder's disk has less room than that many bytes."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ValueError(
            f"{folder} has {free / 1e6:,.0f} MB free, {what} takes {size / 1e6:,.0f} MB: make room there,"
            " or name a folder on another disk"
        )


def _is_vacant(folder: Path) -> bool:
    return not folder.exists() or not any(folder.iterdir())
