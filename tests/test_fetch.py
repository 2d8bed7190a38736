"""The published data sets come whole or not at all: over faulty connections, out of bad archives, after a kill."""

import contextlib
import errno
import fcntl
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torchvision
from click.testing import CliRunner
from scipy.io import savemat
from test_datasets import LISTS, picture
from test_params import ROOT, command

from cxlib import fetch
from cxlib.datasets import cub, imagenet, images
from cxlib.synthbirds import species

Usage = namedtuple("Usage", "total used free")


def md5(data):
    return hashlib.md5(data).hexdigest()


def contents(folder):
    """Every file and folder below, hidden ones too."""
    found = sorted(folder.rglob("*"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in found}


def tar_of(folder, mode="w:gz", extra=()):
    """An archive of what a folder holds, and of further members, as bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
        for member in extra:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return buffer.getvalue()


# --- a server that does what servers do -------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Serves `server.data`; the path says what goes wrong."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        server, fault = self.server, self.path.strip("/")
        asked = self.headers.get("Range")
        server.asked.append(asked)
        data, first = server.data, 0
        if fault == "missing" or (fault == "busy" and len(server.asked) <= 2):
            self.send_error(404 if fault == "missing" else 503)
            return
        if fault == "wrong":
            data = b"<html>Log in first.</html>"
        if asked and not fault.startswith("whole"):
            first = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if fault == "other-part":
                first -= 1
            if first >= len(data):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        if fault != "untold":
            self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        part = data[first:]
        if fault.endswith("truncated"):
            part = part[: server.piece]
        with contextlib.suppress(ConnectionError):
            if fault == "mute" or (fault == "once-stalled" and len(server.asked) == 1):
                self.wfile.write(part[: 0 if fault == "mute" else server.piece])
                server.closing.wait(10)
            elif fault == "slow" and len(server.asked) == 1:
                for start in range(0, len(part), 4096):
                    self.wfile.write(part[start : start + 4096])
                    if server.closing.wait(0.05):
                        break
            else:
                self.wfile.write(part)


class Server(ThreadingHTTPServer):
    """On a free port of this machine; `asked` is each request's Range."""

    daemon_threads = True

    def __init__(self, data):
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.piece, self.asked, self.closing = data, len(data) * 2 // 5, [], threading.Event()

    def url(self, fault=""):
        return f"http://127.0.0.1:{self.server_port}/{fault}"


@pytest.fixture
def serve(monkeypatch):
    """A function from bytes to a running server of them."""
    monkeypatch.setenv("no_proxy", "*")
    with contextlib.ExitStack() as stack:

        def start(data):
            server = stack.enter_context(Server(data))
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            stack.callback(server.shutdown)
            stack.callback(server.closing.set)
            return server

        yield start


DATA = np.random.default_rng(0).bytes(300_000)


@pytest.fixture
def server(serve):
    return serve(DATA)


def download(server, fault, path, **settings):
    # Short only where a stall is what is tested: a busy machine may take its time.
    timeout = 0.3 if fault in ("once-stalled", "mute") else 20
    fetch.download(server.url(fault), path, md5(DATA), timeout=timeout, pause=0.001, **settings)


# --- download ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["", "truncated", "once-stalled", "busy", "other-part", "untold", "whole"])
def test_download_comes_through(server, tmp_path, fault):
    download(server, fault, tmp_path / "deep" / "file.tgz")
    assert contents(tmp_path / "deep") == {"file.tgz": DATA}
    assert server.asked[0] is None
    expected = {"truncated": ["bytes=120000-", "bytes=240000-"], "once-stalled": ["bytes=120000-"], "busy": [None] * 2}
    assert server.asked[1:] == expected.get(fault, [])


@pytest.mark.parametrize("size", [1, 150_000, 299_999])
@pytest.mark.parametrize("fault", ["", "whole", "other-part", "truncated"])
def test_partial_file_is_taken_up_where_the_server_serves_parts(server, tmp_path, fault, size):
    (tmp_path / "file.tgz.partial").write_bytes(DATA[:size])
    download(server, fault, tmp_path / "file.tgz")
    assert contents(tmp_path) == {"file.tgz": DATA}
    assert server.asked[0] == f"bytes={size}-"
    if fault in ("", "whole"):
        assert len(server.asked) == 1
    if fault == "other-part":
        assert server.asked[1:] == [None]


@pytest.mark.parametrize(
    "left",
    [bytes(1000), DATA[:-1] + b"?", bytes(len(DATA)), DATA + b"more"],
    ids=["short", "almost", "as long", "longer"],
)
def test_partial_file_of_something_else_is_fetched_once_more(server, tmp_path, left):
    """A new version on the server, or a damaged disk: the checksum tells, also where the server answers 416."""
    (tmp_path / "file.tgz.partial").write_bytes(left)
    download(server, "", tmp_path / "file.tgz")
    assert contents(tmp_path) == {"file.tgz": DATA}
    assert server.asked == [f"bytes={len(left)}-", None]


def test_complete_partial_file_needs_no_byte_more(server, tmp_path):
    (tmp_path / "file.tgz.partial").write_bytes(DATA)
    download(server, "", tmp_path / "file.tgz")
    assert contents(tmp_path) == {"file.tgz": DATA}
    assert server.asked == [f"bytes={len(DATA)}-"]


@pytest.mark.parametrize(
    ("fault", "named", "n_requests"),
    [
        ("missing", "404", 1),
        ("wrong", f"26 bytes with md5 {md5(b'<html>Log in first.</html>')} in place of {md5(DATA)}", 1),
    ],
)
def test_what_is_not_there_is_one_line_and_leaves_nothing(server, tmp_path, fault, named, n_requests):
    with pytest.raises(ValueError) as caught:
        download(server, fault, tmp_path / "file.tgz")
    for text in (server.url(fault), named, str(tmp_path / "file.tgz")):
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == {}
    assert len(server.asked) == n_requests


@pytest.mark.parametrize(("fault", "reason"), [("mute", "timed out"), ("whole-truncated", "120000 of 300000 bytes")])
def test_connection_that_gets_no_further_is_given_up_and_its_bytes_kept(server, tmp_path, fault, reason):
    (tmp_path / "file.tgz.partial").write_bytes(DATA[:120_000])
    with pytest.raises(ValueError, match=rf"cannot be downloaded \(.*{reason}.*go on from 120000 bytes"):
        download(server, fault, tmp_path / "file.tgz", attempts=3)
    assert contents(tmp_path) == {"file.tgz.partial": DATA[:120_000]}
    assert server.asked == ["bytes=120000-"] * 3


def test_connection_that_breaks_often_comes_through_as_long_as_it_gets_further(server, tmp_path):
    server.piece = 20_000
    download(server, "truncated", tmp_path / "file.tgz", attempts=2)
    assert contents(tmp_path) == {"file.tgz": DATA}
    assert len(server.asked) == 15


def test_server_that_is_not_there_is_one_line(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(ValueError, match=r"cannot be downloaded \(.*refused.*go on from 0 bytes"):
        download(server, "", tmp_path / "file.tgz", attempts=2)
    assert contents(tmp_path) == {}


def test_wrong_file_in_pieces_ends(serve, tmp_path):
    """A wrong file over a bad connection: fetched twice at most, not for ever."""
    server = serve(DATA[:-1] + b"?")
    with pytest.raises(ValueError, match="is not the expected file"):
        download(server, "truncated", tmp_path / "file.tgz")
    assert contents(tmp_path) == {}
    assert server.asked == [None, "bytes=120000-", "bytes=240000-"] * 2


def test_file_that_is_there_is_checked_and_not_downloaded(server, tmp_path):
    (tmp_path / "file.tgz").write_bytes(DATA)
    download(server, "", tmp_path / "file.tgz")
    (tmp_path / "file.tgz").write_bytes(DATA[:-1])
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'file.tgz'} is damaged or another file")):
        download(server, "", tmp_path / "file.tgz")
    assert server.asked == []


def test_full_disk_is_told_before_the_first_byte(server, tmp_path, monkeypatch):
    (tmp_path / "file.tgz.partial").write_bytes(DATA[:200_000])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 99_999))
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} has 0 MB free, file.tgz takes 0 MB: make room")):
        download(server, "", tmp_path / "file.tgz")
    assert contents(tmp_path) == {"file.tgz.partial": DATA[:200_000]}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 100_000))
    download(server, "", tmp_path / "file.tgz")
    assert contents(tmp_path) == {"file.tgz": DATA}


