"""Any number of ranks, and any number of kills, give the same bytes: shown on real processes."""

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from cxlib import networks, runtime
from cxlib.runs import Ranks, fingerprint, joined, map_batches, prefetched, workplace
from cxlib.synthbirds import species

ROOT = Path(__file__).parents[1]


# --- the folder of unfinished work ------------------------------------------------------------------------------


def test_a_workplace_is_removed_on_success_and_kept_on_failure(tmp_path):
    folder = tmp_path / "stage" / "0123"
    with pytest.raises(RuntimeError, match="stop"), workplace(folder, Ranks()) as place:
        (place / "000000.npz").write_bytes(b"done")
        raise RuntimeError("stop")
    assert (folder / "000000.npz").read_bytes() == b"done"
    with workplace(folder, Ranks()) as place:
        assert (place / "000000.npz").exists()
    assert not folder.exists()


def test_a_process_that_still_works_there_is_named(tmp_path):
    folder = tmp_path / "0123"
    holding = "import sys, time; from cxlib.runs import *\n"
    holding += "with workplace(sys.argv[1], Ranks()): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", holding, folder], stdout=subprocess.PIPE, text=True) as orphan:
        assert orphan.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"process {orphan.pid} is at work"), workplace(folder, Ranks()):
            pass
        orphan.kill()
        orphan.wait()
        with workplace(folder, Ranks()):  # a killed process holds nothing
            pass


