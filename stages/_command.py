"""What all stage scripts share: one clear line for bad input, and lists on the command line."""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click
import yaml

from cxlib import runs


class Stage(click.Command):
    """A click command whose bad input ends in one line and exit code 1."""

    shared = False

    def invoke(self, ctx: click.Context) -> Any:
        """Run the stage; every option's value is known to be well-formed."""
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not self.shared:
            # Every rank would do all the work and write the same files.
            raise click.ClickException(f"{ctx.info_name} is one process, WORLD_SIZE says there are more: use python")
        try:
            return super().invoke(ctx)
        except (ValueError, OSError, FloatingPointError) as error:
            raise click.ClickException(str(error)) from error


class SharedStage(Stage):
    """A stage whose work torchrun's processes share."""

    shared = True


def workplace(ranks: runs.Ranks, inputs: Iterable[str | Path]) -> AbstractContextManager[Path]:
    """The folder of the current command's unfinished work, `.resume/<stage>/<fingerprint>`; see `runs.workplace`."""
    context = click.get_current_context()
    stage = Path(context.command.callback.__code__.co_filename).stem
    return runs.workplace(Path(".resume", stage, runs.fingerprint(context.params, inputs)), ranks)


def for_network(values: str, network: str) -> str:
    """What `value,network=value,…` says for a network: its own value, or else the one without a name.

    Raises:
        ValueError: it says nothing for this network, or more than one thing.
    """
    pairs = [part.rpartition("=") for part in values.split(",")]
    for wanted in (network, ""):
        found = [value for name, _, value in pairs if name == wanted]
        if len(found) == 1:
            return found[0]
    raise ValueError(f"{values!r} is not one value for {network}: write VALUE or VALUE,NETWORK=VALUE,...")


class ForNetwork(click.ParamType):
    """A value for all networks, or `value,network=value,…` with values of their own for some; see `for_network`.

    The network is the option --network, which must be eager.
    """

    name = "value"

    def __init__(self, kind: Any = str):
        self.kind = click.types.convert_type(kind)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """This network's value, of the wanted kind; anything else fails with the option's name."""
        assert ctx is not None
        try:
            own = for_network(value, ctx.params["network"])
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return self.kind.convert(own, param, ctx)


class ListOf(click.ParamType):
    """A list: `a,b,c`, or `params.yaml:perturb.epsilons`, the list at a key of a YAML file.

    The second form is for dvc.yaml, where DVC cannot interpolate a list into a command.
    """

    name = "list"

    def __init__(self, element: type):
        self.element = element

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        """The list, each element of the wanted type; anything else fails with the option's name."""
        if isinstance(value, list):
            return value
        file, colon, key = value.partition(":")
        items = value.split(",")
        if colon:
            try:
                items = yaml.safe_load(Path(file).read_text())
                for part in key.split("."):
                    items = items[part]
            except (OSError, KeyError, TypeError, yaml.YAMLError):
                self.fail(f"there is no {key} in {file}", param, ctx)
        try:
            if not isinstance(items, list):
                raise TypeError
            return [self.element(item) for item in items]
        except (TypeError, ValueError):
            self.fail(f"{value}: {items!r} is not a list of {self.element.__name__}", param, ctx)


#: Kinds of whole numbers: at least one, and at least none.
POSITIVE, COUNT = click.IntRange(min=1), click.IntRange(min=0)


def option(name: str, kind: Any = str, is_eager: bool = False) -> Any:
    """A required option: stages have no defaults of their own, params.yaml has them."""
    return click.option(name, type=kind, required=True, is_eager=is_eager)
