"""The words of `mapek lab open`: what each line means, and what is said of those that mean nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapek.errors import ConfigError
from mapek.simulations.session_words import HELP, Command, parse


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("", None),
        ("  # a remark", None),
        ("status", Command("status")),
        ("quit # now", Command("quit")),
        ("drop l0", Command("loss", "l0", "both", 100.0)),
        ("drop l0 ab", Command("loss", "l0", "ab", 100.0)),
        ("loss l1 2.5 ba", Command("loss", "l1", "ba", 2.5)),
        ("loss l1 0", Command("loss", "l1", "both", 0.0)),
        ("carrier l1 down", Command("carrier", "l1", up=False)),
        ("carrier l1 up", Command("carrier", "l1", up=True)),
        ("flap l0", Command("flap", "l0")),
        ("clear", Command("clear")),
        ("clear l0", Command("clear", "l0")),
        ("wait 0.5", Command("wait", value=0.5)),
    ],
)
def test_words(line, command):
    assert parse(line) == command


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("bogus", "none of that name; say help"),
        ("drop", "lacks or has a word; say drop WIRE"),
        ("drop l0 ab ba", "lacks or has a word"),
        ("drop l0 up", "direction 'up': there is no such direction; say ab or ba"),
        ("loss l0", "lacks or has a word; say loss WIRE PERCENT"),
        ("loss l0 101", "number '101': it is none or out of range; say 0 to 100"),
        ("loss l0 -1", "out of range"),
        ("loss l0 nan", "out of range"),
        ("wait inf", "out of range"),
        ("carrier l0 sideways", "say carrier WIRE down|up"),
        ("status now", "lacks or has a word; say status"),
    ],
)
def test_what_means_nothing(line, said):
    with pytest.raises(ConfigError) as caught:
        parse(line)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text())
def test_any_text_is_a_command_or_one_error(line):
    try:
        verb = getattr(parse(line), "verb", "")
    except ConfigError as error:
        verb = str(error)
    assert len(verb) < 300


def test_each_command_of_the_help_is_understood():
    words = {"WIRE": "l0", "[WIRE]": "l0", "PERCENT": "5", "[ab|ba]": "ab", "down|up": "up", "SECONDS": "1"}
    for usage in HELP:
        assert parse(" ".join(words.get(word, word) for word in usage.split())) is not None
