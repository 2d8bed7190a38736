"""What the tests on generated cases share: how many, odd text, and what may become of a case.

In CI the cases are the same in every run. By hand, `PROPERTIES=20 python -m pytest --timeout 0 tests/test_any_*.py`
draws twenty times as many, other ones each time; with what fails comes the line that draws it again.
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

TIMES = int(os.environ.get("PROPERTIES", "1"))

#: Text as people type it, and as nobody does: line ends, options, numbers of other scripts, bytes that are no UTF-8.
ODD = st.one_of(
    st.sampled_from(["", " ", "-", "--", "--out", "--a_b", "nan", "inf", "-1", "0", "1e999", "²", "٣", "none", "auto"]),
    st.text(st.sampled_from("a_-.=,\n\u2028\udcff'\"%$é"), max_size=8),
    st.text(st.characters(exclude_characters="/\0"), max_size=12),
)


def cases(number):
    """So many generated cases, each with the time that it needs."""
    return settings(
        max_examples=number * TIMES,
        derandomize=TIMES == 1,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def outcome(function, *arguments, named=""):
    """What a function gives; or None where it refuses, in one line that has the name of what is wrong in it."""
    try:
        return function(*arguments)
    except ValueError as error:
        line = str(error)
        assert line and len(line.splitlines()) == 1 and str(named) in line, repr(error)
        # Python's own words for bytes that are no text name no file.
        assert not isinstance(error, UnicodeError), repr(error)
        return None