def test_two_processes_do_not_write_into_one_file(server, tmp_path):
    with (tmp_path / "file.tgz.partial").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(DATA[:7])
        other.flush()
        with pytest.raises(ValueError, match=re.escape(f"another process downloads {tmp_path / 'file.tgz.partial'}")):
            download(server, "", tmp_path / "file.tgz")
    assert contents(tmp_path) == {"file.tgz.partial": DATA[:7]}
    assert server.asked == []


# --- CUB-200-2011 and Food-101 ----------------------------------------------------------------------------------


class Published(NamedTuple):
    """A published data set with four small images: its archive in the true layout, and what must come of it."""

    name: str
    get: Callable
    archive: str
    folder: str  # that the archive holds
    source: Path  # what the archive is made of
    unpacked: dict
    image: str  # one of those that are listed


def cub_in_small(top):
    """CUB's folder, and the attributes' names beside it."""
    folder = top / "CUB_200_2011"
    for seed, name in enumerate(("b/one", "a/two", "b/three", "a/four")):
        picture(folder / "images" / f"{name}.jpg", (120, 90), seed=seed)
    for name, text in LISTS.items():
        (folder / name).write_text(text)
    (folder / "attributes").mkdir()
    percentages = [f"{100 * (row == 6)}.0 20.0" for row in range(7)]
    (folder / "attributes" / "class_attribute_labels_continuous.txt").write_text("\n".join(percentages))
    (top / "attributes.txt").write_text("1 has_crown_color::blue\n2 has_tail_shape::forked_tail\n")
    unpacked = contents(folder) | {"attributes/attributes.txt": (top / "attributes.txt").read_bytes()}
    return Published("cub", fetch.cub_200_2011, "CUB_200_2011.tgz", folder.name, top, unpacked, "images/b/one.jpg")


