"""The table of system calls against the headers that it was made from, and names that are none."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest

from mapek.errors import ConfigError, FeatureError
from mapek.sensors.syscall_latency_kernel import NUMBERS, index_table
from mapek.sensors.syscall_latency_numbers import MACHINES, number_of, numbers, symbols_of

# What arch/arm64/include/uapi/asm/unistd.h defines before it includes the generic table.
ARM64 = ("RENAMEAT", "NEW_STAT", "SET_GET_RLIMIT", "TIME32_SYSCALLS", "SYS_CLONE3", "MEMFD_SECRET")
LAST_OF_6_1 = 450


def header(name: str, *flags: str) -> dict[str, int]:
    """The numbers that a uapi header defines."""
    said = subprocess.run(
        ["clang", "-E", "-dM", *flags, "-"],
        input=f"#include <{name}>\n",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    defined = dict(re.findall(r"^#define (\w+) (\S+)$", said, re.MULTILINE))
    found = {}
    for macro, value in defined.items():
        if macro.startswith("__NR_") and macro not in ("__NR_syscalls", "__NR_arch_specific_syscall"):
            while value in defined:
                value = defined[value]
            found[macro.removeprefix("__NR_")] = int(value)
    return {name: number for name, number in found.items() if number <= LAST_OF_6_1}


@pytest.mark.needs("clang")
@pytest.mark.skipif(
    not Path("/usr/include/asm-generic/unistd.h").exists() or platform.machine() != "x86_64",
    reason="no kernel headers of x86-64",
)
@pytest.mark.parametrize(
    ("machine", "name", "flags"),
    [
        ("x86_64", "asm/unistd_64.h", ()),
        ("aarch64", "asm-generic/unistd.h", tuple(f"-D__ARCH_WANT_{flag}" for flag in ARM64)),
    ],
)
def test_the_table_is_the_headers(machine: str, name: str, flags: tuple[str, ...]) -> None:
    ours = {name: number for name, number in numbers(machine).items() if number <= LAST_OF_6_1}
    assert ours == header(name, *flags)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_number_has_one_name_and_fits_the_program(machine: str) -> None:
    table = numbers(machine)
    assert len(set(table.values())) == len(table)
    assert max(table.values()) < NUMBERS


def test_later_calls_have_one_number_everywhere() -> None:
    x86, arm64 = map(numbers, MACHINES)
    later = {name: number for name, number in x86.items() if number > 423}
    assert later == {name: number for name, number in arm64.items() if number > 423}


@pytest.mark.parametrize(
    ("name", "x86", "arm64"),
    [
        ("read", 0, 63),
        ("write", 1, 64),
        ("connect", 42, 203),
        ("accept", 43, 202),
        ("sendto", 44, 206),
        ("recvfrom", 45, 207),
        ("accept4", 288, 242),
        ("io_uring_enter", 426, 426),
        ("futex_wait", 455, 455),
    ],
)
def test_numbers(name: str, x86: int, arm64: int) -> None:
    assert number_of((name,), "x86_64") == (x86,)
    assert number_of((name,), "aarch64") == (arm64,)


@pytest.mark.parametrize(
    ("name", "machine", "said"),
    [
        ("recv", "x86_64", r"watch system call recv: x86_64 has none of that name; did you mean"),
        ("acept4", "x86_64", 'did you mean "accept4"'),
        ("open", "aarch64", "aarch64 has none of that name"),
        ("", "x86_64", "none of that name"),
        ("x" * 999, "x86_64", "see man 2 syscalls"),
        ("exit_group", "x86_64", "does not return"),
        ("rt_sigreturn", "aarch64", "does not return"),
    ],
)
def test_names_that_cannot_be_watched(name: str, machine: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        number_of((name,), machine)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_another_machine_has_no_numbers() -> None:
    with pytest.raises(FeatureError, match="no table for s390x"):
        number_of(("read",), "s390x")


@pytest.mark.parametrize(
    ("name", "machine", "symbols"),
    [
        ("read", "x86_64", ("__x64_sys_read",)),
        ("read", "aarch64", ("__arm64_sys_read",)),
        ("stat", "x86_64", ("__x64_sys_newstat", "__x64_sys_stat")),
    ],
)
def test_symbols(name: str, machine: str, symbols: tuple[str, ...]) -> None:
    assert symbols_of(name, machine) == symbols


def test_the_index_has_a_place_for_each_and_none_for_others() -> None:
    table = index_table((7, 0, 511))
    assert len(table) == NUMBERS
    assert (table[7], table[0], table[511]) == (1, 2, 3)
    assert sum(map(bool, table)) == 3
