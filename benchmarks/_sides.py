"""What the benchmarks share: sides timed in turn, peak memory of a process of each side's own."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple


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
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20
