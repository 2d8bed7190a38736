"""One run of a long computation: the processes that share its batches, and what is left of it after a kill.

Batches are fixed by their size alone, so that any number of ranks, and any number of interruptions, give the same
numbers: rank r of W takes batches r, r + W, …, every finished batch lies in a folder of the run's own, and rank 0
gathers all of them in order.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from cxlib import runtime

T = TypeVar("T")

#: What is computed for one batch: named arrays.
Part = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that torchrun started together.

    Attributes:
        rank: in [0, size); rank 0 alone writes results.
        size: how many processes there are; 1 without torchrun.
        local: place among those of this machine, hence the GPU.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    def gather(self, content: Any) -> list[Any] | None:
        """What every rank passed, by rank, on rank 0; None on the others. All ranks must call it."""
        if self.size == 1:
            return [content]
        from torch import distributed

        gathered: list[Any] | None = [None] * self.size if self.rank == 0 else None
        distributed.gather_object(content, gathered)
        return gathered

    def broadcast(self, content: Any) -> Any:
        """What rank 0 passed, on every rank. All ranks must call it."""
        if self.size == 1:
            return content
        from torch import distributed

        box = [content]
        distributed.broadcast_object_list(box)
        return box[0]

    def add(self, tensors: Sequence[Any]) -> None:
        """Replace tensors of one kind by their sums over the ranks, in place. All ranks must call it."""
        if self.size == 1:
            return
        import torch
        from torch import distributed

        together = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(together)
        for tensor, total in zip(tensors, together.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(total.view_as(tensor))

    def barrier(self) -> None:
        """Wait for all the others."""
        if self.size > 1:
            from torch import distributed

            distributed.barrier()


def is_rank() -> bool:
    """Whether torchrun's launcher started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that torchrun started with this one, if it did; leave them at the end."""
    if not is_rank():
        yield Ranks()
        return
    import torch
    from torch import distributed

    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local % torch.cuda.device_count())
    # Objects travel over gloo; gradients on a GPU over nccl.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Ranks(rank, size, local)
    finally:
        distributed.destroy_process_group()