def food_in_small(top):
    folder, dishes = top / "food-101", ("sushi", "apple_pie")
    (folder / "meta").mkdir(parents=True)
    (folder / "README.txt").write_text("Food-101\n")
    (folder / "license_agreement.txt").write_text("FAIR USE\n")
    (folder / "meta" / "classes.txt").write_text("\n".join(sorted(dishes)) + "\n")
    (folder / "meta" / "labels.txt").write_text("Apple pie\nSushi\n")
    for place, split in enumerate(("train", "test")):
        listed = {dish: [f"{dish}/{100 + place}"] for dish in dishes}
        (folder / "meta" / f"{split}.json").write_text(json.dumps(listed))
        (folder / "meta" / f"{split}.txt").write_text("".join(f"{names[0]}\n" for names in listed.values()))
        for seed, (name,) in enumerate(listed.values()):
            picture(folder / "images" / f"{name}.jpg", (120, 90), seed=10 * place + seed)
    archive, image = "food-101.tar.gz", "images/sushi/101.jpg"
    return Published("food101", fetch.food_101, archive, folder.name, top, contents(folder), image)


@pytest.fixture(scope="module", params=[cub_in_small, food_in_small], ids=["cub", "food101"])
def published(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("published"))


@pytest.fixture
def mirror(serve, published):
    """A server of the data set's archive."""
    return serve(tar_of(published.source))


def get(published, server, folder, fault=""):
    """Fetch a data set as `folder`, its archive into the folder `archives` beside it."""
    return published.get(folder, folder.parent / "archives", server.url(fault), md5(server.data))


def bring(published, data, tmp_path):
    """Put bytes where the archive is looked for."""
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / published.archive).write_bytes(data)


def only_the_archive(published, data):
    return {"archives": None, f"archives/{published.archive}": data}


def test_data_set_is_downloaded_unpacked_and_counted(published, mirror, tmp_path):
    folder = tmp_path / "data" / "sets" / "mine"
    archives = tmp_path / "data" / "archives"
    assert published.get(folder, archives, mirror.url(), md5(mirror.data)) == 4
    assert contents(folder) == published.unpacked
    assert contents(archives) == {published.archive: mirror.data}
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]
    # Again: nothing to do, also without the archive.
    shutil.rmtree(archives)
    assert published.get(folder, archives, mirror.url(), md5(mirror.data)) == 4
    assert mirror.asked == [None]
    assert not archives.exists()


def test_cub_is_read_with_the_parts_that_tell_its_classes_apart(serve, tmp_path):
    birds = cub_in_small(tmp_path / "source")
    get(birds, serve(tar_of(birds.source)), tmp_path / "birds")
    assert len(images.read(tmp_path / "birds", "test")) == 3
    assert cub.discriminative_parts(tmp_path / "birds", 0, 1) == {"crown"}


