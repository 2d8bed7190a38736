"""Command lines that are killed: `python tests/kills.py COMMANDS.json SEEN.json` runs each of them many times.

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
import dvc.cli
import dvclive  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import pandas  # noqa: F401
import scipy.stats  # noqa: F401
import timm  # noqa: F401
import torch
import torchvision  # noqa: F401
import yaml
from tqdm import tqdm

SIGNALS = (signal.SIGKILL, signal.SIGTERM)


def start(cmd):
    """The process id of a command line at work, in a group of its own: `python SCRIPT …`, or `dvc …`."""
    if pid := os.fork():
        os.setpgid(pid, pid)
        return pid
    os.setpgid(0, 0)
    # tqdm's own lock is shared among forks, and one that is killed while it holds it would stop all the others.
    tqdm.set_lock(threading.RLock())
    program, *words = shlex.split(cmd)
    status = 1
    try:
        if program == "dvc":
            status = dvc.cli.main(words)
        else:
            sys.argv, sys.path[0] = words, str(Path(words[0]).absolute().parent)
            runpy.run_path(words[0], run_name="__main__")
            status = 0
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
    """Files of a command that was killed which are no files of the whole result; but logs grow while it works."""
    outs = [out for out in outs if not out.startswith(("dvclive", "dvc.lock"))]
    found = contents(outs)
    # A folder is there with all its files, or not at all.
    asked = [name for name in whole if any(name.startswith(f"{out}/") and Path(out).exists() for out in outs)]
    return [name for name in {*found, *asked} if found.get(name) != whole.get(name)]


def remove(places):
    """Remove files and folders."""
    for place in map(Path, places):
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


def mended():
    """The files that docs/machine.md says to remove, where DVC was killed while it wrote them, are gone."""
    halves = []
    for path, loaded in ((Path(".dvc/tmp/rwlock"), json.loads), (Path("dvc.lock"), yaml.safe_load)):
        try:
            whole = loaded(path.read_text()) if path.exists() else {}
        except (ValueError, yaml.YAMLError):
            whole = None
        if whole is None:
            path.unlink()
            halves.append(path.name)
    return halves


def killed(cmd, outs, made, kills, draw):
    """Run a command to its end, then kill it that many times, then run it to its end: what was seen of it.

    DVC removes the outputs of what it runs, by hand they stay: here `made` is removed by turns. So is what is killed:
    the process alone, as by its number, or with what it started, as by a terminal that is closed.
    """
    begun = time.monotonic()
    status = end(start(cmd))
    took, whole = time.monotonic() - begun, contents(outs)
    seen = {"status": status, "took": took, "files": len(whole), "ends": [], "kept": [], "torn": [], "halves": []}
    groups = []
    for number in range(kills):
        if number % 2:
            remove(made)
        groups.append(start(cmd))
        time.sleep(took * draw.uniform(0.1, 0.9))
        (os.kill if number // 2 % 2 else os.killpg)(groups[-1], SIGNALS[number % 2])
        seen["ends"].append(end(groups[-1]))
        seen["kept"].append(len(unfinished()))
        seen["torn"] += torn(outs, whole)
        seen["halves"] += mended()
    while any(map(is_running, groups)):
        time.sleep(0.1)
    remove(made)
    return seen | {"again": end(start(cmd)), "same": contents(outs) == whole, "left": unfinished()}


def is_running(group):
    """Whether a process of a group outlived the one that started it."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def main(commands, out):
    """Run command lines one after the other, and write what was seen of each.

    By their name they are given with the folder to work in, their outputs, what is removed before a new run, and how
    often they are killed.
    """
    torch.set_num_threads(1)
    seen = {}
    for name, (folder, cmd, outs, made, kills) in json.loads(Path(commands).read_text()).items():
        os.chdir(folder)
        seen[name] = killed(cmd, outs, made, kills, random.Random(name))
    Path(out).write_text(json.dumps(seen, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
