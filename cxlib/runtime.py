"""The edge of the library: names, device, precision, random state, progress and atomic files."""

import ctypes
import errno
import glob
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

T = TypeVar("T")

#: Precisions in which passes may be computed, by torch's names; bfloat16 has float32's range.
PRECISIONS = ("float32", "bfloat16")
#: Parameters of glibc's mallopt.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raise a ValueError that lists the known names when this one is not among them."""
    known = list(known)
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}: choose from {', '.join(known)}")


@dataclass(frozen=True)
class Machine:
    """What computes. Nothing of it belongs to an experiment, for it changes no result beyond rounding.

    Attributes:
        device: auto, cpu, or cuda; `auto` takes a GPU when there is one.
        threads: of a process on a CPU; 0: its share of the cores.
        processes: how many share the batches of a stage on this machine.
        workers: processes that decode images ahead of each of them; -1: one for four cores, four at most.
        batch_size: images evaluated at once; 0: 16 on a CPU, 64 on a GPU.
        nodes: machines that share the batches, each with `processes` of them.
        rendezvous: HOST:PORT of one of the nodes, where they meet.
        spawn: a command that runs what is behind it once on every node, such as `srun`.
    """

    device: str = "auto"
    threads: int = 0
    processes: int = 1
    workers: int = -1
    batch_size: int = 0
    nodes: int = 1
    rendezvous: str = ""
    spawn: str = ""


