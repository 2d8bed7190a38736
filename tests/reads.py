"""What command lines read: `python tests/reads.py COMMANDS.json READS.json` runs each in a process of its own.

Third parties are imported once, before the processes fork; the repository's code is imported, and seen, in each.
"""

import json
import os
import runpy
import shlex
import sys
from pathlib import Path
from typing import ClassVar

# What takes long to import.
import dvclive  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import pandas  # noqa: F401
import scipy.stats  # noqa: F401
import timm  # noqa: F401
import torch  # noqa: F401
import torchvision  # noqa: F401
import tqdm  # noqa: F401


class Environment(type(os.environ)):
    """Environment variables that say which of them the code of the current folder asks for."""

    asked: ClassVar[set[str]] = set()

    def __getitem__(self, name):
        frame = sys._getframe(1)
        while Path(frame.f_code.co_filename).parent == Path(os.__file__).parent or "_collections_abc" in str(frame):
            frame = frame.f_back
        if frame.f_code.co_filename.startswith(str(Path.cwd())):
            self.asked.add(name)
        return super().__getitem__(name)


def traced(cmd, out):
    """Run a command line in this process; write what it opened, listed and imported below the current folder to out."""
    _, script, *words = shlex.split(cmd)
    root, read, listed = Path.cwd(), set(), set()
    kinds = {"open": read, "os.listdir": listed, "os.scandir": listed}

    def hook(event, arguments):
        if event not in kinds or not isinstance(arguments[0], str | bytes | os.PathLike):
            return  # an open file, by its number
        if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        path = Path(os.path.abspath(os.fsdecode(arguments[0])))  # noqa: PTH100 - what is asked for, not where it lies
        if path.is_relative_to(root) and (event != "open" or path.is_file()):
            kinds[event].add(path.relative_to(root).as_posix())

    sys.argv, sys.path[0] = [script, *words], str((root / script).parent)
    os.environ.__class__ = Environment
    sys.addaudithook(hook)
    status = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    loaded = {file for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
    code = {Path(file).relative_to(root).as_posix() for file in loaded if Path(file).is_relative_to(root)}
    found = {"read": read, "listed": listed, "code": code | {script}, "environment": Environment.asked}
    out.write_text(json.dumps({"status": status} | {name: sorted(values) for name, values in found.items()}))


def main(commands, out):
    """Run named command lines one after the other, and write what each of them read."""
    reads, one = {}, Path(f"{out}.one")
    for name, cmd in json.loads(Path(commands).read_text()).items():
        if (child := os.fork()) == 0:
            traced(cmd, one)
            sys.stdout.flush()
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{name} died")
        reads[name] = json.loads(one.read_text())
    Path(out).write_text(json.dumps(reads))


if __name__ == "__main__":
    main(*sys.argv[1:])
