"""The published data sets come whole or not at all: over faulty connections, out of bad archives, after a kill."""

import contextlib
import errno
import fcntl
import hashlib
import io
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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torchvision
from click.testing import CliRunner
from scipy.io import savemat
from test_datasets import LISTS, picture
from test_params import ROOT, command

from cxlib import fetch
from cxlib.datasets import cub, imagenet, images

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


# --- CUB-200-2011 -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """What CUB's archive holds, with four small images: the folder, and the attributes' names beside it."""
    top = tmp_path_factory.mktemp("official")
    folder = top / "CUB_200_2011"
    for seed, name in enumerate(("b/one", "a/two", "b/three", "a/four")):
        picture(folder / "images" / f"{name}.jpg", (120, 90), seed=seed)
    for name, text in LISTS.items():
        (folder / name).write_text(text)
    (folder / "attributes").mkdir()
    percentages = [f"{100 * (row == 6)}.0 20.0" for row in range(7)]
    (folder / "attributes" / "class_attribute_labels_continuous.txt").write_text("\n".join(percentages))
    (top / "attributes.txt").write_text("1 has_crown_color::blue\n2 has_tail_shape::forked_tail\n")
    return top


@pytest.fixture(scope="module")
def unpacked(official):
    """What must come of it."""
    folder = contents(official / "CUB_200_2011")
    return folder | {"attributes/attributes.txt": (official / "attributes.txt").read_bytes()}


@pytest.fixture
def birds(serve, official):
    return serve(tar_of(official))


def get_birds(server, folder, fault=""):
    return fetch.cub_200_2011(folder, server.url(fault), md5(server.data))


def test_cub_is_downloaded_unpacked_and_read(birds, unpacked, tmp_path):
    folder = tmp_path / "data" / "CUB_200_2011"
    assert get_birds(birds, folder) == 4
    assert contents(folder) == unpacked
    assert sorted(path.name for path in folder.parent.iterdir()) == ["CUB_200_2011", "CUB_200_2011.tgz"]
    assert len(images.read(folder, "test")) == 3
    assert cub.discriminative_parts(folder, 0, 1) == {"crown"}
    # Again: nothing to do, also without the archive.
    (tmp_path / "data" / "CUB_200_2011.tgz").unlink()
    assert get_birds(birds, folder) == 4
    assert birds.asked == [None]


@pytest.mark.parametrize("place", ["empty", "link"])
def test_cub_goes_into_an_empty_folder_and_through_a_link(birds, unpacked, tmp_path, place):
    folder = tmp_path / "birds"
    (tmp_path / "disk").mkdir()
    folder.mkdir() if place == "empty" else folder.symlink_to(tmp_path / "disk")
    get_birds(birds, folder)
    assert contents(folder.resolve()) == unpacked
    assert folder.is_symlink() == (place == "link")


@pytest.mark.parametrize("start", ["", "./"])
def test_archives_are_packed_with_or_without_a_dot_and_more_beside_the_folder(
    serve, official, unpacked, tmp_path, start
):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in ("CUB_200_2011", "attributes.txt"):
            tar.add(official / name, start + name)
            tar.addfile(tarfile.TarInfo(f"{start}._{name}"))
    get_birds(serve(buffer.getvalue()), tmp_path / "birds.v2")
    assert contents(tmp_path / "birds.v2") == unpacked


def test_archive_that_was_brought_is_taken(birds, unpacked, tmp_path):
    (tmp_path / "CUB_200_2011.tgz").write_bytes(birds.data)
    get_birds(birds, tmp_path / "birds")
    assert contents(tmp_path / "birds") == unpacked
    assert birds.asked == []


def test_incomplete_folder_is_named_and_left_alone(birds, official, tmp_path):
    folder = tmp_path / "birds"
    shutil.copytree(official / "CUB_200_2011", folder)
    (folder / "images" / "a" / "two.jpg").unlink()
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"{folder / 'images' / 'a' / 'two.jpg'} is listed")) as caught:
        get_birds(birds, folder)
    assert str(caught.value).endswith(f"or remove {folder} and fetch it anew")
    assert contents(tmp_path) == before
    assert birds.asked == []


