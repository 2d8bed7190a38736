"""Command lines that are killed: `python tests/kills.py COMMANDS.json SEEN.json KILLS` runs each of them many times.

Third parties are imported once, before the processes fork, so that a kill costs no more than what it interrupts.
"""

import json
import os
import random
import runpy
import shlex
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

# What takes long to import.
import dvclive  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import pandas  # noqa: F401
import scipy.stats  # noqa: F401
import timm  # noqa: F401
import torch  # noqa: F401
import torchvision  # noqa: F401
from tqdm import tqdm

SIGNALS = (signal.SIGKILL, signal.SIGTERM)


def start(cmd):
    """The process id of a command line at work."""
    if pid := os.fork():
        return pid
    # tqdm's own lock is shared among forks, and one that is killed while it holds it would stop all the others.
    tqdm.set_lock(threading.RLock())
    _, script, *words = shlex.split(cmd)
    sys.argv, sys.path[0] = [script, *words], str(Path(script).absolute().parent)
    status = 1
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.stdout.flush()
        os._exit(status)


def end(pid):
    """How a process ended, as `subprocess` says it: minus the signal's number."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def contents(places):
    """The bytes of files, and of those in folders."""
    files = [file for place in map(Path, places) for file in ([place] if place.is_file() else sorted(place.rglob("*")))]
    return {file.as_posix(): file.read_bytes() for file in files if file.is_file()}


def unfinished():
    """What is left of work that was not finished."""
    left = [path.as_posix() for path in Path().rglob(".*.partial*")]
    return left + [path.as_posix() for path in Path(".resume").rglob("*") if path.is_file()]


def torn(outs, whole):
    """Files of a command that was killed which are no files of the whole result; curves grow while a network learns."""
    found = contents(out for out in outs if not out.startswith("dvclive"))
    # A folder is there with all its files, or not at all.
    missing = [name for name in whole if any(name.startswith(f"{out}/") and Path(out).exists() for out in outs)]
    return [name for name in (*found, *missing) if not name.startswith("dvclive") and found.get(name) != whole.get(name)]


def remove(places):
    """Remove files and folders."""
    for place in map(Path, places):
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


def killed(cmd, outs, kills, draw):
    """Run a command to its end, then kill it that many times, then run it to its end: what was seen of it.

    DVC removes the outputs of what it runs, by hand they stay: here by turns.
    """
    begun = time.monotonic()
    status = end(start(cmd))
    took, whole = time.monotonic() - begun, contents(outs)
    seen = {"status": status, "took": took, "files": len(whole), "ends": [], "kept": [], "torn": []}
    for number in range(kills):
        if number % 2:
            remove(outs)
        pid = start(cmd)
        # Later than the first third, in which modules are loaded, two times of three.
        time.sleep(took * draw.uniform(0 if number % 3 == 2 else 0.3, 1))
        os.kill(pid, SIGNALS[number % 2])
        seen["ends"].append(end(pid))
        seen["kept"].append(len(unfinished()))
        seen["torn"] += torn(outs, whole)
    remove(outs)
    seen |= {"again": end(start(cmd)), "same": contents(outs) == whole, "left": unfinished()}
    return seen


def main(commands, out, kills):
    """Run named command lines, `{name: [command line, outputs]}`, one after the other; write what was seen of each."""
    torch.set_num_threads(1)
    seen = {}
    for name, (cmd, outs) in json.loads(Path(commands).read_text()).items():
        seen[name] = killed(cmd, outs, kills, random.Random(name))
    Path(out).write_text(json.dumps(seen, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