def test_food101_is_read_as_torchvision_reads_what_it_unpacks(serve, tmp_path):
    food = food_in_small(tmp_path / "source")
    get(food, serve(tar_of(food.source)), tmp_path / "dishes")
    with tarfile.open(tmp_path / "archives" / food.archive) as tar:
        tar.extractall(tmp_path / "theirs", filter="data")
    for split in ("train", "test"):
        ours, theirs = images.read(tmp_path / "dishes", split), torchvision.datasets.Food101(tmp_path / "theirs", split)
        assert ours.classes == tuple(theirs.classes) == ("apple_pie", "sushi")
        assert ours.labels == tuple(theirs._labels)
        assert [path.read_bytes() for path in ours.paths] == [path.read_bytes() for path in theirs._image_files]


@pytest.mark.parametrize("place", ["empty", "link"])
def test_data_set_goes_into_an_empty_folder_and_through_a_link(published, mirror, tmp_path, place):
    folder = tmp_path / "mine"
    (tmp_path / "disk").mkdir()
    folder.mkdir() if place == "empty" else folder.symlink_to(tmp_path / "disk")
    get(published, mirror, folder)
    assert contents(folder.resolve()) == published.unpacked
    assert folder.is_symlink() == (place == "link")


@pytest.mark.parametrize("start", ["", "./"])
def test_archives_are_packed_with_or_without_a_dot_and_more_beside_the_folder(published, serve, tmp_path, start):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path in sorted(published.source.iterdir()):
            tar.add(path, start + path.name)
            tar.addfile(tarfile.TarInfo(f"{start}._{path.name}"))
    get(published, serve(buffer.getvalue()), tmp_path / "mine.v2")
    assert contents(tmp_path / "mine.v2") == published.unpacked


def test_archive_that_was_brought_is_taken(published, mirror, tmp_path):
    bring(published, mirror.data, tmp_path)
    get(published, mirror, tmp_path / "mine")
    assert contents(tmp_path / "mine") == published.unpacked
    assert mirror.asked == []


def test_incomplete_folder_is_named_and_left_alone(published, mirror, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(published.source / published.folder, folder)
    (folder / published.image).unlink()
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"{folder / published.image} is listed")) as caught:
        get(published, mirror, folder)
    assert str(caught.value).endswith(f"or remove {folder} and fetch it anew")
    assert contents(tmp_path) == before
    assert mirror.asked == []


@pytest.mark.parametrize(
    ("name", "kind", "target"),
    [
        ("FOLDER/../../evil", tarfile.REGTYPE, ""),
        ("/tmp/evil", tarfile.REGTYPE, ""),
        ("../evil", tarfile.DIRTYPE, ""),
        ("FOLDER/evil", tarfile.SYMTYPE, "/etc/passwd"),
        ("FOLDER/evil", tarfile.SYMTYPE, "images.txt"),
        ("FOLDER/evil", tarfile.LNKTYPE, "FOLDER/images.txt"),
        ("FOLDER/evil", tarfile.CHRTYPE, ""),
        ("FOLDER/evil", tarfile.FIFOTYPE, ""),
    ],
)
def test_unsafe_member_of_an_archive_is_named_and_nothing_unpacked(published, serve, tmp_path, name, kind, target):
    member = tarfile.TarInfo(name.replace("FOLDER", published.folder))
    member.type, member.linkname = kind, target.replace("FOLDER", published.folder)
    server = serve(tar_of(published.source, extra=[member]))
    with pytest.raises(ValueError, match=re.escape(repr(member.name))) as caught:
        get(published, server, tmp_path / "mine")
    assert str(tmp_path / "archives" / published.archive) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == only_the_archive(published, server.data)


def header(name="CUB_200_2011/x", kind=tarfile.REGTYPE, size=0, **more):
    """A member's header as bytes, without what it announces."""
    member = tarfile.TarInfo(name)
    member.type, member.size, member.pax_headers = kind, size, more
    return member.tobuf(tarfile.PAX_FORMAT if more else tarfile.GNU_FORMAT)


