"""What a program can do, told from its code: hand-written programs in, answers out, and our own objects in words."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from mapek.bpf import MapSpec, ObjectSpec, helpers, hooks, object_path, words
from mapek.bpf.anatomy import Reference
from mapek.bpf.explain import Explanation, explain
from mapek.bpf.spec import ProgramSpec
from mapek.errors import ObjectError
from tests.support.bytecode import EXIT, Row, anatomy, call, copy, load, mov, store, when, wide

NUMBERS = {name: number for number, name in enumerate(helpers.NAMES)}
OBJECTS = sorted(object_path("empty").parent.glob("*.o"))
COUNTS = MapSpec("counts", "array", 4, 8, 16, 0)


def told(*rows: Row, type_: str = "xdp", **more) -> Explanation:
    found = anatomy(*rows, type_=type_, **more)
    return explain(found.spec, found)


def answers(found: Explanation) -> dict[str, str]:
    return {what: ability.answer for what, ability in found.programs[0].can.items()}


def returns(found: Explanation) -> set[str]:
    return {one.value for one in found.programs[0].returns}


@pytest.mark.parametrize(
    ("rows", "type_", "values", "drop", "send"),
    [
        ((mov(0, 2), EXIT), "xdp", {"XDP_PASS"}, "no", "no"),
        ((mov(0, 1), EXIT), "xdp", {"XDP_DROP"}, "yes", "no"),
        ((mov(0, 0), EXIT), "xdp", {"XDP_ABORTED"}, "yes", "no"),
        ((mov(0, 9), EXIT), "xdp", {"9"}, "yes", "no"),
        ((mov(0, 3), EXIT), "xdp", {"XDP_TX"}, "no", "yes"),
        ((mov(0, 2), EXIT), "sched_cls", {"TC_ACT_SHOT"}, "yes", "no"),
        ((mov(0, -1), EXIT), "sched_cls", {"TC_ACT_UNSPEC"}, "no", "no"),
        (((0xB4, 0, 0, 0, -1), EXIT), "sched_cls", {"TC_ACT_UNSPEC"}, "no", "no"),
        ((mov(0, 0), EXIT), "cgroup_skb", {"drop"}, "yes", "no"),
        # a value that is computed may be any
        ((load(0, 1, 16), EXIT), "xdp", {"any value"}, "maybe", "maybe"),
        # two ways join
        (
            (load(2, 1, 16), mov(0, 2), when(2, 7, 1), mov(0, 1), EXIT),
            "xdp",
            {"XDP_PASS", "XDP_DROP"},
            "yes",
            "no",
        ),
        # a way that no value takes: r2 is 5
        ((mov(2, 5), mov(0, 2), when(2, 5, 1), mov(0, 1), EXIT), "xdp", {"XDP_PASS"}, "no", "no"),
        # a comparison makes the value known: only 2 comes through, else 2 is set
        ((load(0, 1, 16), when(0, 2, 1), mov(0, 2), EXIT), "xdp", {"XDP_PASS"}, "no", "no"),
        # masked: 0 to 1, shifted and added: 2 or 3
        (
            (load(0, 1, 16), (0x57, 0, 0, 0, 1), (0x07, 0, 0, 0, 2), EXIT),
            "xdp",
            {"XDP_PASS", "XDP_TX"},
            "no",
            "yes",
        ),
        # below 2 by comparison
        (
            (load(0, 1, 16), when(0, 1, 1, 0x25), EXIT, mov(0, 2), EXIT),
            "xdp",
            {"XDP_ABORTED", "XDP_DROP", "XDP_PASS"},
            "yes",
            "no",
        ),
        # each comparison, with the number itself on its right side
        (
            (load(0, 1, 16), when(0, 2, 1, 0x35), EXIT, mov(0, 3), EXIT),
            "xdp",
            {"XDP_ABORTED", "XDP_DROP", "XDP_TX"},
            "yes",
            "yes",
        ),
        (
            (load(0, 1, 16), when(0, 2, 1, 0xA5), mov(0, 3), EXIT),
            "xdp",
            {"XDP_ABORTED", "XDP_DROP", "XDP_TX"},
            "yes",
            "yes",
        ),
        (
            (load(0, 1, 16), when(0, 2, 1, 0xB5), mov(0, 3), EXIT),
            "xdp",
            {"XDP_ABORTED", "XDP_DROP", "XDP_PASS", "XDP_TX"},
            "yes",
            "yes",
        ),
        # through the stack
        ((mov(6, 2), store(10, -8, 6, 0x7B), load(0, 10, -8, 0x79), EXIT), "xdp", {"XDP_PASS"}, "no", "no"),
        # what another width was written over is not known any more
        (
            (mov(6, 2), store(10, -8, 6, 0x7B), store(10, -8, 1, 0x73), load(0, 10, -8, 0x79), EXIT),
            "xdp",
            {"any value"},
            "maybe",
            "maybe",
        ),
        # what a helper returns
        (
            (mov(1, 3), mov(2, 0), call(NUMBERS["redirect"]), EXIT),
            "xdp",
            {"what redirect says"},
            "maybe",
            "yes",
        ),
        ((call(NUMBERS["get_prandom_u32"]), EXIT), "xdp", {"any value"}, "maybe", "maybe"),
        # a loop that counts to nobody knows where
        (
            (mov(0, 0), (0x07, 0, 0, 0, 1), load(2, 1, 16), when(2, 0, -3), mov(0, 2), EXIT),
            "xdp",
            {"XDP_PASS"},
            "no",
            "no",
        ),
        (
            (mov(0, 0), (0x07, 0, 0, 0, 1), load(2, 1, 16), when(2, 0, -3), EXIT),
            "xdp",
            {"any value"},
            "maybe",
            "maybe",
        ),
    ],
)
def test_what_becomes_of_a_packet(rows: tuple[Row, ...], type_: str, values: set[str], drop: str, send: str):
    found = told(*rows, type_=type_)
    assert returns(found) == values
    given = answers(found)
    assert (given["drop packets"], given["send packets back or elsewhere"]) == (drop, send)


@pytest.mark.parametrize(
    ("rows", "type_", "what", "answer"),
    [
        ((load(2, 1, 0), load(0, 2, 12, 0x71), mov(0, 2), EXIT), "xdp", "read packets", "yes"),
        ((mov(0, 2), EXIT), "xdp", "read packets", "no"),
        ((load(2, 1, 0), mov(3, 1), store(2, 12, 3), mov(0, 2), EXIT), "xdp", "change packets", "yes"),
        ((load(2, 1, 76), mov(3, 1), store(2, 12, 3), mov(0, 0), EXIT), "sched_cls", "change packets", "yes"),
        # byte 76 of an XDP context is no packet: the verifier would refuse, and we do not know
        ((load(2, 1, 76), mov(3, 1), store(2, 12, 3), mov(0, 2), EXIT), "xdp", "change packets", "maybe"),
        ((mov(3, 1), store(10, -8, 3), mov(0, 2), EXIT), "xdp", "change packets", "no"),
        # a copy that was moved on is the packet still
        (
            (load(2, 1, 0), copy(6, 2), (0x07, 6, 0, 0, 14), mov(3, 1), store(6, 0, 3), mov(0, 2), EXIT),
            "xdp",
            "change packets",
            "yes",
        ),
        # an offset to which the packet's address is added
        (
            (load(2, 1, 0), mov(6, 14), (0x0F, 6, 2, 0, 0), mov(3, 1), store(6, 0, 3), mov(0, 2), EXIT),
            "xdp",
            "change packets",
            "yes",
        ),
        ((call(NUMBERS["skb_store_bytes"]), mov(0, 0), EXIT), "sched_cls", "change packets", "yes"),
        (
            (mov(3, 1), store(1, 8, 3), mov(0, 0), EXIT),
            "sched_cls",
            "change what the kernel knows of a packet",
            "yes",
        ),
        ((call(NUMBERS["probe_read_user"]), EXIT), "kprobe", "read user memory", "yes"),
        ((call(NUMBERS["probe_read_kernel"]), EXIT), "kprobe", "read user memory", "no"),
        ((call(NUMBERS["probe_read_kernel"]), EXIT), "kprobe", "read kernel memory", "yes"),
        ((load(2, 1, 0, 0x79), load(3, 2, 8, 0x79), EXIT), "tracing", "read kernel memory", "yes"),
        ((call(NUMBERS["probe_write_user"]), EXIT), "kprobe", "write user memory", "yes"),
        ((call(NUMBERS["send_signal"]), EXIT), "kprobe", "kill or signal processes", "yes"),
        ((call(NUMBERS["override_return"]), EXIT), "kprobe", "make kernel functions fail", "yes"),
        ((call(NUMBERS["setsockopt"]), EXIT), "sock_ops", "change sockets", "yes"),
        ((call(NUMBERS["ringbuf_output"]), EXIT), "xdp", "send to user space", "yes"),
        ((mov(0, -1), EXIT), "lsm", "deny what a process asks for", "yes"),
        ((mov(0, 0), EXIT), "lsm", "deny what a process asks for", "no"),
    ],
)
def test_what_it_can_do(rows: tuple[Row, ...], type_: str, what: str, answer: str):
    assert answers(told(*rows, type_=type_))[what] == answer


def test_a_function_is_walked_with_what_it_is_called_with():
    writes = (mov(3, 1), store(1, 0, 3), mov(0, 1), EXIT)
    main = (load(1, 1, 0), (0x85, 0, 1, 0, 1), EXIT)
    calls = {1: Reference("function", "writes")}
    given = told(*main, references=calls, writes=writes)
    assert answers(given)["change packets"] == "yes"
    assert returns(given) == {"XDP_DROP"}
    assert [at.function for at in given.programs[0].can["change packets"].where] == ["writes"]
    on_stack = told(copy(1, 10), *main[1:], references=calls, writes=writes)
    assert answers(on_stack)["change packets"] == "no"


def test_a_callback_is_walked_too():
    body = (load(3, 2, 0), mov(0, 0), store(2, 0, 3), EXIT)
    main = (copy(6, 1), *wide(2, source=4), load(3, 6, 0), mov(4, 0), call(NUMBERS["loop"]), mov(0, 2), EXIT)
    given = told(*main, references={1: Reference("function", "body")}, body=body)
    assert answers(given)["change packets"] == "yes"


def test_maps_and_what_is_done_to_them():
    rows = (
        *wide(1, source=1),
        copy(2, 10),
        call(NUMBERS["map_lookup_elem"]),
        when(0, 0, 2),
        mov(3, 1),
        store(0, 0, 3, 0x7B),
        mov(0, 2),
        EXIT,
    )
    given = told(*rows, references={0: Reference("map", "counts")}, maps={"counts": COUNTS})
    (used,) = given.programs[0].maps
    assert (used.name, used.uses, used.bytes) == ("counts", ("looked up", "written"), 128)
    # a null pointer is told apart, so what is written is known
    assert answers(given)["change packets"] == "no"


def test_a_tail_call_hands_on():
    rows = (*wide(2, source=1), mov(3, 0), call(NUMBERS["tail_call"]), mov(0, 2), EXIT)
    chain = MapSpec("chain", "prog_array", 4, 4, 8, 0)
    given = told(*rows, references={0: Reference("map", "chain")}, maps={"chain": chain})
    assert given.programs[0].hands_on == ("chain",)
    assert "hands on  by a tail call to what is in chain" in words.text(given)


def test_what_is_too_large_is_not_called_harmless():
    # A diamond after another, each with its own constant: more states than the budget.
    rows: list[Row] = [load(2, 1, 16)]
    rows += [(0x07, 3, 0, 0, 1)] * 130_000
    given = told(*rows, mov(0, 2), EXIT)
    assert not given.programs[0].complete
    assert answers(given)["drop packets"] == "maybe"
    assert answers(given)["kill or signal processes"] == "no"
    assert "could not be walked to its end" in words.text(given)


@pytest.mark.parametrize(
    ("section", "type_", "says"),
    [
        ("xdp", "xdp", "before the kernel's network stack"),
        ("tcx/egress", "sched_cls", "sends, last before the queue"),
        ("tp_btf/sched_switch", "tracing", "tracepoint sched_switch"),
        ("?fentry.s/vfs_open", "tracing", "kernel function vfs_open is entered"),
        ("kretprobe/tcp_connect", "kprobe", "tcp_connect returns"),
        ("tp/sched/sched_switch", "tracepoint", "sched/sched_switch"),
        ("raw_tp", "raw_tracepoint", "tracepoint that it is attached to"),
        ("nothing", "unspec", "section 'nothing'"),
    ],
)
def test_when_it_runs(section: str, type_: str, says: str):
    assert says in hooks.runs(ProgramSpec("p", section, type_, "", 1))


@pytest.mark.parametrize("path", OBJECTS, ids=lambda p: p.name)
def test_our_own_objects(path):
    spec = ObjectSpec.read(path)
    found = explain(spec)
    assert all(one.complete for one in found.programs)
    assert json.loads(json.dumps(asdict(found)))["sha256"] == found.sha256
    said = words.text(found)
    for one in found.programs:
        assert one.name in said
        assert one.longest <= one.slots or one.functions
        # None of ours acts on processes; a change of that has to be made here too.
        for what in (
            "write user memory",
            "kill or signal processes",
            "make kernel functions fail",
            "change sockets",
        ):
            assert one.can[what].answer == "no"


PASSIVE = [
    ("xdp_counter", "xdp_counter"),
    ("batadv", "batadv"),
    ("tc_classifier", "tc_class_in"),
    ("empty", "empty"),
]


@pytest.mark.parametrize(("name", "program"), PASSIVE)
def test_ours_that_only_look(name: str, program: str):
    can = explain(ObjectSpec.read(object_path(name)), program=program).programs[0].can
    assert {can[what].answer for what in ("send packets back or elsewhere", "change packets")} == {"no"}


def test_link_watch_answers_and_mesh_filter_drops():
    watch = explain(ObjectSpec.read(object_path("link_watch")), program="link_watch").programs[0]
    assert {one.value for one in watch.returns} == {"XDP_DROP", "XDP_PASS", "XDP_TX"}
    assert watch.can["change packets"].answer == "yes"
    assert watch.can["change packets"].where[0].file.endswith(("link_watch.bpf.c", ".h"))
    assert watch.hands_on == ("chain",)
    mesh = explain(ObjectSpec.read(object_path("mesh_filter")), program="mesh_filter").programs[0]
    assert (mesh.can["drop packets"].answer, mesh.can["change packets"].answer) == ("yes", "no")


def test_a_program_that_is_not_there():
    with pytest.raises(ObjectError, match="no program 'nothing'; it has xdp_counter"):
        explain(ObjectSpec.read(object_path("xdp_counter")), program="nothing")


def test_the_picture_has_every_block_and_marks_loops():
    found = anatomy(mov(1, 9), (0x17, 1, 0, 0, 1), when(1, 0, -2, 0x55), mov(0, 2), EXIT)
    picture = words.dot(found, ["main"])
    assert picture.startswith("digraph bpf {")
    assert picture.count("[label=") == len(found.functions["main"].flow.blocks)
    assert '"main+1" -> "main+1" [color=red, style=dashed, label="loop"];' in picture
    assert picture.count("{") == picture.count("}")


def test_a_hostile_name_stays_in_its_quotes_and_line():
    found = anatomy(mov(0, 2), EXIT, evil=(EXIT,))
    object.__setattr__(found.functions["main"], "name", 'a"];\n\x1b[31m')
    picture = words.dot(found, ["main"])
    assert "\x1b" not in picture
    assert 'a\\"];' in picture
