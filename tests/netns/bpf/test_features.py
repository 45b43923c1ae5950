"""What the probes answer, against what happens when it is tried in earnest, on whatever kernel this is.

`doctor` and every sensor go by these answers, so a wrong one either turns a feature off for nothing or lets a
sensor fail where it had a second way. Three tables: features by name; single parts (map types, ways to attach); and
every program that we ship, which must load exactly where all that it demands is said to be there.
"""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from mapek.bpf import (
    LoadedObject,
    ObjectSpec,
    attach_tc,
    attach_xdp,
    create_map,
    features,
    load,
    object_path,
    parts,
    syscall,
    tracing,
)
from mapek.bpf import demands as of
from mapek.bpf.anatomy import take_apart
from mapek.bpf.attempts import new_map
from mapek.bpf.cpus import possible_cpus
from mapek.bpf.demands import Part
from mapek.bpf.features import FEATURES, Answer, probe
from mapek.bpf.xdp_netlink import attach_xdp_netlink
from mapek.errors import MapekError
from tests.netns.bpf.wires import Wire, run
from tests.support import machine

pytestmark = pytest.mark.kernel

Try = Callable[[Wire], None]
REFUSED = (MapekError, OSError, subprocess.CalledProcessError)
SUFFIX = "bpfel" if sys.byteorder == "little" else "bpfeb"
OBJECTS = sorted(path.name.split(".")[0] for path in Path(object_path("empty")).parent.glob(f"*.{SUFFIX}.o"))


def _loaded(name: str, program: str) -> LoadedObject:
    """One program of an object, with no map but those that it uses."""
    spec = ObjectSpec.read(object_path(name))
    return load(spec, programs={program}, skip_maps=spec.maps.keys() - _used(spec, program))


def _used(spec: ObjectSpec, program: str) -> set[str]:
    return {
        known.name
        for function in take_apart(spec).reach(program)
        for known in function.references.values()
        if known.kind in ("map", "data")
    }


def _tc(way: str) -> Try:
    def attempt(wire: Wire) -> None:
        with _loaded("empty_tc", "empty_tc") as loaded:
            attach_tc(loaded.programs["empty_tc"], wire.near, "ingress", way).detach()  # type: ignore[arg-type]

    return attempt


def _xdp_link(wire: Wire) -> None:
    with _loaded("empty", "empty") as loaded:
        attach_xdp(loaded.programs["empty"], wire.near, "generic").detach()


def _xdp_netlink(wire: Wire) -> None:
    with _loaded("empty", "empty") as loaded:
        attach_xdp_netlink(loaded.programs["empty"], wire.near, "generic").detach()


def _loads(name: str, program: str) -> Try:
    return lambda wire: _loaded(name, program).close()


def _test_run(wire: Wire) -> None:
    with _loaded("empty_tc", "empty_tc") as loaded:
        loaded.programs["empty_tc"].test_run(bytes(64))


def _nexthop(wire: Wire) -> None:
    run("ip nexthop add id 7 dev near")
    run("ip nexthop del id 7")


def _map(kind: str, *shape: int, flags: int = 0) -> Try:
    return lambda wire: create_map(kind, *shape, flags=flags).close()