BOMBS = {
    "of 20 GB": header(size=20_000_000_000),
    "of three times 2 GB": (header(size=2_000_000_000) + bytes(512)) * 3,
    "of many": header() * 25_001,
    "sparse": header(**{"GNU.sparse.map": "0,0", "GNU.sparse.size": "1000000000000000"}),
    "of a sparse one without an end": header(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, size=512) + b"99",
    "of a name of 2 GB": header("././@LongLink", tarfile.GNUTYPE_LONGNAME, 1 << 31),
    "of an attribute of 2 GB": header(kind=tarfile.XHDTYPE, size=1 << 31),
    "of names of names": header("././@LongLink", tarfile.GNUTYPE_LONGNAME) * 2_000,
    "that goes back": header()[:124] + b"\xff" * 12 + header()[136:],
    "of folders in folders": b"".join(header("/".join("a" * n), tarfile.DIRTYPE) for n in range(1, 50)),
    "of a long path": header("a/" * 2_000),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_one_line_and_nothing_is_unpacked(tmp_path, bomb):
    """With the right checksum; told by its headers, before anything of it is written or kept in memory."""
    packed = gzip.compress(bomb + bytes(1024), 1)
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / fetch.CUB_ARCHIVE).write_bytes(packed)
    before, begun = contents(tmp_path), time.monotonic()
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "archives" / fetch.CUB_ARCHIVE))) as caught:
        fetch.cub_200_2011(tmp_path / "mine", tmp_path / "archives", "http://nowhere.invalid", md5(packed))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert contents(tmp_path) == before
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"<html>", lambda data: b""])
def test_damaged_archive_is_named(published, serve, tmp_path, damage):
    """Its checksum is right here, as of a mirror that packed it badly."""
    server = serve(damage(tar_of(published.source)))
    bring(published, server.data, tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'archives' / published.archive} is damaged")):
        get(published, server, tmp_path / "mine")
    assert contents(tmp_path) == only_the_archive(published, server.data)


def test_archive_without_an_image_that_it_lists_is_not_put_in_place(published, serve, tmp_path):
    shutil.copytree(published.source, tmp_path / "less")
    (tmp_path / "less" / published.folder / published.image).unlink()
    server = serve(tar_of(tmp_path / "less"))
    archive, image = tmp_path / "new" / "archives" / published.archive, Path(published.image).name
    message = rf"{re.escape(str(archive))} is not the archive of {published.folder} \(.*{image} is listed"
    with pytest.raises(ValueError, match=message):
        get(published, server, tmp_path / "new" / "mine")
    assert contents(tmp_path / "new") == only_the_archive(published, server.data)


def test_archive_of_another_data_set_is_not_put_in_place(published, serve, tmp_path):
    other = (food_in_small if published.name == "cub" else cub_in_small)(tmp_path / "source")
    server = serve(tar_of(other.source))
    with pytest.raises(ValueError, match=rf"{published.archive} is not the archive of {published.folder}"):
        get(published, server, tmp_path / "new" / "mine")
    assert contents(tmp_path / "new") == only_the_archive(published, server.data)


def test_room_is_made_sure_of_before_unpacking(published, mirror, tmp_path, monkeypatch):
    """A file takes whole blocks of the disk."""
    needed = sum(4096 * -(-len(data) // 4096) for data in published.unpacked.values() if data)
    assert needed > len(mirror.data)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, needed - 1))
    with pytest.raises(ValueError, match=rf"{tmp_path} has \d+ MB free, the unpacked archive takes \d+ MB"):
        get(published, mirror, tmp_path / "mine")
    assert contents(tmp_path) == only_the_archive(published, mirror.data)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, needed))
    get(published, mirror, tmp_path / "mine")
    assert mirror.asked == [None]


def test_disk_that_fills_while_unpacking_leaves_no_half_folder(published, mirror, tmp_path, monkeypatch):
    extract, calls = tarfile.TarFile.extract, []

    def fill(tar, member, path):
        calls.append(member)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        extract(tar, member, path)

    monkeypatch.setattr(tarfile.TarFile, "extract", fill)
    with pytest.raises(OSError, match="No space left"):
        get(published, mirror, tmp_path / "mine")
    assert contents(tmp_path) == only_the_archive(published, mirror.data)


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_kill_while_downloading_then_again(published, mirror, tmp_path):
    folder, archives = tmp_path / "mine", tmp_path / "archives"
    script = [sys.executable, ROOT / "stages" / "data.py", published.name, "--path", folder, "--out", folder]
    script += ["--archives", archives, "--url", mirror.url("slow"), "--md5", md5(mirror.data)]
    partial = archives / f"{published.archive}.partial"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(script, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: partial.is_file() and partial.stat().st_size > 10_000)
    first.kill()
    first.wait()
    size = partial.stat().st_size
    assert contents(tmp_path) == {"archives": None, f"archives/{partial.name}": mirror.data[:size]}
    assert size < len(mirror.data)

    again = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (0, f"{folder} is complete: 4 images\n"), again.stderr
    assert mirror.asked == [None, f"bytes={size}-"]
    assert contents(folder) == published.unpacked
    assert contents(archives) == {published.archive: mirror.data}


