#!/usr/bin/env -S python -S
"""Stages that begin warm: forked from a process that has imported what most of them import, which takes seconds.

DVC hands each command to `$SHELL`, and inside `warm` this file is that shell. It passes `python stages/…` on to a
server, which forks; every other command is for `/bin/sh`. What a stage computes is the same: none of the pipeline's own
code is imported before the fork.
"""

import atexit
import gc
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

IMPORTED = ("torch", "timm", "pandas", "scipy.stats", "matplotlib.pyplot", "click", "tqdm", "yaml")
#: Names the server's socket.
ADDRESS = "CXLIB_WARM"
_KIND = socket.AF_UNIX, socket.SOCK_SEQPACKET
_LONGEST = 2**20  # bytes of a command with its environment: Linux allows no more than twice this


@contextmanager
def warm() -> Iterator[None]:
    """Inside, what DVC runs begins warm. Needs Linux; elsewhere everything begins as it always does."""
    if sys.platform != "linux":
        yield
        return
    before = os.environ.get("SHELL")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # not $TMPDIR: an address has room for 107 bytes
        address = str(Path(folder, "socket"))
        with socket.socket(*_KIND) as listener:  # here, so that whoever asks waits while the server imports
            listener.bind(address)
            listener.listen()
            number = listener.fileno()
            server = subprocess.Popen([sys.executable, __file__, str(number)], pass_fds=[number])
        with server:
            os.environ |= {"SHELL": __file__, ADDRESS: address}
            try:
                yield
            finally:
                server.terminate()
                del os.environ[ADDRESS]
                os.environ |= {"SHELL": before or "/bin/sh"}


def ask(command: str) -> None:
    """Have a shell command run, by the server where it is a stage of this pipeline, and end as it ended."""
    words = shlex.split(command)
    is_plain = not set(command) & set("|&;<>()$`\\\n*?[")
    if words[:1] == ["python"] and len(words) > 1 and words[1].startswith("stages/") and is_plain:
        with socket.socket(*_KIND) as server:
            try:
                server.connect(os.environ[ADDRESS])
                asked = json.dumps([words[1:], dict(os.environ), str(Path.cwd())])
                socket.send_fds(server, [asked.encode()], [0, 1, 2])
            except OSError:
                pass  # there is none: begin cold
            else:
                sys.exit(int(server.recv(16) or 1))
    os.execv("/bin/sh", ["sh", "-c", command])


def serve(number: int) -> list[str]:
    """Import, then answer whoever asks; returns, in a process of its own, the words of each stage that is to run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=number) as listener:
        for name in IMPORTED:
            import_module(name)
        gc.freeze()  # what is imported stays: no stage looks through it for garbage, nor copies the pages it lies on
        while True:
            connection, _ = listener.accept()
            if not os.fork():
                break
            connection.close()
    return _answered(connection)


def _answered(connection: socket.socket) -> list[str]:
    """Fork once more: the child is to run what is asked for; the parent tells how that ended, or ends it for nobody."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked, files, _, _ = socket.recv_fds(connection, _LONGEST, 3)
    if child := os.fork():
        ended = os.pidfd_open(child)
        if ended not in select.select([ended, connection], [], [])[0]:
            os.kill(child, signal.SIGTERM)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with connection, suppress(BrokenPipeError):
            connection.sendall(str(code if code >= 0 else 128 - code).encode())  # as a shell says it
        os._exit(0)
    connection.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    words, environment, folder = json.loads(asked)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ |= environment
    return words


def run(words: list[str]) -> None:
    """Run a script to its end, and then leave at once: to take down what was imported would last a second."""
    sys.argv = words
    sys.path[0] = str(Path(words[0]).resolve().parent)
    code: int | str | None = None
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    waited_for = [thread for thread in threading.enumerate()[1:] if not thread.daemon]
    if isinstance(code, str) or waited_for:
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    if sys.argv[1] == "-c":
        ask(sys.argv[2])
    run(serve(int(sys.argv[1])))
