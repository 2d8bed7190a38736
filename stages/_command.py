"""What all stage scripts share: options, one line for bad input, the machine, and several processes for one command."""

import logging
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import click
import yaml

from cxlib import runs, runtime

#: Where the machine's settings may stand, beside `CXLIB_DEVICE`, `CXLIB_PROCESSES`, …, which come before it.
MACHINE = Path("machine.yaml")
#: How often the launcher starts the processes of a stage again when one of them dies.
RESTARTS = 3
#: Names the file in which a process leaves the one line that says why no further try will do.
REASON = "CXLIB_REASON"


class Number(click.FloatRange):
    """A finite number in a range; click's own lets NaN through, which compares with nothing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read one number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


#: Kinds of whole numbers: at least one, and at least none; and of others: above zero, at least zero, and a share.
POSITIVE, COUNT = click.IntRange(min=1), click.IntRange(min=0)
SIZE, AMOUNT, SHARE = Number(min=0, min_open=True), Number(min=0), Number(min=0, max=1)


class Stage(click.Command):
    """A click command whose bad input ends in one line and exit code 1; options may be spelled as in params.yaml."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words; only the names of this command's options may have `_` in place of `-`."""
        known = {name for parameter in self.params for name in (*parameter.opts, *parameter.secondary_opts)}
        words = []
        for word in args:
            name, equals, value = word.partition("=")
            spelled = name.replace("_", "-")
            words.append(spelled + equals + value if spelled in known else word)
        return super().parse_args(ctx, words)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the stage; every option's value is known to be well-formed."""
        if runs.is_rank():
            # Every rank would do all the work and write the same files.
            raise click.ClickException(f"{ctx.info_name} is one process, torchrun started several: use python")
        try:
            with runtime.told_of_full_memory():
                return super().invoke(ctx)
        except (ValueError, OSError, FloatingPointError) as error:
            raise click.ClickException(runtime.one_line(error)) from error


class SharedStage(Stage):
    """A stage whose batches several processes, on one machine or more, may share."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the stage in this process, or in those that the machine's settings ask for."""
        try:
            machine = settings()
            if not runs.is_rank() and max(machine.processes, machine.nodes) > 1:
                return launch(machine)
            with runtime.told_of_full_memory():
                return click.Command.invoke(self, ctx)
        except (ValueError, OSError, FloatingPointError) as error:
            if runs.is_rank() and REASON in os.environ:
                # Whole, or not there: another rank may say the same, and be ended while it does.
                with runtime.atomic(os.environ[REASON]) as whole:
                    whole.write_text(runtime.one_line(error))
                os.kill(os.getppid(), signal.SIGTERM)
                sys.exit(1)
            raise click.ClickException(runtime.one_line(error)) from error


def settings() -> runtime.Machine:
    """The machine, by `machine.yaml` in the current folder and the environment.

    Raises:
        ValueError: a setting that there is not, or a value out of place.
    """
    try:
        given = yaml.safe_load(MACHINE.read_text()) if MACHINE.is_file() else None
    except yaml.YAMLError as error:
        raise ValueError(f"{MACHINE} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given or {}, dict):
        raise ValueError(f"{MACHINE} must hold lines of NAME: VALUE, got a {type(given).__name__}")
    for name, value in (given or {}).items():
        runtime.check_name(f"setting in {MACHINE}", name, [field.name for field in fields(runtime.Machine)])
        os.environ.setdefault(f"CXLIB_{name.upper()}", str(value))
    return runtime.machine(os.environ)


def launch(machine: runtime.Machine) -> None:
    """Run this very command on several processes, by torchrun's own launcher, which starts them again if one dies.

    Raises:
        ValueError: what a process found wrong.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if machine.nodes > 1 and machine.spawn:
        command = [*shlex.split(machine.spawn), sys.executable, *sys.argv]
        sys.exit(subprocess.run(command, env=os.environ | {"CXLIB_SPAWN": ""}).returncode)
    logging.disable(logging.WARNING)  # what the launcher says of its own doings
    # Every try has its own store: in a shared one processes find the addresses of those that died, and wait for them.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    alone = machine.nodes == 1
    config = LaunchConfig(
        min_nodes=machine.nodes,
        max_nodes=machine.nodes,
        nproc_per_node=machine.processes,
        run_id="cxlib",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0" if alone else machine.rendezvous,
        local_addr="127.0.0.1" if alone else None,
        max_restarts=RESTARTS,
        monitor_interval=0.2,
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ[REASON] = str(Path(folder, "reason"))
        try:
            elastic_launch(config, sys.executable)(*sys.argv)
        except (ChildFailedError, SignalException) as error:
            if Path(os.environ[REASON]).is_file():
                raise ValueError(Path(os.environ[REASON]).read_text()) from error
            if isinstance(error, SignalException):
                sys.exit(128 + error.sigval)
            raise ValueError(f"a process failed {RESTARTS + 1} times, see above; what was done is kept") from error


def gathered(folder: str, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """`runtime.read_cells`; then those cells of the folder that are not asked for are removed."""
    cells = runtime.read_cells(folder, names)
    keep_only(cells, folder, ".npz")
    return cells


def keep_only(names: Collection[str], folder: str, suffix: str) -> None:
    """Remove a folder's other files of the suffix.

    To DVC a folder is one dependency: what an earlier run left in it would make its stage stale.
    """
    for file in Path(folder).glob(f"*{suffix}"):
        if file.stem not in names:
            file.unlink()


def option(name: str, kind: Any = str, **more: Any) -> Any:
    """A required option: stages have no defaults of their own, params.yaml has them."""
    return click.option(name, type=kind, required=True, **more)


def _distinct(_context: click.Context, _option: click.Parameter, values: Sequence[Any]) -> Sequence[Any]:
    """The members of a list, none of which is given twice."""
    if twice := [value for value in values if values.count(value) > 1]:
        raise click.BadParameter(f"{twice[0]!r} is given twice.")
    return values


#: A required option that is given once for each member of a list; and one that is on or `--no-…`.
several, flag = partial(option, multiple=True, callback=_distinct), partial(option, kind=None)