def odd(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "member",
    [
        odd("CUB_200_2011/../../evil", tarfile.REGTYPE),
        odd("/tmp/evil", tarfile.REGTYPE),
        odd("../evil", tarfile.DIRTYPE),
        odd("CUB_200_2011/evil", tarfile.SYMTYPE, "/etc/passwd"),
        odd("CUB_200_2011/evil", tarfile.SYMTYPE, "images.txt"),
        odd("CUB_200_2011/evil", tarfile.LNKTYPE, "CUB_200_2011/images.txt"),
        odd("CUB_200_2011/evil", tarfile.CHRTYPE),
        odd("CUB_200_2011/evil", tarfile.FIFOTYPE),
    ],
    ids=lambda member: f"{member.name}-{member.type.decode()}",
)
def test_unsafe_member_of_an_archive_is_named_and_nothing_unpacked(serve, official, tmp_path, member):
    server = serve(tar_of(official, extra=[member]))
    folder = tmp_path / "data" / "birds"
    with pytest.raises(ValueError, match=re.escape(repr(member.name))) as caught:
        get_birds(server, folder)
    assert str(folder.with_name("CUB_200_2011.tgz")) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == {"data": None, "data/CUB_200_2011.tgz": server.data}


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"<html>", lambda data: b""])
def test_damaged_archive_is_named(serve, official, tmp_path, damage):
    """Its checksum is right here, as of a mirror that packed it badly."""
    server = serve(damage(tar_of(official)))
    (tmp_path / "CUB_200_2011.tgz").write_bytes(server.data)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'CUB_200_2011.tgz'} is damaged")):
        get_birds(server, tmp_path / "birds")
    assert contents(tmp_path) == {"CUB_200_2011.tgz": server.data}


def test_archive_without_an_image_that_it_lists_is_not_put_in_place(serve, official, tmp_path):
    shutil.copytree(official, tmp_path / "less")
    (tmp_path / "less" / "CUB_200_2011" / "images" / "b" / "one.jpg").unlink()
    server = serve(tar_of(tmp_path / "less"))
    with pytest.raises(ValueError, match=r"CUB_200_2011\.tgz is not CUB-200-2011's archive \(.*one\.jpg is listed"):
        get_birds(server, tmp_path / "new" / "birds")
    assert list(contents(tmp_path / "new")) == ["CUB_200_2011.tgz"]


def test_room_is_made_sure_of_before_unpacking(birds, unpacked, tmp_path, monkeypatch):
    """A file takes whole blocks of the disk."""
    needed = sum(4096 * -(-len(data) // 4096) for data in unpacked.values() if data)
    assert needed > len(birds.data)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, needed - 1))
    with pytest.raises(ValueError, match=rf"{tmp_path} has \d+ MB free, the unpacked archive takes \d+ MB"):
        get_birds(birds, tmp_path / "birds")
    assert list(contents(tmp_path)) == ["CUB_200_2011.tgz"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, needed))
    get_birds(birds, tmp_path / "birds")
    assert birds.asked == [None]


def test_disk_that_fills_while_unpacking_leaves_no_half_folder(birds, tmp_path, monkeypatch):
    extract, calls = tarfile.TarFile.extract, []

    def fill(tar, member, path):
        calls.append(member)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        extract(tar, member, path)

    monkeypatch.setattr(tarfile.TarFile, "extract", fill)
    with pytest.raises(OSError, match="No space left"):
        get_birds(birds, tmp_path / "birds")
    assert list(contents(tmp_path)) == ["CUB_200_2011.tgz"]


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_kill_while_downloading_then_again(birds, unpacked, tmp_path):
    script = [sys.executable, ROOT / "stages" / "fetch.py", "cub", "--url", birds.url("slow"), "--md5", md5(birds.data)]
    script += ["--out", tmp_path / "birds"]
    partial = tmp_path / "CUB_200_2011.tgz.partial"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(script, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: partial.is_file() and partial.stat().st_size > 10_000)
    first.kill()
    first.wait()
    assert list(contents(tmp_path)) == [partial.name]
    size = partial.stat().st_size
    assert partial.read_bytes() == birds.data[:size]
    assert size < len(birds.data)

    again = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (0, f"{tmp_path / 'birds'} is complete: 4 images\n"), again.stderr
    assert birds.asked == [None, f"bytes={size}-"]
    assert contents(tmp_path / "birds") == unpacked
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CUB_200_2011.tgz", "birds"]