KILLED = """
import os, signal, sys, tarfile
from cxlib import fetch
extract, calls = tarfile.TarFile.extract, []
def kill(*arguments):
    calls.append(arguments)
    extract(*arguments)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
tarfile.TarFile.extract = kill
"""


def die(function, *arguments):
    """Call a function of `cxlib.fetch` in a process that is killed when three files are unpacked."""
    code = f"{KILLED}fetch.{function.__name__}(*{arguments!r})"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_kill_while_unpacking_then_again(published, mirror, tmp_path):
    bring(published, mirror.data, tmp_path)
    folder = tmp_path / "mine"
    die(published.get, str(folder), str(tmp_path / "archives"), mirror.url(), md5(mirror.data))
    assert not folder.exists()
    assert len(list(tmp_path.iterdir())) == 2  # the archives, and the half-filled folder
    get(published, mirror, folder)
    assert contents(folder) == published.unpacked
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archives", "mine"]


def test_only_half_filled_folders_of_processes_that_are_gone_are_removed(published, mirror, tmp_path):
    """A container gives every process the same number: what bears ours is not ours."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = {pid: f".mine.{pid}.partial" for pid in (1, os.getppid(), gone.pid, os.getpid(), "note")}
    for name in names.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "stray").touch()
    get(published, mirror, tmp_path / "mine")
    assert contents(tmp_path / "mine") == published.unpacked
    left = {path.name for path in tmp_path.iterdir()} - {"mine", "archives"}
    assert left == {names[1], names[os.getppid()], names["note"]}


# --- ILSVRC2012 -------------------------------------------------------------------------------------------------

#: The first five validation images: the devkit's number, wnid, and torchvision's index of their class.
FIRST = (
    (490, "n01751748", 65),  # sea snake
    (361, "n09193705", 970),  # alp
    (171, "n02105855", 230),  # Shetland sheepdog
    (822, "n04263257", 809),  # soup bowl
    (297, "n03125729", 516),  # cradle
)


def devkit_tar(truth="490\n361\n171\n822\n297\n", field="WNID"):
    """The devkit as bytes: synsets in its own order, inner ones behind the classes, and the validation's numbers."""
    names = ["ILSVRC2012_ID", field, "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images"]
    rows = [
        (number, wnid, "a word, another", "what it is", 0, np.empty(0), 0, 1300) for number, wnid, _ in sorted(FIRST)
    ]
    rows += [(1001, "n00001740", "entity", "that which is", 2, np.array([171, 297]), 19, 0)]
    synsets = np.empty((len(rows), 1), dtype=[(name, object) for name in names])
    for place, row in enumerate(rows):
        synsets[place, 0] = row
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in (("meta.mat", meta.getvalue()), ("ILSVRC2012_validation_ground_truth.txt", truth.encode())):
            member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def photographs(tmp_path):
    return [
        picture(tmp_path / "source" / f"ILSVRC2012_val_{number:08d}.JPEG", seed=number) for number in range(1, 6)
    ]  # fmt: skip


@pytest.fixture
def archives(tmp_path, photographs, monkeypatch):
    """A folder that holds the two archives, whose checksums count as the official ones."""
    folder = tmp_path / "imagenet"
    folder.mkdir()
    (folder / imagenet.DEVKIT).write_bytes(devkit_tar())
    (folder / imagenet.VALIDATION).write_bytes(tar_of(tmp_path / "source", "w"))
    accept(folder, monkeypatch)
    return folder


def accept(folder, monkeypatch):
    """Let the archives' checksums be right."""
    for name in imagenet.ARCHIVES:
        monkeypatch.setitem(imagenet.ARCHIVES, name, md5((folder / name).read_bytes()))


def test_official_checksums_are_torchvisions():
    known = torchvision.datasets.imagenet.ARCHIVE_META
    assert tuple(imagenet.ARCHIVES.items()) == (known["devkit"], known["val"])


def test_validation_images_get_torchvisions_index_not_the_devkits_number(archives, photographs):
    assert fetch.ilsvrc2012_validation(archives, archives) == 5
    assert sorted(path.name for path in archives.iterdir()) == [imagenet.DEVKIT, imagenet.VALIDATION, "val"]
    samples = images.read(archives)
    found = {path.name: (path.parent.name, label) for path, label in zip(samples.paths, samples.labels)}
    assert found == {path.name: (wnid, index) for path, (_, wnid, index) in zip(photographs, FIRST)}
    for path in samples.paths:
        assert path.read_bytes() == (photographs[0].parent / path.name).read_bytes()