def fingerprint(options: Mapping[str, Any], files: Iterable[str | Path], values: Iterable[ArrayLike] = ()) -> str:
    """What a run's results depend on, as 16 hex digits: options, files, values, this package's code, and versions.

    Everything by content, whatever its time stamp says: 6 GB of photographs take seconds, or as long as the disk needs
    to give them, where the run that goes on takes hours.

    Args:
        options: of the run, JSON's types only.
        files: that it reads, and scripts that run it; of this package all modules that are loaded count.
        values: that it found out beforehand, such as labels.

    Raises:
        OSError: a file does not exist.
    """
    loaded = sorted(name for name in sys.modules if name.split(".")[0] == __package__)
    code = [file for name in loaded if (file := getattr(sys.modules[name], "__file__", None))]
    versions = {name: metadata.version(name) for name in ("numpy", "pillow", "timm", "torch", "torchvision")}
    digest = hashlib.sha256(json.dumps([options, versions], sort_keys=True).encode())
    for path in map(Path, (*code, *files)):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    for array in map(np.asarray, values):
        digest.update(f"{array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def workplace(folder: str | Path, ranks: Ranks) -> Iterator[Path]:
    """The folder of one run's unfinished work: kept when the run fails or is killed, removed when it succeeds.

    Rank 0 locks it, so that a process that outlived its parent and its successor do not work at the same files.

    Raises:
        ValueError: another process is at work there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if ranks.rank:
        yield folder
        ranks.barrier()
        return
    path = folder / "lock"
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise ValueError(f"process {lock.read()} is at work on the same results: wait for it, or kill it") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield folder
            ranks.barrier()
            shutil.rmtree(folder)
        finally:
            # Where nothing is kept, nothing is left: neither the folder nor those that were made for it.
            path.unlink(missing_ok=True)
            folder.mkdir(exist_ok=True)
            with suppress(OSError):
                os.removedirs(folder)


def prefetched(load: Callable[[Any], T], items: Sequence[Any], workers: int) -> Iterator[T]:
    """`load(item)` of each item, in order, by processes that work ahead of the caller; without workers on the way.

    Raises:
        ValueError: as `load`, wherever it ran.
    """
    import torch
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        _Items(load, items),  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=min(workers, len(items)),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # of the workers' seeds, which nothing uses
    )
    try:
        yield from loader
    except ValueError as error:  # without the worker's traceback
        raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from error


@dataclass(frozen=True)
class _Items:
    """What torch's loader asks of a data set."""

    load: Callable[[Any], Any]
    items: Sequence[Any]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Any:
        return self.load(self.items[place])


def _as_it_is(loaded: Any) -> Any:
    return loaded


def map_batches(
    load: Callable[[Sequence[int]], Any],
    compute: Callable[[Sequence[int], Any], Part],
    indices: Sequence[int],
    batch_size: int,
    ranks: Ranks,
    folder: Path,
    what: str,
    workers: int = 0,
) -> list[Part] | None:
    """`compute(batch, load(batch))` for every batch of the indices, once, whatever the number of ranks and restarts.

    Where the device's memory is too small for a batch, this and the next ones are computed in halves.

    Args:
        load: reads a batch of the indices, in a process of its own where there are workers: what has an entry an
            index, or a tuple of such.
        compute: from a batch of the indices and what was loaded to named arrays that can be joined, an entry an index.
        indices: of the samples.
        batch_size: indices in a batch; the last may have fewer.
        ranks: the processes that share the batches.
        folder: the run's `workplace`, where each finished batch is kept; one that is damaged is computed anew.
        what: name of the progress bar, which rank 0 shows.
        workers: processes that load ahead; neither results nor their order depend on them.

    Returns:
        all results in the batches' order on rank 0, None on the others.

    Raises:
        ValueError: the device's memory is too small for one image.
    """
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    mine = range(ranks.rank, len(batches), ranks.size)
    paths = {number: folder / f"{number:06}.npz" for number in mine}
    parts = {number: part for number, path in paths.items() if (part := _kept(path))}
    todo = [number for number in mine if number not in parts]
    loaded = prefetched(load, [batches[number] for number in todo], workers)
    fitting = Fitting(compute, batch_size)
    with runtime.progress((), what, "image", sum(len(batches[number]) for number in mine), ranks.rank == 0) as bar:
        bar.update(sum(len(batches[number]) for number in parts))
        for number in todo:
            runtime.write_arrays(paths[number], **fitting(batches[number], next(loaded)))
            parts[number] = dict(runtime.read_arrays(paths[number]))
            bar.update(len(batches[number]))
    gathered = ranks.gather(parts)
    if gathered is None:
        return None
    together = {number: part for parts in gathered for number, part in parts.items()}
    return [together[number] for number in range(len(batches))]


class Fitting:
    """A computation on as many images at once as the device's memory holds: `size`, and half of it once it does not.

    `compute` and what it is called with are those of `map_batches`; a batch may have more than `size` images.
    """

    def __init__(self, compute: Callable[[Sequence[int], Any], Part], size: int):
        self.compute, self.size = compute, size

    def __call__(self, batch: Sequence[int], loaded: Any) -> Part:
        """The results of a batch, joined where it was too large.

        Raises:
            RuntimeError, MemoryError: one image is too many, see `runtime.is_full_memory`.
        """
        parts: list[Part] = []
        done = 0
        while done < len(batch):
            now = slice(done, done + self.size)
            part = self._tried(batch[now], tuple(one[now] for one in loaded) if type(loaded) is tuple else loaded[now])
            if part is not None:
                parts.append(part)
                done += self.size
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _tried(self, batch: Sequence[int], loaded: Any) -> Part | None:
        """The results of some images; None, and half the size from now on, where they were too many."""
        import torch
        from tqdm import tqdm

        try:
            return self.compute(batch, loaded)
        except (RuntimeError, MemoryError) as error:
            if len(batch) == 1 or not runtime.is_full_memory(error):
                raise
        # Here the error is gone, and with it what its traceback held.
        torch.cuda.empty_cache()
        self.size = len(batch) // 2
        warning = f"Warning: {len(batch)} images at once are too many for the device's memory: {self.size} from now on"
        tqdm.write(warning, sys.stderr)
        return None


def _kept(path: Path) -> Part | None:
    """A batch that was finished earlier; None where there is none, or a damaged one."""
    try:
        return dict(runtime.read_arrays(path))
    except (ValueError, OSError):
        return None