KILLED = """
import os, signal, sys, tarfile
from cxlib.datasets import fetch
extract, calls = tarfile.TarFile.extract, []
def kill(*arguments):
    calls.append(arguments)
    extract(*arguments)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
tarfile.TarFile.extract = kill
"""


def test_kill_while_unpacking_then_again(birds, unpacked, tmp_path):
    (tmp_path / "CUB_200_2011.tgz").write_bytes(birds.data)
    folder = tmp_path / "birds"
    code = f"{KILLED}fetch.cub_200_2011({str(folder)!r}, {birds.url()!r}, {md5(birds.data)!r})"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not folder.exists()
    assert len(list(tmp_path.iterdir())) == 2  # the archive, and the half-filled folder
    get_birds(birds, folder)
    assert contents(folder) == unpacked
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CUB_200_2011.tgz", "birds"]


def test_only_half_filled_folders_of_processes_that_are_gone_are_removed(birds, unpacked, tmp_path):
    """A container gives every process the same number: what bears ours is not ours."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = {pid: f".birds.{pid}.partial" for pid in (1, os.getppid(), gone.pid, os.getpid(), "note")}
    for name in names.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "stray").touch()
    get_birds(birds, tmp_path / "birds")
    assert contents(tmp_path / "birds") == unpacked
    left = {path.name for path in tmp_path.iterdir()} - {"birds", "CUB_200_2011.tgz"}
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


def test_unsorted_archives_name_the_command_that_sorts_them(archives, monkeypatch):
    for read in (images.read, imagenet.read):
        with pytest.raises(ValueError, match=rf"{archives} holds ILSVRC2012's archives, not yet sorted") as caught:
            read(archives)
    words = re.search("`(.*)`", str(caught.value))[1].split()
    assert words[:2] == ["python", "stages/fetch.py"]
    result = CliRunner().invoke(command(words[1]), words[2:])
    assert (result.exit_code, result.stdout) == (0, f"{archives} is complete: 5 images\n")
    assert len(images.read(archives)) == 5


@pytest.mark.parametrize("name", imagenet.ARCHIVES)
@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_missing_or_damaged_archive_is_named_with_its_source_and_place(archives, name, fault):
    path = archives / name
    path.write_bytes(path.read_bytes()[:-1]) if fault == "damaged" else path.unlink()
    before = contents(archives)
    result = CliRunner().invoke(command("stages/fetch.py"), ["imagenet", "--archives", archives, "--out", archives])
    error = result.stderr.splitlines()[-1]
    assert result.exit_code == 1
    assert error.startswith(f"Error: {path} is {fault}")
    assert "image-net.org" in error
    assert contents(archives) == before


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
    checksums = dict(imagenet.ARCHIVES)
    code = f"{KILLED}fetch.ilsvrc2012_validation({str(archives)!r}, {str(archives)!r}, {checksums!r})"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (archives / "val").exists()
    assert imagenet.is_unsorted(archives)
    assert fetch.ilsvrc2012_validation(archives, archives) == 5
    assert sorted(path.name for path in archives.iterdir()) == [imagenet.DEVKIT, imagenet.VALIDATION, "val"]
    fetch.ilsvrc2012_validation(tmp_path / "never killed", archives)
    assert contents(archives / "val") == contents(tmp_path / "never killed" / "val")
