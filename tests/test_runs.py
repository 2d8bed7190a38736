"""Any number of ranks, and any number of kills, give the same bytes: shown on real processes."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cxlib import networks
from cxlib.runs import Ranks, fingerprint, joined, map_batches, workplace
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


def test_a_fingerprint_changes_with_options_inputs_and_code(tmp_path, monkeypatch):
    data, module = tmp_path / "network.pt", tmp_path / "science.py"
    data.write_bytes(b"weights")
    module.write_text("EPSILON = 1\n")
    monkeypatch.setitem(sys.modules, "cxlib.science", type(sys)("cxlib.science"))
    sys.modules["cxlib.science"].__file__ = str(module)
    seen = [fingerprint({"epsilon": 1e-3}, [data]), fingerprint({"epsilon": 3e-3}, [data])]
    assert fingerprint({"epsilon": 1e-3}, [data]) == seen[0]
    module.write_text("EPSILON = 2\n")
    seen.append(fingerprint({"epsilon": 1e-3}, [data]))
    data.write_bytes(b"others")
    os.utime(data, ns=(0, 0))
    seen.append(fingerprint({"epsilon": 1e-3}, [data]))
    assert len(set(seen)) == 4
    assert all(re.fullmatch(r"[0-9a-f]{16}", value) for value in seen)


# --- batches ----------------------------------------------------------------------------------------------------


def squares(batch):
    return {"squares": np.array(batch) ** 2}


@pytest.mark.parametrize(("n", "batch_size"), [(0, 3), (1, 3), (7, 3), (9, 3)])
def test_results_come_in_the_order_of_the_batches(tmp_path, n, batch_size):
    parts = map_batches(squares, list(range(n)), batch_size, Ranks(), tmp_path, "squares")
    assert [part["squares"].tolist() for part in parts] == [
        [i**2 for i in range(start, min(n, start + batch_size))] for start in range(0, n, batch_size)
    ]


def test_a_rank_computes_its_own_batches_only(tmp_path, monkeypatch):
    monkeypatch.setattr(Ranks, "gather", lambda _self, content: [content] if _self.rank == 0 else None)
    seen = []

    def compute(batch):
        seen.append(list(batch))
        return squares(batch)

    assert map_batches(compute, list(range(10)), 2, Ranks(1, 2), tmp_path, "squares") is None
    assert seen == [[2, 3], [6, 7]]


def test_what_is_done_is_not_computed_again(tmp_path):
    calls = []

    def failing(batch):
        if len(calls) == 2:
            raise RuntimeError("killed")
        calls.append(batch)
        return squares(batch)

    with pytest.raises(RuntimeError, match="killed"):
        map_batches(failing, list(range(8)), 2, Ranks(), tmp_path, "squares")
    calls.clear()
    parts = map_batches(failing, list(range(8)), 2, Ranks(), tmp_path, "squares")
    assert calls == [[4, 5], [6, 7]]
    assert np.concatenate([part["squares"] for part in parts]).tolist() == [i**2 for i in range(8)]


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


def perturb(repo, out, n_ranks=0, wait=True, **more):
    options = {
        "network": "network.pt", "data": "birds", "image_size": 32, "crop": False, "contrasts": "original,probability",
        "epsilons": "0.001,0.003", "n_iterations": "1,3", "precision": "float32", "max_images": 13, "batch_size": 2,
        "device": "cpu", "threads": 1, "seed": 0, "out": out,
    } | more  # fmt: skip
    words = [str(word) for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_ranks}"] if n_ranks else []
    process = subprocess.Popen(
        [sys.executable, *launch, ROOT / "stages" / "perturb.py", *words],
        cwd=repo, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    if wait:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
    return process


@pytest.fixture(scope="module")
def alone(repo):
    perturb(repo, "alone.npz")
    return (repo / "alone.npz").read_bytes()


@pytest.mark.parametrize("n_ranks", [1, 2, 3])
def test_any_number_of_ranks_writes_the_same_bytes(repo, alone, n_ranks):
    """Seven batches, the last of one image: uneven for two ranks and for three."""
    perturb(repo, f"ranks{n_ranks}.npz", n_ranks)
    assert (repo / f"ranks{n_ranks}.npz").read_bytes() == alone
    assert not list((repo / ".resume").rglob("*.npz"))


def test_killed_and_started_again_it_ends_with_the_same_bytes(repo, alone):
    """Twice SIGKILL in the middle of the work; then a run to the end, by another number of ranks."""
    for n_done in (1, 3):
        process = perturb(repo, "killed.npz", wait=False)
        deadline = time.monotonic() + 120
        while len(list((repo / ".resume").rglob("0*.npz"))) < n_done:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (repo / "killed.npz").exists()
    kept = list((repo / ".resume").rglob("0*.npz"))
    assert len(kept) >= 3
    perturb(repo, "killed.npz", 2)
    assert (repo / "killed.npz").read_bytes() == alone


def test_a_rank_that_fails_ends_all_of_them_without_an_output(repo):
    (repo / "broken.pt").write_bytes(b"no network")
    process = perturb(repo, "failed.npz", 2, wait=False, network="broken.pt")
    _, errors = process.communicate(timeout=180)
    assert process.returncode != 0
    assert "Error: broken.pt is not a file of weights" in errors
    assert not (repo / "failed.npz").exists()