def test_sorted_images_are_those_of_torchvisions_own_reader(archives, tmp_path, monkeypatch):
    fetch.ilsvrc2012_validation(tmp_path / "ours", archives)
    meta = torchvision.datasets.imagenet.ARCHIVE_META
    for kind, name in (("devkit", imagenet.DEVKIT), ("val", imagenet.VALIDATION)):
        monkeypatch.setitem(meta, kind, (name, imagenet.ARCHIVES[name]))
    theirs = torchvision.datasets.ImageNet(archives, "val")
    assert len(theirs) == 5
    assert contents(tmp_path / "ours" / "val") == contents(archives / "val")


def test_sorted_folder_needs_no_archives(archives, tmp_path):
    fetch.ilsvrc2012_validation(archives, archives)
    assert fetch.ilsvrc2012_validation(archives, tmp_path / "nowhere") == 5


def test_unsorted_archives_name_the_function_that_sorts_them(archives):
    for read in (images.read, imagenet.read):
        message = rf"{archives} holds ILSVRC2012's archives, not sorted: use fetch\.ilsvrc2012_validation$"
        with pytest.raises(ValueError, match=message):
            read(archives)
    assert fetch.ilsvrc2012_validation(archives, archives) == 5
    assert len(images.read(archives)) == 5


@pytest.mark.parametrize(
    ("devkit", "named"),
    [
        (devkit_tar(truth="490\n361\n"), "holds 5 files, not the 2 images"),
        (devkit_tar(truth="490\n361\n171\n822\n5\n"), "is not ILSVRC2012's devkit"),
        (devkit_tar(truth="490\n361\n171\n822\nfive\n"), "is not ILSVRC2012's devkit"),
        (devkit_tar(field="wnid"), "is not ILSVRC2012's devkit"),
        (tar_of(ROOT / "data" / "reference"), "is not ILSVRC2012's devkit"),
        (b"no archive", "is damaged"),
        (devkit_tar()[:-200], "is damaged"),
    ],
)
def test_devkit_of_another_kind_is_named_and_nothing_put_in_place(archives, monkeypatch, devkit, named):
    (archives / imagenet.DEVKIT).write_bytes(devkit)
    accept(archives, monkeypatch)
    before = contents(archives)
    with pytest.raises(ValueError, match=named) as caught:
        fetch.ilsvrc2012_validation(archives, archives)
    assert "\n" not in str(caught.value)
    assert str(archives) in str(caught.value)
    assert contents(archives) == before


def test_full_disk_is_told_before_sorting(archives, monkeypatch):
    before = contents(archives)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 5 * 4096 - 1))
    with pytest.raises(ValueError, match="make room there"):
        fetch.ilsvrc2012_validation(archives, archives)
    assert contents(archives) == before


def test_flat_images_are_not_taken_for_sorted_ones(archives, photographs):
    shutil.copytree(photographs[0].parent, archives / "val")
    with pytest.raises(ValueError, match=re.escape(f"{archives / 'val'} is there but holds no class folders")):
        fetch.ilsvrc2012_validation(archives, archives)


def test_kill_while_sorting_then_again(archives, tmp_path):
    die(fetch.ilsvrc2012_validation, str(archives), str(archives), dict(imagenet.ARCHIVES))
    assert not (archives / "val").exists()
    assert imagenet.is_unsorted(archives)
    assert fetch.ilsvrc2012_validation(archives, archives) == 5
    assert sorted(path.name for path in archives.iterdir()) == [imagenet.DEVKIT, imagenet.VALIDATION, "val"]
    fetch.ilsvrc2012_validation(tmp_path / "never killed", archives)
    assert contents(archives / "val") == contents(tmp_path / "never killed" / "val")


# --- the stage --------------------------------------------------------------------------------------------------

PAINTED = {
    "species_per_family": 2,
    "train_per_species": 1,
    "test_per_species": 1,
    "image_size": 24,
    "ambiguity": 0.2,
    "seed": 3,
}


def run(name, path, out, *words):
    """The command of stages/data.py."""
    words = [name, "--path", path, "--out", out, *words]
    return CliRunner().invoke(command("stages/data.py"), [str(word) for word in words])


def options(values):
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", value)]


def sources(archives):
    """The words that say where ImageNet comes from."""
    md5s = imagenet.ARCHIVES[imagenet.DEVKIT], imagenet.ARCHIVES[imagenet.VALIDATION]
    return "--archives", archives, "--devkit-md5", md5s[0], "--validation-md5", md5s[1]