def machine(environment: Mapping[str, str]) -> Machine:
    """The machine that `CXLIB_DEVICE`, `CXLIB_THREADS`, … describe, with what they leave open found out.

    Raises:
        ValueError: a number is none or too small, or there is no such device.
    """
    import torch

    given: dict[str, Any] = {}
    for field in fields(Machine):
        name, default = f"CXLIB_{field.name.upper()}", field.default
        value = environment.get(name, default)
        if isinstance(default, int) and isinstance(value, str):
            if not value.removeprefix("-").isdecimal() or int(value) < default:
                raise ValueError(f"{name} must be a whole number of at least {default}, got {value!r}")
            value = int(value)
        given[field.name] = value
    asked = Machine(**given)
    if asked.nodes > 1 and not asked.rendezvous:
        raise ValueError("CXLIB_NODES needs CXLIB_RENDEZVOUS, the HOST:PORT of one of them")
    name = asked.device if asked.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=torch.device(name)).item()  # `meta` has shapes only
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"device {name!r} is not available here ({str(error).splitlines()[0]})") from error
    on_cpu, cores = torch.device(name).type == "cpu", len(os.sched_getaffinity(0)) // asked.processes
    return replace(
        asked,
        device=name,
        threads=asked.threads or max(1, cores),
        # Two cores that compute would be slowed down by a third process: mini by a fifth.
        workers=asked.workers if asked.workers >= 0 else min(4, cores // 4),
        batch_size=asked.batch_size or (16 if on_cpu else 64),
    )


def device(name: str = "auto", threads: int | None = None) -> Any:
    """The torch device of this name, `auto` taking a GPU when there is one.

    For a process of its own: on a GPU convolutions become deterministic, and TF32 is switched off. On a CPU sums
    depend on the number of `threads` in their last bits; None leaves PyTorch's own; freed memory is kept.

    Raises:
        ValueError: there is no such device.
    """
    import torch

    chosen = torch.device(machine({"CXLIB_DEVICE": name}).device)
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    if chosen.type == "cpu":
        _keep_freed_memory()
    return chosen


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed: the tensors of the next pass are as large.

    By default every freed tensor goes back to the system, which zeroes each page of the next one anew: up to a third of
    the time of passes on a CPU. Where there is no glibc nothing happens.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for parameter, size in ((M_TRIM_THRESHOLD, 1 << 30), (M_TOP_PAD, 1 << 28), (M_MMAP_THRESHOLD, 1 << 25)):
            mallopt(parameter, size)


def computed_by(device: Any) -> str:
    """What computes on a torch device, in words: the processor's kind and torch's version."""
    import torch

    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"{device.type} {kind}, torch {torch.__version__}"


def one_line(error: Exception) -> str:
    """What an error says; a path in it may hold line ends."""
    return " ".join(str(error).splitlines())


def is_full_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory is too small: a GPU's has a class of its own, a CPU's only words."""
    import torch

    refused = isinstance(error, RuntimeError) and "DefaultCPUAllocator: " in str(error)
    return refused or isinstance(error, torch.OutOfMemoryError | MemoryError)


@contextmanager
def told_of_full_memory() -> Iterator[None]:
    """Inside, a device whose memory is too small is a ValueError of one line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_full_memory(error):
            raise
        reason = str(error).partition("\n")[0].rpartition("DefaultCPUAllocator: ")[2].partition(". GPU")[0]
        reason = reason.partition(". Error code")[0].removesuffix(".") or "no room for one more object"
        raise ValueError(f"the device's memory is too small ({reason}): take smaller images or the CPU") from error


@contextmanager
def full_float32() -> Iterator[None]:
    """Switch TF32 and autocast off inside, for they are coarser than the perturbation's steps; restored behind."""
    import torch

    cudnn: Any = torch.backends.cudnn
    backends = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
    before = [backend.fp32_precision for backend in backends]
    kinds = {"cpu", getattr(torch.accelerator.current_accelerator(), "type", "cpu")}
    cast = [kind for kind in kinds if torch.is_autocast_enabled(kind)]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        for kind in cast:
            torch.set_autocast_enabled(kind, False)
        yield
    finally:
        for backend, precision in zip(backends, before):
            backend.fp32_precision = precision
        for kind in cast:
            torch.set_autocast_enabled(kind, True)


def child(seed: int, *path: int) -> int:
    """A seed of 63 bits for the stream at `path` below a seed, without collisions between neighbours."""
    return int(np.random.SeedSequence(seed, spawn_key=path).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def seeded(seed: int, *path: int, device: Any = "cpu") -> Iterator[None]:
    """Draws of torch on the CPU, and on this device, come from this seed alone inside; the caller's state is restored.

    For library code that takes no generator (layer initialisation, torchvision's transforms, dropout). Each `path` is a
    stream of its own, as of a `child` of the seed, and so is the seed without one.
    """
    import torch

    gpus = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        number = child(seed, *path)
        torch.default_generator.manual_seed(number)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(number)
        yield


def progress(items: Iterable[T], what: str, unit: str, total: int | None = None, shown: bool = True) -> Any:
    """A progress bar with rate and time left on standard error."""
    from tqdm import tqdm

    # In a log file a line every ten seconds is enough.
    interval = 0.5 if os.isatty(2) else 10
    return tqdm(items, desc=what, unit=unit, total=total, mininterval=interval, dynamic_ncols=True, disable=not shown)


def byte_progress(what: str, total: int | None, done: int = 0) -> Any:
    """A progress bar in bytes, with rate and time left, that `update(n)` moves on."""
    from tqdm import tqdm

    interval = 0.5 if os.isatty(2) else 10
    return tqdm(
        desc=what, unit="B", unit_scale=True, total=total, initial=done, mininterval=interval, dynamic_ncols=True
    )


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it on success and removed on failure: a file or a folder.

    Whenever the process is killed, there is the old one, the new one or none. What killed ones left is removed first.

    Raises:
        OSError: nothing can be written there, as on a full disk; it names the path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary, aside = (path.with_name(f".{path.stem}.{os.getpid()}{s}.partial{path.suffix}") for s in ("", ".old"))
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir() and not path.is_symlink():
            path.replace(aside)  # to remove a folder takes time
        temporary.replace(path)
        _remove(aside)
    except OSError as error:
        full = error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
        if full or error.filename == str(temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(OSError):  # where nothing can be written, nothing is left
            _remove(temporary)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files and folders that processes left beside `path` when they were killed in `atomic`."""
    for leftover in path.parent.glob(f".{glob.escape(path.stem)}.*.partial{glob.escape(path.suffix)}"):
        pid = leftover.name.removeprefix(f".{path.stem}.").partition(".")[0]
        if pid.isdecimal() and not (int(pid) != os.getpid() and _is_running(int(pid))):
            _remove(leftover)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """JSON with sorted keys and six significant digits; a NaN is an error, for it would break a metrics file."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(_rounded(content), indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_metrics(path: str | Path, content: dict[str, Any]) -> None:
    """JSON of headlines: as `write_json`, and nothing smaller than 1e-5."""
    write_json(path, _rounded(content, 5))


def write_csv(path: str | Path, table: Any) -> None:
    """A pandas table as CSV: no index, six significant digits, newline line ends."""
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")


def write_arrays(path: str | Path, **arrays: ArrayLike) -> None:
    """Named arrays, or what numpy makes one of, as one compressed NPZ file; the same arrays give the same bytes."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


class _Arrays(dict[str, np.ndarray]):
    """Named arrays; one that is not there is an error that names the file."""

    def __init__(self, path: str | Path, arrays: Mapping[str, np.ndarray]):
        super().__init__(arrays)
        self._path = path

    def __missing__(self, name: str) -> np.ndarray:
        raise ValueError(f"{self._path} holds no array {name!r}: run the stage that writes it again")


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file.

    Raises:
        ValueError: it holds something else.
        OSError: it cannot be opened.
    """
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file ({error}): replace it") from error


def read_arrays(path: str | Path) -> Mapping[str, np.ndarray]:
    """The named arrays of an NPZ file.

    Raises:
        ValueError: the file is damaged; and later, when an array is asked for that it does not hold.
        OSError: the file cannot be opened.
    """
    try:
        with np.load(path) as file:
            return _Arrays(path, file)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{path} is not an NPZ file, or is damaged: run the stage that writes it again") from error


def read_cells(folder: str | Path, names: Iterable[str]) -> dict[str, Mapping[str, np.ndarray]]:
    """The arrays ``<name>.npz`` of every cell of a grid, by name.

    Raises:
        ValueError: none is asked for, or one that is missing or damaged.
    """
    names = list(names)
    if not names:
        raise ValueError(f"nothing is asked of {folder}: name at least one network")
    for name in names:
        if not Path(folder, f"{name}.npz").is_file():
            raise ValueError(f"{folder} lacks {name}.npz: run the stage that writes it")
    return {name: read_arrays(Path(folder, f"{name}.npz")) for name in names}


def packaged(distribution: str) -> list[Path]:
    """The files of an installed Python package, by its name on the index; none where it is not installed."""
    try:
        return [Path(str(file.locate())) for file in metadata.files(distribution) or []]
    except metadata.PackageNotFoundError:
        return []


def _rounded(content: Any, decimals: int | None = None) -> Any:
    if isinstance(content, dict):
        return {key: _rounded(value, decimals) for key, value in content.items()}
    if isinstance(content, float | np.floating):
        return float(f"{content:.6g}") if decimals is None else round(float(content), decimals) + 0.0  # no -0.0
    if isinstance(content, np.integer | np.bool_):
        return content.item()
    return content