def _batch(kind: int) -> Try:
    """The command itself, for what reads our maps goes one by one where there is none."""

    def attempt(wire: Wire) -> None:
        with new_map(kind, 4, 8, 2) as fd:
            held = [mmap.mmap(-1, mmap.PAGESIZE * (1 + possible_cpus() // 128)) for _ in range(3)]
            import ctypes

            token, keys, values = (ctypes.addressof(ctypes.c_char.from_buffer(one)) for one in held)
            attr = struct.pack("=QQQQIIQQ", 0, token, keys, values, 2, fd, 0, 0)
            code = syscall.bpf_raw(syscall.MAP_LOOKUP_BATCH, attr)
        if code < 0 and code != -2:  # nothing (more) to read
            raise OSError(-code, os.strerror(-code))

    return attempt


def _raw_tracepoint(wire: Wire) -> None:
    with _loaded("syscall_latency", "raw_tp_enter") as loaded:
        tracing.attach_raw_tracepoint(loaded.programs["raw_tp_enter"], "sys_enter").close()


def _btf_tracepoint(wire: Wire) -> None:
    with _loaded("net_events", "net_receive") as loaded:
        tracing.attach_btf_tracepoint(loaded.programs["net_receive"]).close()


def _tracepoint(wire: Wire) -> None:
    with _loaded("net_events_tp", "net_reset_in") as loaded:
        tracing.attach_tracepoint(loaded.programs["net_reset_in"], "tcp", "tcp_receive_reset").close()


def _kprobe(wire: Wire) -> None:
    with _loaded("syscall_latency", "kprobe_enter") as loaded:
        tracing.attach_kprobe(loaded.programs["kprobe_enter"], "tcp_v4_connect").close()


def _read(path: str) -> Try:
    def attempt(wire: Wire) -> None:
        with open(path, "rb") as file:
            file.read(64)

    return attempt


def _cgroup2(wire: Wire) -> None:
    found = subprocess.run(
        ["findmnt", "-nt", "cgroup2", "-o", "TARGET"], capture_output=True, text=True, check=True
    )
    next(Path(found.stdout.split()[0]).glob("cgroup.procs"))


TRIES: dict[str, Try] = {
    "tracefs": lambda wire: tracing.read_event("tcp", "tcp_receive_reset", "id") and None,
    "cgroup2": _cgroup2,
    "kprobe": _kprobe,
    "raw_tp": _raw_tracepoint,
    "tp_btf": _btf_tracepoint,
    "psi": _read("/proc/pressure/memory"),
    "prog_test_run": _test_run,
    "lpm_trie": _map("lpm_trie", 8, 8, 1, flags=1),
    "nexthop": _nexthop,
    "btf": _read("/sys/kernel/btf/vmlinux"),
    "mmapable_array": _map("array", 4, 8, 1, flags=1 << 10),
    "batch_hash": _batch(1),
    "bpf_link": _xdp_link,
    "ringbuf": _map("ringbuf", 0, 0, mmap.PAGESIZE),
    "xdp_link": _xdp_link,
    "task_storage": _loads("syscall_latency", "task_storage_enter"),
    "batch_percpu_array": _batch(6),
    "bpf_timer": _loads("link_watch", "stamp"),
    "tcx": _tc("tcx"),
}

WAYS: dict[str, Try] = {
    "xdp_link": _xdp_link,
    "xdp_netlink": _xdp_netlink,
    "tcx": _tc("tcx"),
    "clsact": _tc("clsact"),
    "raw_tp": _raw_tracepoint,
    "tp_btf": _btf_tracepoint,
    "tracepoint": _tracepoint,
    "kprobe": _kprobe,
}

# A program of ours that uses a map of the type; what is not here is made as it is.
MAPS: dict[str, Try] = {
    "array": _map("array", 4, 8, 1),
    "hash": _map("hash", 4, 8, 1),
    "percpu_array": _map("percpu_array", 4, 8, 1),
    "percpu_hash": _map("percpu_hash", 4, 8, 1),
    "prog_array": _map("prog_array", 4, 4, 1),
    "cgroup_array": _loads("syscall_latency", "raw_tp_enter"),
    "lpm_trie": _map("lpm_trie", 8, 8, 1, flags=1),
    "ringbuf": _map("ringbuf", 0, 0, mmap.PAGESIZE),
    "array_of_maps": _loads("tc_classifier", "tc_class_in"),
}


def _wrong(tries: dict[str, Try], answer: Callable[[str], Answer], wire: Wire) -> dict[str, object]:
    wrong: dict[str, object] = {}
    for name, attempt in tries.items():
        try:
            attempt(wire)
        except REFUSED as error:
            tried, why = Answer.NO, str(error)
        else:
            tried, why = Answer.YES, ""
        if answer(name) is not tried:
            wrong[name] = (answer(name), tried, why)
    return wrong


@pytest.mark.host
def test_every_feature_is_tried():
    assert TRIES.keys() == FEATURES.keys()


def test_a_feature_is_there_exactly_where_it_can_be_used(wire: Wire):
    assert _wrong(TRIES, probe, wire) == {}


def test_a_way_to_attach_is_there_exactly_where_it_attaches(wire: Wire):
    assert {part.name for part in of.ours() if part.kind == "attachment"} == WAYS.keys()
    assert _wrong(WAYS, lambda name: parts.probe(Part("attachment", name)), wire) == {}


def test_a_map_type_is_there_exactly_where_such_a_map_is_made(wire: Wire):
    # Task storage came two kernels before tracing programs could use it: its program is in the next table.
    assert {part.name for part in of.ours() if part.kind == "map type"} - {"task_storage"} == MAPS.keys()
    assert _wrong(MAPS, lambda name: parts.probe(Part("map type", name)), wire) == {}


@pytest.mark.timeout(300)
def test_a_program_loads_exactly_where_all_that_it_demands_is_there():
    wrong = {}
    for object_name in OBJECTS:
        spec = ObjectSpec.read(object_path(object_name))
        for program in spec.programs:
            used = _used(spec, program)
            demanded = of.demands(spec, program)
            assert {spec.maps[one].type for one in used} == {p.name for p in demanded if p.kind == "map type"}
            asked = {part: parts.probe(part) for part in demanded if part.kind != "attachment"}
            lacking = [str(part) for part, answer in asked.items() if answer is not Answer.YES]
            if (object_name, program) in CORE and probe("btf") is not Answer.YES:
                lacking.append("btf")
            try:
                with ExitStack() as life:
                    life.enter_context(load(spec, programs={program}, skip_maps=spec.maps.keys() - used))
                loads, why = True, ""
            except REFUSED as error:
                loads, why = False, str(error)
            if loads != (not lacking):
                wrong[f"{object_name} {program}"] = (loads, lacking, why)
    assert wrong == {}


def _with_relocations() -> set[tuple[str, str]]:
    """Programs, with their objects, that libbpf must fit to the kernel by its BTF."""
    return {
        (name, program)
        for name in OBJECTS
        for spec in (ObjectSpec.read(object_path(name)),)
        for program in spec.programs
        if any(function.relocations for function in take_apart(spec).reach(program))
        or spec.programs[program].type == "tracing"
    }


CORE = _with_relocations()


@pytest.mark.host
def test_what_nobody_probes_is_unknown_and_what_is_denied_is_no():
    odd = (Part("map type", "arena"), Part("program type", "lsm"), Part("helper", "no_such", "xdp"))
    assert [parts.probe(part) for part in odd] == [Answer.UNKNOWN] * 3
    assert not set(odd) & parts._sure.keys()
    # Every kernel knows it, but not for XDP programs.
    assert parts.probe(Part("helper", "skb_store_bytes", "xdp")) is Answer.NO


@pytest.mark.host
def test_without_privileges_the_answer_is_unknown():
    """A verifier that hides helpers from who may not use them must not be taken for one that has none."""
    code = (
        "import os; from mapek.bpf import demands, parts; demands.ours()\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "print({p.kind for p in demands.ours() if parts.probe(p).value == 'no'} - {'attachment'},"
        "{p.kind for p in demands.ours() if parts.probe(p).value == 'unknown'} >= {'helper', 'map type'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set() True"


def test_the_machines_own_signs_say_the_same():
    signs = {
        "btf": machine.has("btf"),
        "tcx": machine.has("tcx"),
        "kprobe": Path("/sys/bus/event_source/devices/kprobe").exists(),
    }
    assert {name: features.probe(name) is Answer.YES for name in signs} == signs
