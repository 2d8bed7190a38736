"""The machine is what its settings say, and the rest found out; files are whole or not there, and the same twice."""

import io
import json
import os
import pickle
import subprocess
import sys
import time
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from test_params import ROOT, load_module

from cxlib import runtime

CORES = len(os.sched_getaffinity(0))
gathered = load_module(ROOT / "stages" / "_command.py").gathered

# --- the machine ------------------------------------------------------------------------------------------------


def test_what_is_left_open_is_found_out():
    found = runtime.machine({"CXLIB_DEVICE": "cpu", "HOME": "/root"})
    expected = runtime.Machine("cpu", threads=CORES, processes=1, workers=min(4, CORES // 4), batch_size=16, nodes=1)
    assert found == expected
    assert runtime.machine({}).device == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_has_larger_batches_and_more_that_decode_for_it():
    found = runtime.machine({"CXLIB_DEVICE": "cuda"})
    assert (found.device, found.batch_size, found.workers) == ("cuda", 64, min(4, CORES // 4))


@pytest.mark.parametrize(("processes", "threads"), [(1, CORES), (2, max(1, CORES // 2)), (10 * CORES, 1)])
def test_processes_share_the_cores_and_none_is_without_a_thread(processes, threads):
    found = runtime.machine({"CXLIB_DEVICE": "cpu", "CXLIB_PROCESSES": str(processes)})
    assert (found.processes, found.threads) == (processes, threads)


def test_what_is_given_is_taken():
    given = runtime.Machine("cpu", 3, 2, 0, 5, 4, "node-1:29500", "srun -N 4")
    assert runtime.machine({f"CXLIB_{name.upper()}": str(value) for name, value in vars(given).items()}) == given


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        *((name, value, 0) for name in ("THREADS", "BATCH_SIZE") for value in ("-1", "two", "1.5", "", "1 2")),
        *((name, value, 1) for name in ("PROCESSES", "NODES") for value in ("0", "-2", "auto", "--1")),
        *(("WORKERS", value, -1) for value in ("-2", "--1", "-", "1e3")),
    ],
)
def test_a_number_that_is_none_or_too_small_is_named_with_its_variable(name, value, least):
    with pytest.raises(ValueError) as caught:
        runtime.machine({"CXLIB_DEVICE": "cpu", f"CXLIB_{name}": value})
    assert str(caught.value) == f"CXLIB_{name} must be a whole number of at least {least}, got {value!r}"


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "cpu gpu", "", "meta", "hpu", "lazy"])
def test_an_unknown_device_is_named_in_one_line(name):
    for asked in (lambda: runtime.machine({"CXLIB_DEVICE": name}), lambda: runtime.device(name)):
        with pytest.raises(ValueError) as caught:
            asked()
        assert str(caught.value).startswith(f"device {name!r} is not available here (")
        assert "\n" not in str(caught.value)


def test_nodes_need_a_place_to_meet():
    with pytest.raises(ValueError, match="CXLIB_NODES needs CXLIB_RENDEZVOUS, the HOST:PORT of one of them"):
        runtime.machine({"CXLIB_DEVICE": "cpu", "CXLIB_NODES": "2"})
    assert runtime.machine({"CXLIB_DEVICE": "cpu", "CXLIB_NODES": "2", "CXLIB_RENDEZVOUS": "a:1"}).rendezvous == "a:1"


def test_what_computed_is_said_in_words():
    words = runtime.computed_by(torch.device("cpu"))
    assert words == f"cpu {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


# --- random state ---------------------------------------------------------------------------------------------------


def drawn(*seed):
    with runtime.seeded(*seed):
        return torch.rand(4)


def test_every_path_of_seeds_is_a_stream_of_its_own():
    paths = [(7,), (7, 0), (7, 0, 0), (7, 0, 0, 0), (7, 1), (7, 1, 0), (7, 0, 1), (0, 7), (0,), (0, 0), (8,)]
    draws = torch.stack([drawn(*path) for path in paths])
    assert len(draws[:, 0].unique()) == len(paths)
    assert torch.equal(drawn(7, 0, 1), draws[paths.index((7, 0, 1))])


def test_the_callers_random_state_is_restored():
    state = torch.random.get_rng_state()
    drawn(7)
    assert torch.equal(torch.random.get_rng_state(), state)


# --- files ------------------------------------------------------------------------------------------------------


def left_over(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_json_is_sorted_and_has_six_digits(tmp_path):
    content = {"b": 1 / 3, "a": {"z": np.float64(123456.789), "y": np.int64(7), "x": np.bool_(True), "w": "text"}}
    runtime.write_json(tmp_path / "new" / "m.json", content)
    text = (tmp_path / "new" / "m.json").read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == {"a": {"w": "text", "x": True, "y": 7, "z": 123457.0}, "b": 0.333333}
    keys = [line.split('"')[1] for line in text.splitlines() if ":" in line]
    assert keys == ["a", "w", "x", "y", "z", "b"]


@pytest.mark.parametrize("value", [float("nan"), np.float64("nan"), float("inf"), np.float32("-inf")])
def test_json_refuses_what_is_no_number(tmp_path, value):
    with pytest.raises(ValueError):
        runtime.write_json(tmp_path / "m.json", {"a": {"b": value}})
    assert left_over(tmp_path) == []


def test_metrics_have_five_decimals_at_any_depth(tmp_path):
    """What a different order of summation leaves behind must not show in a diff of metrics, not even as a sign."""
    numbers = {"third": -1 / 3, "dust": np.float32(4.9e-6), "minus dust": -1e-9, "large": 123456.789}
    runtime.write_metrics(tmp_path / "m.json", {"claim": {"holds": np.bool_(True), "n": np.int64(7), **numbers}})
    text = (tmp_path / "m.json").read_text()
    shown = {"third": -0.33333, "dust": 0.0, "minus dust": 0.0, "large": 123457.0}
    assert json.loads(text) == {"claim": {"holds": True, "n": 7, **shown}}
    assert "-0.0," not in text
    with pytest.raises(ValueError, match="not JSON compliant"):
        runtime.write_metrics(tmp_path / "nan.json", {"a": {"b": float("nan")}})
    assert left_over(tmp_path) == ["m.json"]


def test_csv_has_six_digits_and_unix_lines(tmp_path):
    runtime.write_csv(tmp_path / "t.csv", pd.DataFrame({"a": ["x", "y"], "b": [1 / 3, np.nan]}))
    assert (tmp_path / "t.csv").read_bytes() == b"a,b\nx,0.333333\ny,\n"


def test_arrays_have_the_same_bytes_twice(tmp_path, monkeypatch):
    cell = {"changes": np.random.default_rng(0).random((3, 4)), "names": np.array(["a", "bc"]), "n": np.array(7)}
    runtime.write_arrays(tmp_path / "one.npz", **cell)
    later = time.time() + 10_000  # a zip archive holds times
    monkeypatch.setattr(time, "time", lambda: later)
    runtime.write_arrays(tmp_path / "other.npz", **cell)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()
    with np.load(tmp_path / "one.npz") as loaded:
        assert set(loaded) == set(cell)
        for name, array in cell.items():
            np.testing.assert_array_equal(loaded[name], array)


def write_file(path, text):
    path.write_text(text)


def write_folder(path, text):
    path.mkdir()
    (path / "inner").write_text(text)


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_failure_leaves_nothing_behind(tmp_path, write):
    with pytest.raises(KeyboardInterrupt), runtime.atomic(tmp_path / "out.x") as partial:
        write(partial, "half")
        raise KeyboardInterrupt
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_failure_keeps_what_was_there(tmp_path, write):
    with runtime.atomic(tmp_path / "out.x") as partial:
        write(partial, "old")
    before = left_over(tmp_path)
    with pytest.raises(ValueError), runtime.atomic(tmp_path / "out.x") as partial:
        write(partial, "half")
        raise ValueError
    assert left_over(tmp_path) == before
    read = tmp_path / "out.x"
    assert (read / "inner" if read.is_dir() else read).read_text() == "old"


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, write):
    """And what a running one has, or another output's, is not."""
    code = "import os; from cxlib import runtime\nwith runtime.atomic('out.x') as partial: print(partial); os._exit(1)"
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    left = killed.stdout.strip()
    running = left.replace(left.split(".")[2], str(os.getppid()))
    others = [running, left.replace("out", "other"), left.replace(".x", ".y")]
    for name in (left, *others):
        write(tmp_path / name, "half")
    before = {name for name in left_over(tmp_path) if "inner" not in name}
    with runtime.atomic(tmp_path / "out.x") as partial:
        write(partial, "whole")
    after = {name for name in left_over(tmp_path) if "inner" not in name}
    assert after == before - {left} | {"out.x"} == {*others, "out.x"}


KILLED = """
import os, sys
from cxlib import runtime
left = int(sys.argv[1])
def hook(event, _arguments):
    global left
    if event in ("os.rename", "shutil.rmtree", "os.remove", "os.rmdir"):
        left -= 1
        if not left:
            os._exit(9)
with runtime.atomic("birds") as partial:
    partial.mkdir()
    for name in ("a", "b"):
        (partial / name).write_text("new")
    sys.addaudithook(hook)
"""


def test_a_kill_while_a_folder_is_replaced_leaves_no_half_of_it(tmp_path):
    """Before each step of it, one after the other: the old one, the new one, or none."""
    run, seen = [sys.executable, "-c", KILLED], []
    while not seen or seen[-1][0]:
        (tmp_path / "birds").mkdir(exist_ok=True)
        for name in ("a", "b"):
            (tmp_path / "birds" / name).write_text("old")
        killed = subprocess.run([*run, str(len(seen) + 1)], cwd=tmp_path)
        seen.append((killed.returncode, [path.read_text() for path in sorted(tmp_path.glob("birds/*"))]))
        assert seen[-1][1] or not (tmp_path / "birds").exists()
    assert {code for code, _ in seen[:-1]} == {9}
    assert [found for _, found in seen[:3]] == [["old"] * 2, [], ["new"] * 2]
    assert {tuple(found) for _, found in seen[3:]} == {("new", "new")}
    assert left_over(tmp_path) == ["birds", "birds/a", "birds/b"]


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_success_replaces_what_was_there(tmp_path, write):
    for text in ("old", "new"):
        with runtime.atomic(tmp_path / "out.x") as partial:
            write(partial, text)
            if write is write_folder:
                (partial / text).touch()
            assert partial.suffix == ".x"  # matplotlib and numpy choose a format by the suffix
    read = tmp_path / "out.x"
    if write is write_folder:
        assert left_over(tmp_path) == ["out.x", "out.x/inner", "out.x/new"]
    assert (read / "inner" if read.is_dir() else read).read_text() == "new"


def test_a_stage_removes_cells_that_are_no_longer_asked_for_and_the_library_none(tmp_path):
    for name in ("resnet18", "alexnet", "resnet50.a1_in1k"):
        runtime.write_arrays(tmp_path / f"{name}.npz", a=np.array([len(name)]))
    (tmp_path / "notes.txt").touch()
    before = left_over(tmp_path)
    for read in (runtime.read_cells, gathered):
        assert left_over(tmp_path) == before
        cells = read(tmp_path, ["resnet50.a1_in1k", "alexnet"])
        assert list(cells) == ["resnet50.a1_in1k", "alexnet"]
        assert cells["alexnet"]["a"] == 7
    assert left_over(tmp_path) == ["alexnet.npz", "notes.txt", "resnet50.a1_in1k.npz"]


def test_an_empty_list_of_cells_removes_none(tmp_path):
    runtime.write_arrays(tmp_path / "resnet18.npz", a=np.array([1]))
    with pytest.raises(ValueError, match=f"nothing is asked of {tmp_path}: name at least one network"):
        gathered(tmp_path, [])
    assert left_over(tmp_path) == ["resnet18.npz"]


DAMAGED = {
    "missing": None,
    "empty": b"",
    "text": b"network,change\n",
    "truncated": ...,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_missing_or_damaged_cell_is_named_and_nothing_is_removed(tmp_path, damage):
    for name in ("resnet18", "googlenet", "alexnet"):
        runtime.write_arrays(tmp_path / f"{name}.npz", a=np.random.default_rng(0).random(1000))
    alexnet = tmp_path / "alexnet.npz"
    content = alexnet.read_bytes()[:-600] if DAMAGED[damage] is ... else DAMAGED[damage]
    alexnet.unlink() if content is None else alexnet.write_bytes(content)
    before = left_over(tmp_path)
    with pytest.raises(ValueError, match=r"alexnet\.npz"):
        gathered(tmp_path, ["resnet18", "alexnet"])
    assert left_over(tmp_path) == before


def test_code_in_a_file_of_arrays_is_never_run(tmp_path, trap):
    np.savez(tmp_path / "resnet18.npz", changes=np.array([trap], dtype=object))
    with pytest.raises(ValueError, match=r"resnet18\.npz is not an NPZ file, or is damaged"):
        runtime.read_arrays(tmp_path / "resnet18.npz")
    (tmp_path / "alexnet.npz").write_bytes(pickle.dumps(trap))
    with pytest.raises(ValueError, match=r"alexnet\.npz is not an NPZ file, or is damaged"):
        runtime.read_arrays(tmp_path / "alexnet.npz")
    assert not trap.has_sprung()


def test_a_file_of_arrays_larger_than_any_memory_is_damaged(tmp_path):
    header = io.BytesIO()
    of = {"descr": "<f8", "fortran_order": False, "shape": (10**15,)}
    np.lib.format.write_array_header_1_0(header, of)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as file:
        file.writestr("a.npy", header.getvalue())
    with pytest.raises(ValueError, match=r"bomb\.npz is not an NPZ file, or is damaged"):
        runtime.read_arrays(tmp_path / "bomb.npz")


def test_a_file_with_any_bit_turned_around_is_damaged_or_what_it_was(tmp_path):
    path, cell = tmp_path / "resnet18.npz", {"a": np.arange(3), "b": np.array("x")}
    runtime.write_arrays(path, **cell)
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            read = runtime.read_arrays(path)
        except (ValueError, OSError):
            continue
        assert all(np.array_equal(read[name], cell[name]) for name in read)


def test_an_array_that_a_file_does_not_hold_is_named_with_it(tmp_path):
    runtime.write_arrays(tmp_path / "resnet18.npz", changes=np.array([1]))
    with pytest.raises(ValueError, match=r"resnet18\.npz holds no array 'zero_share'"):
        runtime.read_arrays(tmp_path / "resnet18.npz")["zero_share"]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_freed_tensors_stay_with_the_process():
    """Pages that the system gives a second time are page faults: thousands a pass where nothing is kept."""
    code = """
import resource, sys, torch
from cxlib import runtime
if sys.argv[1] == "kept":
    runtime.device("cpu")
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        [torch.zeros(4_000_000).add_(1) for _ in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "given_back")
    )
    assert kept < given_back / 10
