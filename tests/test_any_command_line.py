"""Whatever is typed behind a stage's name: the values arrive as they are, or one line says what is wrong with them."""

import contextlib
import os
from pathlib import Path
from unittest import mock

import click
import pytest
from click.testing import CliRunner
from generated import ODD, cases
from hypothesis import given
from hypothesis import strategies as st
from test_params import BY_HAND, ROOT, command

#: A script and what is typed behind it first, by both.
COMMANDS = {
    " ".join([path.stem, *words]): (path.relative_to(ROOT).as_posix(), words)
    for path in sorted((ROOT / "stages").glob("[!_]*.py"))
    if path.relative_to(ROOT).as_posix() not in BY_HAND
    for main in [command(path.relative_to(ROOT).as_posix())]
    for words in ([[name] for name in main.commands] if isinstance(main, click.Group) else [[]])
}
#: All but those that download, or paint birds wherever they are told to.
READERS = [name for name in COMMANDS if not name.startswith("data ")]


@pytest.fixture(scope="module", autouse=True)
def empty(tmp_path_factory):
    """An empty folder to work in, on one CPU."""
    machine = {name: value for name, value in os.environ.items() if not name.startswith("CXLIB_")}
    with contextlib.chdir(tmp_path_factory.mktemp("empty")), mock.patch.dict(os.environ, machine, clear=True):
        os.environ |= {"CXLIB_DEVICE": "cpu", "CXLIB_THREADS": "1", "CXLIB_WORKERS": "0"}
        yield


def parameters(script, words):
    """The click parameters of a command."""
    main = command(script)
    return (main.commands[words[0]] if words else main).params


def valid(kind):
    """Values of a click type, as they are to arrive."""
    if isinstance(kind, click.Choice):
        return st.sampled_from(list(kind.choices))
    if isinstance(kind, click.IntRange):
        return st.integers(kind.min, kind.max)
    if isinstance(kind, click.FloatRange):
        return st.floats(kind.min, kind.max, exclude_min=kind.min_open, allow_nan=False, allow_infinity=False)
    if kind is click.INT:
        return st.integers()
    return st.booleans() if isinstance(kind, click.types.BoolParamType) else ODD


def spelled(name):
    """An option's name as click has it, or as params.yaml does."""
    return st.sampled_from([name, f"--{name[2:].replace('-', '_')}"])


@st.composite
def lines(draw, script, words, texts=ODD):
    """A command line that is to be taken: `({parameter: [words]}, {name: value})`."""
    typed, expected = {}, {}
    for parameter in parameters(script, words):
        values = texts if parameter.type is click.STRING else valid(parameter.type)
        if isinstance(parameter, click.Argument):
            value = draw(values)
            typed[parameter] = [value]
        elif parameter.secondary_opts:
            value = draw(values)
            typed[parameter] = [draw(spelled((parameter.opts if value else parameter.secondary_opts)[0]))]
        else:
            members = draw(st.lists(values, min_size=1, max_size=3 if parameter.multiple else 1, unique=True))
            value = tuple(members) if parameter.multiple else members[0]
            pairs = [(draw(spelled(parameter.opts[0])), str(member)) for member in members]
            typed[parameter] = [word for pair in pairs for word in draw(st.sampled_from([pair, ["=".join(pair)]]))]
        expected[parameter.name] = value
    return typed, expected


@st.composite
def wrong(draw, script, words):
    """A command line with one thing wrong in it: missing, twice, out of range, of another type, or unknown."""
    typed, expected = draw(lines(script, words, st.text("ab", min_size=1, max_size=3)))
    option = draw(st.sampled_from([p for p in typed if isinstance(p, click.Option) and not p.secondary_opts]))
    name, kind, given = option.opts[0], option.type, typed.pop(option)
    ways = [[], [*given, "--nonsense", draw(ODD)]]
    if option.multiple:
        ways.append([*given, name, str(expected[option.name][0])])
    if isinstance(kind, click.IntRange | click.FloatRange):
        texts = "nan", "NaN\n", "-inf", "1e400", "-1e400", "a", "", str(kind.min - 1)
        ways += [[name, text] for text in texts]
    if isinstance(kind, click.Choice):
        ways.append([name, draw(ODD.filter(lambda text: text not in kind.choices))])
    return typed | {option: draw(st.sampled_from(ways))}


def shuffled(words, typed, random):
    """The words of a command line, its options in any order."""
    groups = list(typed.values())
    random.shuffle(groups)
    return [*words, *(word for group in groups for word in group)]


def run(script, words, callback=None):
    """What the command line gives, its work replaced where there is a callback; nothing may be left behind."""
    main = command(script)
    inner = main.commands[words[0]] if isinstance(main, click.Group) else main
    with mock.patch.object(inner, "callback", callback or inner.callback):
        result = CliRunner().invoke(main, words)
    assert not list(Path().iterdir())
    return result


def refused(result, code):
    """Assert that a run ended in one line, with exit code 1, or with 2 behind click's usage."""
    # Behind a missing option click lists its choices.
    usage, _, line = result.stderr.partition("Error: ")
    line = line.partition(" Choose from:\n")[0]
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    assert len(line.splitlines()) == 1, result.stderr
    assert usage.startswith("Usage: ") if code == 2 else not usage, result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_well_formed_arrives_as_it_is(name):
    script, words = COMMANDS[name]

    @cases(30)
    @given(lines(script, words), st.randoms())
    def arrives(line, random):
        (typed, expected), seen = line, {}
        result = run(script, shuffled(words, typed, random), lambda **values: seen.update(values))
        assert result.exit_code == 0, (result.output, result.exception)
        assert seen == expected

    arrives()


@pytest.mark.parametrize("name", COMMANDS)
def test_one_wrong_value_is_one_line(name):
    script, words = COMMANDS[name]

    @cases(30)
    @given(wrong(script, words), st.randoms())
    def is_refused(typed, random):
        refused(run(script, shuffled(words, typed, random), lambda **_: None), 2)

    is_refused()


@pytest.mark.parametrize("name", READERS)
def test_files_that_there_are_not_are_one_line_and_leave_nothing(name):
    script, words = COMMANDS[name]

    @cases(10)
    @given(lines(script, words), st.randoms())
    def is_refused(line, random):
        refused(run(script, shuffled(words, line[0], random)), 1)

    is_refused()