def test_only_rank_0_locks_and_removes(tmp_path):
    folder = tmp_path / "0123"
    with workplace(folder, Ranks(1, 1)) as place, (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert folder.exists()


def test_a_fingerprint_changes_with_options_files_values_and_code(tmp_path, monkeypatch):
    data, module = tmp_path / "network.pt", tmp_path / "science.py"
    data.write_bytes(b"weights")
    module.write_text("EPSILON = 1\n")
    monkeypatch.setitem(sys.modules, "cxlib.science", type(sys)("cxlib.science"))
    sys.modules["cxlib.science"].__file__ = str(module)
    seen = [fingerprint({"epsilon": 1e-3}, [data]), fingerprint({"epsilon": 3e-3}, [data])]
    seen += [fingerprint({"epsilon": 1e-3}, [data], [values]) for values in ([0, 1], [1, 0], [[0], [1]], ["a", "b"])]
    module.write_text("EPSILON = 2\n")
    seen.append(fingerprint({"epsilon": 1e-3}, [data]))
    monkeypatch.setattr(metadata, "version", lambda _name: "0.0")
    seen.append(fingerprint({"epsilon": 1e-3}, [data]))
    assert len(set(seen)) == len(seen)
    assert all(re.fullmatch(r"[0-9a-f]{16}", value) for value in seen)


def test_a_fingerprint_is_of_content_whatever_the_time_stamps_say(tmp_path):
    data = tmp_path / "image.jpg"
    data.write_bytes(b"thrush")
    before, state = fingerprint({}, [data]), data.stat()
    os.utime(data, ns=(0, 0))
    assert fingerprint({}, [data]) == before
    data.write_bytes(b"warble")
    os.utime(data, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert fingerprint({}, [data]) != before


# --- batches ----------------------------------------------------------------------------------------------------


def load(batch):
    return np.array(batch)


def squares(batch, loaded):
    assert loaded.tolist() == list(batch)
    return {"squares": loaded**2}


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize(("n", "batch_size"), [(0, 3), (1, 3), (7, 3), (9, 3)])
def test_results_come_in_the_order_of_the_batches(tmp_path, n, batch_size, workers):
    parts = map_batches(load, squares, list(range(n)), batch_size, Ranks(), tmp_path, "squares", workers)
    assert [part["squares"].tolist() for part in parts] == [
        [i**2 for i in range(start, min(n, start + batch_size))] for start in range(0, n, batch_size)
    ]


def test_a_rank_computes_its_own_batches_only(tmp_path, monkeypatch):
    monkeypatch.setattr(Ranks, "gather", lambda _self, content: [content] if _self.rank == 0 else None)
    seen = []

    def compute(batch, loaded):
        seen.append(list(batch))
        return squares(batch, loaded)

    assert map_batches(load, compute, list(range(10)), 2, Ranks(1, 2), tmp_path, "squares") is None
    assert seen == [[2, 3], [6, 7]]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_done_is_neither_loaded_nor_computed_again(tmp_path, workers):
    calls = []

    def failing(batch, loaded):
        if len(calls) == 2:
            raise RuntimeError("killed")
        calls.append(batch)
        return squares(batch, loaded)

    def only_the_rest(batch):
        assert min(batch) >= 4
        return load(batch)

    with pytest.raises(RuntimeError, match="killed"):
        map_batches(load, failing, list(range(8)), 2, Ranks(), tmp_path, "squares", workers)
    calls.clear()
    parts = map_batches(only_the_rest, failing, list(range(8)), 2, Ranks(), tmp_path, "squares", workers)
    assert calls == [[4, 5], [6, 7]]
    assert np.concatenate([part["squares"] for part in parts]).tolist() == [i**2 for i in range(8)]


@pytest.mark.parametrize("damage", [b"", b"half of a file"])
def test_a_damaged_part_is_computed_anew(tmp_path, damage):
    whole = map_batches(load, squares, range(6), 2, Ranks(), tmp_path, "squares")
    (tmp_path / "000001.npz").write_bytes(damage)
    loaded = []

    def counted(batch):
        loaded.extend(batch)
        return load(batch)

    parts = map_batches(counted, squares, range(6), 2, Ranks(), tmp_path, "squares")
    assert loaded == [2, 3]
    assert [part["squares"].tolist() for part in parts] == [part["squares"].tolist() for part in whole]


def fitting(n, tried):
    """Squares, on a device whose memory holds n images."""

    def compute(batch, loaded):
        tried.append(len(batch))
        if len(batch) > n:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has 1 GiB")
        return squares(batch, loaded)

    return compute


@pytest.mark.parametrize(("n", "tried"), [(4, [4, 4, 2]), (3, [4, 2, 2, 2, 2, 2]), (1, [4, 2, *[1] * 10])])
def test_a_batch_that_the_memory_does_not_hold_is_halved(tmp_path, capsys, n, tried):
    """And so are those after it; each halving is told once, and parts are those of whole batches."""
    parts = map_batches(load, squares, range(10), 4, Ranks(), tmp_path / "whole", "squares")
    seen = []
    halved = map_batches(load, fitting(n, seen), range(10), 4, Ranks(), tmp_path / "halved", "squares")
    assert [part["squares"].tolist() for part in halved] == [part["squares"].tolist() for part in parts]
    assert seen == tried
    warnings = [line for line in capsys.readouterr().err.splitlines() if "Warning" in line]
    sizes = [4, 2, 1][: 1 + (n < 4) + (n < 2)]
    assert [[int(word) for word in re.findall(r"\d+", line)] for line in warnings] == [[a, a // 2] for a in sizes[:-1]]


def test_a_cpu_that_refuses_memory_is_a_device_too(tmp_path):
    """Whose error has no class of its own, through a network that is refused it as well."""

    class Large(torch.nn.Module):
        def forward(self, images):
            torch.empty(1 << (50 if len(images) > room else 10), dtype=torch.uint8)
            return images

    def compute(batch, loaded):
        network(torch.zeros(len(batch), 3, 4, 4))
        return squares(batch, loaded)

    network, room = networks.Network("large", Large(), {}), 1
    parts = map_batches(load, compute, range(3), 2, Ranks(), tmp_path / "some", "squares")
    assert [part["squares"].tolist() for part in parts] == [[0, 1], [4]]
    room = 0
    said = rf"memory is too small \(can't allocate memory: you tried to allocate {1 << 50} bytes\): take smaller images"
    with pytest.raises(ValueError, match=said), runtime.told_of_full_memory():
        map_batches(load, compute, range(3), 2, Ranks(), tmp_path / "none", "squares")


def test_all_that_was_loaded_of_a_batch_is_halved(tmp_path):
    def compute(batch, loaded):
        images, labels = loaded
        return {"sums": fitting(2, [])(batch, images)["squares"] + labels.numpy()}

    parts = map_batches(lambda b: (load(b), torch.tensor(b)), compute, list(range(5)), 5, Ranks(), tmp_path, "sums")
    assert parts[0]["sums"].tolist() == [i**2 + i for i in range(5)]


def test_a_memory_without_room_for_one_image_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"too small \(CUDA out of memory\. Tried to allocate 2 GiB\): take"):  # noqa: SIM117
        with runtime.told_of_full_memory():
            map_batches(load, fitting(0, []), range(3), 2, Ranks(), tmp_path, "squares")


@pytest.mark.parametrize("workers", [0, 2])
def test_what_loading_complains_of_is_one_line_wherever_it_ran(workers):
    def broken(item):
        if item == 3:
            raise ValueError("bird.jpg cannot be decoded: replace it")
        return item

    loaded = prefetched(broken, range(5), workers)
    assert [next(loaded) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"^bird\.jpg cannot be decoded: replace it$"):
        next(loaded)


def test_loading_goes_on_while_the_caller_computes():
    """The worker of an idle caller is ahead of it."""
    loaded = prefetched(lambda _: time.monotonic(), range(3), 1)
    first = next(loaded)
    time.sleep(0.5)
    assert next(loaded) - first < 0.4


def test_one_process_is_rank_0_of_1(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with joined() as ranks:
        assert ranks == Ranks(0, 1, 0)
        assert ranks.gather("mine") == ["mine"]
        ranks.barrier()


# --- the stage itself, under torchrun and under SIGKILL ---------------------------------------------------------


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A folder with birds and a network."""
    folder = tmp_path_factory.mktemp("scale")
    species.generate(
        folder / "birds",
        species_per_family=2,
        train_per_species=1,
        test_per_species=2,
        image_size=40,
        ambiguity=0,
        seed=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks.save(networks.build("squeezenet1_1", num_classes=8), folder / "network.pt")
    return folder


OPTIONS = (
    "--network network.pt --data birds --image-size 32 --no-crop --contrasts original --contrasts probability"
    " --epsilons 0.001 --epsilons 0.003 --n-iterations 1 --n-iterations 3 --precision float32 --dose-images 2"
    " --max-images 13 --seed 0"
)
SCRIPT = [sys.executable, str(ROOT / "stages" / "perturb.py")]


def start(repo, out, *more, script=SCRIPT, **machine):
    """Perturb in a process of its own, on a machine of these settings."""
    settings = {"device": "cpu", "threads": 1, "batch_size": 2, "workers": 0} | machine
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | {f"CXLIB_{k.upper()}": str(v) for k, v in settings.items()}
    return subprocess.Popen(
        [*script, *OPTIONS.split(), "--out", out, *more],
        cwd=repo, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def end(process):
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors


def kept(repo):
    return list((repo / ".resume").rglob("0*.npz"))


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def children(pid):
    """Processes that this one started: the launcher's ranks."""
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in found for child in file.read_text().split()]


@pytest.fixture(scope="module")
def alone(repo):
    end(start(repo, "alone.npz"))
    return (repo / "alone.npz").read_bytes()


@pytest.mark.parametrize("machine", [{"processes": 3}, {"workers": 1}, {"workers": 3}], ids=str)
def test_any_number_of_processes_and_workers_writes_the_same_bytes(repo, alone, machine):
    """Seven batches, the last of one image: uneven for two ranks and for three."""
    out = f"{next(iter(machine))}{next(iter(machine.values()))}.npz"
    end(start(repo, out, **machine))
    assert (repo / out).read_bytes() == alone
    assert not kept(repo)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_two_nodes_of_two_processes_each_write_the_same_bytes(repo, alone):
    """The first node starts them by a command that runs what is behind it once on every node, as `srun` does."""
    (repo / "both").write_text('#!/bin/sh\n"$@" & "$@"\nstatus=$?\nwait $! && exit $status\n')
    (repo / "both").chmod(0o755)
    nodes = {"nodes": 2, "processes": 2, "rendezvous": f"127.0.0.1:{free_port()}", "spawn": "./both"}
    end(start(repo, "nodes.npz", **nodes))
    assert (repo / "nodes.npz").read_bytes() == alone


def test_killed_and_started_again_it_ends_with_the_same_bytes(repo, alone):
    """Twice SIGKILL in the middle of the work; then a run to the end, by another number of processes."""
    for n_done in (1, 3):
        process = start(repo, "killed.npz")
        wait_for(lambda n_done=n_done: len(kept(repo)) >= n_done, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (repo / "killed.npz").exists()
    assert len(kept(repo)) >= 3
    end(start(repo, "killed.npz", processes=2))
    assert (repo / "killed.npz").read_bytes() == alone


def test_ended_at_random_moments_it_ends_with_the_same_bytes(repo, alone):
    """By SIGTERM and SIGKILL, once the work is taken up; also where the launcher has to end its ranks."""
    rng = np.random.default_rng(0)
    for number, processes in ((signal.SIGTERM, 1), (signal.SIGKILL, 1), (signal.SIGTERM, 2)):
        begun = time.time_ns()
        process = start(repo, "ended.npz", processes=processes)
        wait_for(lambda: any(lock.stat().st_mtime_ns > begun for lock in repo.glob(".resume/*/*/lock")), process)  # noqa: B023
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, 0.5))
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode in (-number, 128 + number, 0)
        # A signal may come when all is written.
        assert (repo / "ended.npz").exists() or process.returncode != 0
    end(start(repo, "ended.npz"))
    assert (repo / "ended.npz").read_bytes() == alone
    assert not list(repo.rglob(".*.partial*")) and not kept(repo)


def test_a_process_that_is_killed_is_started_again_by_the_launcher(repo, alone):
    process = start(repo, "restarted.npz", processes=2)
    wait_for(lambda: kept(repo), process)
    before = children(process.pid)
    os.kill(before[0], signal.SIGKILL)
    end(process)
    assert (repo / "restarted.npz").read_bytes() == alone
    assert not kept(repo)


def test_what_one_process_finds_wrong_ends_all_of_them_in_one_line(repo):
    (repo / "broken.pt").write_bytes(b"no network")
    begun = time.monotonic()
    process = start(repo, "failed.npz", "--network", "broken.pt", processes=2)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 1
    assert errors.splitlines() == ["Error: broken.pt is not a file of weights (UnpicklingError)"]
    assert time.monotonic() - begun < 60  # and is not tried again
    assert not (repo / "failed.npz").exists()


def test_a_stage_that_shares_nothing_is_refused_under_torchrun(repo):
    script = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(ROOT / "stages" / "figure.py")]
    done = subprocess.run(
        [sys.executable, *script, "table1", "--table", "t.csv", "--out", "t.png", "--shown", "t.webp"],
        cwd=repo, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode != 0
    assert "figure.py is one process, torchrun started several: use python" in done.stderr


def test_a_machine_file_is_read_and_the_environment_comes_before_it(repo, tmp_path):
    (tmp_path / "machine.yaml").write_text("threads: 0\ndevice: abacus\n")
    command = [sys.executable, "-c", "import _command; print(_command.settings())"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'stages'}"}
    run = lambda **more: subprocess.run(  # noqa: E731
        command, cwd=tmp_path, env=environment | more, capture_output=True, text=True, timeout=60
    )
    assert "device 'abacus' is not available here" in run().stderr
    assert "device='cpu'" in run(CXLIB_DEVICE="cpu").stdout
