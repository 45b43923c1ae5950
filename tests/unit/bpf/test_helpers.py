"""The table of helpers against the header that programs are compiled with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mapek.bpf import helpers

DEFS = Path(helpers.__file__).parent / "include" / "bpf" / "bpf_helper_defs.h"


def test_names_and_numbers_are_the_headers():
    found = re.findall(
        r"\(\*\s*(?:const )?bpf_(\w+)\)\([^;]*?\) = \(void \*\) (\d+);", DEFS.read_text("utf-8")
    )
    assert len(found) > 200
    assert {int(number): name for name, number in found} == dict(enumerate(helpers.NAMES[1:], 1))


def test_every_word_of_the_tables_is_a_helper():
    known = set(helpers.NAMES[1:])
    assert known >= helpers.GPL_ONLY
    for effect, names in helpers.EFFECTS.items():
        assert names, effect
        assert names <= known, effect


@pytest.mark.parametrize(
    ("number", "name", "since"),
    [(1, "map_lookup_elem", "5.10"), (169, "timer_init", "5.15"), (211, "cgrp_storage_delete", "6.2")],
)
def test_names(number: int, name: str, since: str):
    assert (helpers.name(number), helpers.since(number)) == (name, since)


@pytest.mark.parametrize("number", [0, -1, 212, 99999])
def test_what_is_no_helper(number: int):
    assert helpers.name(number) == f"helper {number}"
    assert helpers.since(number) == ""
