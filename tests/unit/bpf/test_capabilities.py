"""Capabilities are let go of in processes of their own: what is given up does not come back."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mapek.bpf import capabilities
from mapek.errors import PrivilegeError
from mapek.testing.child import in_child


def of(thread: str = "self", which: str = "CapPrm") -> int:
    for line in Path(f"/proc/{thread}/status").read_text().splitlines():
        if line.startswith(f"{which}:"):
            return int(line.split()[1], 16)
    raise AssertionError(which)


@pytest.mark.parametrize(
    ("names", "mask"),
    [
        ((), 0),
        (("CAP_CHOWN",), 1),
        (("CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"), 1 << 12 | 1 << 38 | 1 << 39),
    ],
)
def test_names_and_masks(names, mask):
    assert capabilities.encode(names) == mask
    assert capabilities.decode(mask) == set(names)


def test_a_name_that_is_none():
    with pytest.raises(ValueError, match="EVERYTHING"):
        capabilities.encode(["CAP_EVERYTHING"])


def test_what_this_thread_has_is_what_the_kernel_says():
    assert capabilities.encode(capabilities.effective()) == of("thread-self", "CapEff")
    assert capabilities.encode(capabilities.permitted()) == of("thread-self", "CapPrm")


@pytest.mark.needs("root")
def test_hold_only_empties_all_sets_but_for_what_is_named():
    def work() -> None:
        capabilities.hold_only(("CAP_NET_ADMIN", "CAP_BPF"))
        kept = 1 << 12 | 1 << 39
        sets = {
            which: of("thread-self", which) for which in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")
        }
        assert sets == {"CapPrm": kept, "CapEff": kept, "CapBnd": kept, "CapInh": 0, "CapAmb": 0}
        # What is gone is gone, also for a program that root executes.
        capabilities.hold_only(("CAP_NET_ADMIN", "CAP_SYS_ADMIN"))
        assert of("thread-self") == 1 << 12
        code = "print(next(l for l in open('/proc/self/status') if l.startswith('CapEff')).split()[1])"
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert int(out, 16) & ~kept == 0

    in_child(work, "hold_only")


@pytest.mark.needs("root")
def test_only_the_calling_thread_and_those_that_it_starts_let_go():
    def work() -> None:
        before = of()
        held: dict[str, int] = {}

        def later() -> None:
            held["child"] = of("thread-self")

        def bare() -> None:
            child = threading.Thread(target=later)
            child.start()
            child.join()

        go = threading.Event()
        early = threading.Thread(target=lambda: go.wait(20), name="early")
        early.start()
        capabilities.without_any(bare)
        limited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY
        assert held["child"] == (1 << 14 if limited else 0)
        assert of("thread-self") == before
        capabilities.hold_only(("CAP_BPF",))
        threads = capabilities.of_threads()
        assert threads[f"{early.native_id} early"] == capabilities.decode(before)
        assert [held for name, held in threads.items() if name.split()[0] == str(os.getpid())] == [
            {"CAP_BPF"}
        ]
        go.set()
        early.join()

    in_child(work, "threads")


def test_an_error_in_the_bare_thread_comes_through():
    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        capabilities.without_any(fail)


def test_no_new_privileges():
    def work() -> None:
        capabilities.no_new_privileges()
        assert of("thread-self", "NoNewPrivs") == 1

    in_child(work, "no_new_privs")


def test_a_kernel_that_refuses(monkeypatch):
    class Refusing:
        @staticmethod
        def capset(*_: object) -> int:
            return -1

        prctl = capset

    monkeypatch.setattr(capabilities, "_libc", Refusing)
    for function in (lambda: capabilities.hold_only(()), capabilities.no_new_privileges):
        with pytest.raises(PrivilegeError):
            function()