def test_stage_fetches_a_published_data_set(published, mirror, tmp_path):
    words = "--archives", tmp_path / "archives", "--url", mirror.url(), "--md5", md5(mirror.data)
    result = run(published.name, tmp_path / "mine", tmp_path / "mine", *words)
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'mine'} is complete: 4 images\n"), result.output
    assert contents(tmp_path / "mine") == published.unpacked


def test_stage_sorts_imagenet(archives, tmp_path):
    out = tmp_path / "sets" / "imagenet"
    result = run("imagenet", out, out, *sources(archives))
    assert (result.exit_code, result.stdout) == (0, f"{out} is complete: 5 images\n"), result.output
    assert images.read(out).labels == tuple(index for _, _, index in sorted(FIRST, key=lambda first: first[2]))


def test_stage_paints_synthbirds(tmp_path):
    out = tmp_path / "painted"
    result = run("synthbirds", out, out, *options(PAINTED))
    assert result.exit_code == 0, result.output
    species.generate(tmp_path / "again", **PAINTED)
    assert contents(out) == contents(tmp_path / "again")
    failed = run("synthbirds", tmp_path / "none", tmp_path / "none", *options(PAINTED | {"ambiguity": 2}))
    assert failed.exit_code == 2
    assert "--ambiguity" in failed.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "painted"]


DEAD = ("--archives", "nowhere", "--url", "http://127.0.0.1:9/", "--md5", "0")
#: What each command is told beside its folders; none of it is needed for a folder that is taken.
UNUSED = {
    "cub": DEAD,
    "food101": DEAD,
    "imagenet": ("--archives", "nowhere", "--devkit-md5", "0", "--validation-md5", "0"),
    "synthbirds": options(PAINTED),
}


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A folder in CUB's layout that somebody else made, outside of the current one."""
    monkeypatch.chdir(tmp_path)
    return cub_in_small(tmp_path / "elsewhere").source / "CUB_200_2011"


@pytest.mark.parametrize("name", UNUSED)
def test_another_folder_is_checked_and_taken_as_it_is(theirs, name):
    """Nothing is fetched or painted, and nothing written but one line that says what was there."""
    before = contents(theirs)
    result = run(name, theirs, "sets/mine", *UNUSED[name])
    told = f"{theirs}: 3 test images, taken as they are\n"
    assert (result.exit_code, result.output) == (0, told)
    assert contents(Path("sets")) == {"mine": None, "mine/taken.txt": told.encode()}
    assert contents(theirs) == before
    assert sorted(path.name for path in Path().iterdir()) == ["elsewhere", "sets"]


@pytest.mark.parametrize("name", UNUSED)
def test_another_folder_that_is_broken_is_one_line_and_not_taken(theirs, name):
    (theirs / "images" / "b" / "one.jpg").unlink()
    for path, fault in ((theirs, "one.jpg is listed in images.txt but is not there"), ("none", "is in neither CUB's")):
        result = run(name, path, "mine", *UNUSED[name])
        assert result.exit_code == 1
        assert result.output.startswith(f"Error: {path}")
        assert fault in result.output
        assert result.output.count("\n") == 1
    assert not Path("mine").exists()


def test_the_same_folder_under_another_name_is_not_another(published, mirror, tmp_path, monkeypatch):
    """Else a link, or a path with dots, would take the empty folder for a data set."""
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to(tmp_path)
    words = "--archives", "archives", "--url", mirror.url(), "--md5", md5(mirror.data)
    for path in ("link/mine", "archives/../mine", tmp_path / "mine"):
        result = run(published.name, path, "mine", *words)
        assert (result.exit_code, result.stdout) == (0, "mine is complete: 4 images\n"), result.output
    assert contents(tmp_path / "mine") == published.unpacked


@pytest.mark.parametrize("name", imagenet.ARCHIVES)
@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_missing_or_damaged_archive_is_one_line_that_says_what_to_put_where(archives, tmp_path, name, fault):
    path, out = archives / name, tmp_path / "sorted"
    path.write_bytes(path.read_bytes()[:-1]) if fault == "damaged" else path.unlink()
    before = contents(tmp_path)
    result = run("imagenet", out, out, *sources(archives))
    assert result.exit_code == 1
    error = result.stderr.splitlines()[-1]
    assert error.startswith(f"Error: {path} is {fault}")
    assert "image-net.org" in error
    if fault == "missing":
        assert result.output.count("\n") == 1
        assert error.endswith("and put it there")
    assert contents(tmp_path) == before
