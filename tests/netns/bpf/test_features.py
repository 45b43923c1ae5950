"""What the probes answer, against what happens when it is tried in earnest, on whatever kernel this is.

`doctor` and every sensor go by these answers, so a wrong one either turns a feature off for nothing or lets a
sensor fail where it had a second way.
"""

from __future__ import annotations

import mmap
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mapek.bpf import LoadedObject, ObjectSpec, attach_tc, attach_xdp, create_map, load, object_path
from mapek.bpf.features import FEATURES, Answer, probe
from mapek.errors import MapekError
from tests.netns.bpf.wires import Wire, run
from tests.support import machine

pytestmark = pytest.mark.kernel


def _tcx(wire: Wire, loaded: LoadedObject) -> None:
    attach_tc(loaded.programs["empty_tc"], wire.near, "ingress", "tcx").detach()


def _xdp_link(wire: Wire, loaded: LoadedObject) -> None:
    with load(ObjectSpec.read(object_path("empty"))) as empty:
        attach_xdp(empty.programs["empty"], wire.near, "generic").detach()


def _bpf_timer(wire: Wire, loaded: LoadedObject) -> None:
    load(ObjectSpec.read(object_path("link_watch")), programs={"stamp"}).close()


def _test_run(wire: Wire, loaded: LoadedObject) -> None:
    loaded.programs["empty_tc"].test_run(bytes(64))


def _nexthop(wire: Wire, loaded: LoadedObject) -> None:
    run("ip nexthop add id 7 dev near")
    run("ip nexthop del id 7")


def _map(kind: str, *shape: int, flags: int = 0) -> Callable[[Wire, LoadedObject], None]:
    return lambda wire, loaded: create_map(kind, *shape, flags=flags).close()


TRIES: dict[str, Callable[[Wire, LoadedObject], None]] = {
    "prog_test_run": _test_run,
    "nexthop": _nexthop,
    "lpm_trie": _map("lpm_trie", 8, 8, 1, flags=1),
    "mmapable_array": _map("array", 4, 8, 1, flags=1 << 10),
    "ringbuf": _map("ringbuf", 0, 0, mmap.PAGESIZE),
    "xdp_link": _xdp_link,
    "bpf_timer": _bpf_timer,
    "tcx": _tcx,
}


@pytest.fixture
def empty_tc():
    with load(ObjectSpec.read(object_path("empty_tc"))) as loaded:
        yield loaded


def test_an_answer_is_what_trying_it_gives(wire: Wire, empty_tc: LoadedObject):
    wrong = {}
    for feature, attempt in TRIES.items():
        try:
            attempt(wire, empty_tc)
        except (MapekError, OSError, subprocess.CalledProcessError) as error:
            tried, why = Answer.NO, str(error)
        else:
            tried, why = Answer.YES, ""
        if probe(feature) is not tried:
            wrong[feature] = (probe(feature), tried, why)
    assert wrong == {}


def test_the_machines_own_signs_say_the_same():
    signs = {
        "btf": machine.has("btf"),
        "tcx": machine.has("tcx"),
        "kprobe": Path("/sys/bus/event_source/devices/kprobe").exists(),
    }
    assert {name: probe(name) is Answer.YES for name in signs if name in FEATURES} == signs
