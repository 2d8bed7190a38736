"""What the benchmarks share: sides timed in turn, memory, and what computes."""

import ctypes
import gc
import importlib.metadata
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from torch import nn


class Timing(NamedTuple):
    """Seconds of each run of one side, by the clock and of the processor."""

    wall: list[float]
    processor: list[float]


def interleaved(sides: Mapping[str, Callable[[], Any]], runs: int) -> tuple[dict[str, Any], dict[str, Timing]]:
    """Run the sides in turn, A B A B …: what each returned last, and its timings."""
    results: dict[str, Any] = {}
    timings = {side: Timing([], []) for side in sides}
    for _ in range(runs):
        for side, run in sides.items():
            start, busy = time.perf_counter(), time.process_time()
            results[side] = run()
            timings[side].wall.append(time.perf_counter() - start)
            timings[side].processor.append(time.process_time() - busy)
    return results, timings


def ratios(slow: Timing, fast: Timing) -> tuple[float, float]:
    """Ratio of the medians, by the clock and of the processor: the latter holds on a machine that others use, too."""
    return median(slow.wall) / median(fast.wall), median(slow.processor) / median(fast.processor)


def peak_of(script: str, *arguments: str) -> float:
    """Peak memory in GiB that this command of a benchmark prints of itself by `own_peak`."""
    return float(
        subprocess.run([sys.executable, script, *arguments], check=True, capture_output=True, text=True).stdout
    )


def own_peak() -> float:
    """Peak resident memory of this process in GiB, which Linux keeps; getrusage's begins with the parent's."""
    return status("VmHWM") / 2**20


def peak(call: Callable[[], Any]) -> float:
    """The most memory in MiB that a call takes beyond what is in use: Linux's high-water mark, set back before."""
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")
    call()
    return status("VmHWM") / 1024 - before


def resident() -> float:
    """Memory in MiB that is in use: what is free goes back to the system first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return status("VmRSS") / 1024


def status(key: str) -> int:
    """An entry of this process's status, in kB."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def draw_batch_norms(network: nn.Module) -> None:
    """Draw means and biases of a network's batch norms: new ones have none, and let all images look alike."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.bias.normal_(0, 0.1)


def processor() -> str:
    """Its name."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else "unknown processor"


def versions(*packages: str) -> str:
    """Packages with their versions."""
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
