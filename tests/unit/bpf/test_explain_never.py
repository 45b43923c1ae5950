"""What `explain` must never call impossible: programs that do it in a way that a walk can lose sight of.

Each is one that the verifier has no quarrel with, by hand or from the compiler; `harmless` rows hold the other side,
for an answer that is always "maybe" would be true as well.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mapek.bpf import MapSpec, ObjectSpec, helpers, words
from mapek.bpf.anatomy import Reference
from mapek.bpf.explain import Explanation, explain
from tests.support.bytecode import EXIT, Row, anatomy, call, copy, load, mov, store, when, wide
from tests.support.clang import compiled

NUMBERS = {name: number for number, name in enumerate(helpers.NAMES)}
DROP = "drop packets"
CHANGE = "change packets"


def told(rows: tuple[Row, ...], type_: str, **more) -> Explanation:
    found = anatomy(*rows, type_=type_, **more)
    return explain(found.spec, found)


def answers(found: Explanation) -> dict[str, str]:
    return {what: ability.answer for what, ability in found.programs[0].can.items()}


def helper(name: str) -> Row:
    return call(NUMBERS[name])


ZEROED = (mov(6, 2), store(10, -8, 6, 0x7B))
"""The number 2 on the stack, at -8."""
BACK = (load(0, 10, -8, 0x79), EXIT)
"""Returns what is there."""
TO_STACK = (copy(2, 10), (0x07, 2, 0, 0, -8))
"""r2 is the address of it."""
WRITES = (load(2, 1, 0), mov(0, 0), EXIT)
CALLED = {"references": {5: Reference("function", "other")}}
SPILLED = (load(7, 1, 0), store(10, -16, 7, 0x7B))
"""The packet's address on the stack, at -16."""

# name: rows, program type, what is asked, the answer, and the rest of the object
LOST = {
    "a helper writes to the stack": (
        (*ZEROED, copy(3, 10), (0x07, 3, 0, 0, -8), mov(2, 0), mov(4, 8), helper("skb_load_bytes"), *BACK),
        "sched_cls", DROP, "maybe", {},
    ),
    "a helper that is given nothing of it does not": (
        (*ZEROED, helper("get_smp_processor_id"), mov(0, 0), *BACK), "xdp", DROP, "no", {},
    ),
    "a helper that only reads it does not": (
        (*ZEROED, *TO_STACK, helper("map_lookup_elem"), *BACK), "xdp", DROP, "no", {},
    ),
    "a function writes to the stack of its caller": (
        (*ZEROED, *TO_STACK, copy(1, 2), (0x85, 0, 1, 0, 2), *BACK),
        "xdp", DROP, "maybe", CALLED | {"other": (mov(2, 1), store(1, 0, 2, 0x7B), mov(0, 0), EXIT)},
    ),
    "a function that only reads it": (
        (*ZEROED, *TO_STACK, copy(1, 2), (0x85, 0, 1, 0, 2), *BACK),
        "xdp", DROP, "no", CALLED | {"other": WRITES},
    ),
    "a function hands it to a helper that writes there": (
        (*ZEROED, *TO_STACK, copy(1, 2), (0x85, 0, 1, 0, 2), *BACK),
        "xdp", DROP, "maybe",
        CALLED | {"other": (mov(2, 0), mov(3, 1), mov(4, 0), helper("probe_read_kernel"), mov(0, 0), EXIT)},
    ),
    "a callback writes there": (
        (*ZEROED, *TO_STACK, copy(3, 2), *wide(2, source=4), mov(1, 1), mov(4, 0), helper("loop"), *BACK),
        "xdp", DROP, "maybe",
        {
            "references": {5: Reference("function", "other")},
            "other": (mov(3, 1), store(2, 0, 3, 0x7B), mov(0, 0), EXIT),
        },
    ),
    "a store through a copy of the frame pointer": (
        (*ZEROED, copy(2, 10), mov(3, 1), store(2, -8, 3, 0x7B), *BACK), "xdp", DROP, "yes", {},
    ),
    "a store through a pointer to the stack that was on the stack": (
        (
            *ZEROED, *TO_STACK, store(10, -16, 2, 0x7B), copy(3, 10), load(4, 3, -16, 0x79), mov(5, 1),
            store(4, 0, 5, 0x7B), *BACK,
        ),
        "xdp", DROP, "yes", {},
    ),
    "a narrow store keeps the low bits": (
        (mov(6, 0x101), store(10, -1, 6, 0x73), load(0, 10, -1, 0x71), EXIT), "xdp", DROP, "yes", {},
    ),
    "a number in a narrow store": (
        ((0x72, 10, 0, -1, 0x102), load(0, 10, -1, 0x71), EXIT), "xdp", DROP, "no", {},
    ),
    "the upper half after a comparison of the lower": (
        (helper("ktime_get_ns"), when(0, 5, 2, 0x16), mov(0, 2), EXIT, (0x77, 0, 0, 0, 32), (0x07, 0, 0, 0, 2), EXIT),
        "xdp", DROP, "maybe", {},
    ),
    "the upper half after a narrow order": (
        (helper("ktime_get_ns"), when(0, 2, 2, 0xA6), mov(0, 2), EXIT, (0x77, 0, 0, 0, 32), (0x07, 0, 0, 0, 2), EXIT),
        "xdp", DROP, "maybe", {},
    ),
    "a load-acquire": (
        (mov(0, 2), mov(6, 1), store(10, -8, 6, 0x7B), (0xDB, 0, 10, -8, 0x100), EXIT), "xdp", DROP, "maybe", {},
    ),
    "a store-release": ((*ZEROED, mov(6, 1), (0xDB, 10, 6, -8, 0x110), *BACK), "xdp", DROP, "maybe", {}),
    "a classic load behind the end of the packet ends it": (
        (copy(6, 1), (0x20, 0, 0, 0, 12), mov(0, -1), EXIT), "socket_filter", DROP, "yes", {},
    ),
    "a number that is added to where a pointer may be": (
        (
            mov(6, 0), load(2, 1, 16), when(2, 7, 1), load(6, 1, 0), (0x07, 6, 0, 0, 1), when(6, 1, 2),
            mov(0, 2), EXIT, mov(0, 1), EXIT,
        ),
        "xdp", DROP, "yes", {},
    ),
    "a number of which nothing is known, taken off the packet's address": (
        (*SPILLED, load(3, 10, -24, 0x79), (0x1F, 7, 3, 0, 0), mov(3, 1), store(7, 0, 3), mov(0, 2), EXIT),
        "xdp", CHANGE, "yes", {},
    ),
    "the packet's address, lost": (
        (*SPILLED, copy(2, 10), load(3, 2, -16, 0x79), mov(4, 1), store(3, 0, 4), mov(0, 2), EXIT),
        "xdp", CHANGE, "maybe", {},
    ),
    "a packet that is read by an address that was lost": (
        (*SPILLED, copy(2, 10), load(3, 2, -16, 0x79), load(4, 3, 0), mov(0, 2), EXIT),
        "xdp", "read packets", "maybe", {},
    ),
    "an address that was lost, given to a helper": (
        (*SPILLED, copy(2, 10), load(1, 2, -16, 0x79), mov(2, 4), mov(0, 2), helper("csum_update"), mov(0, 2), EXIT),
        "xdp", "read packets", "maybe", {},
    ),
    "the context, written through an address that was lost": (
        (store(10, -16, 1, 0x7B), copy(2, 10), load(3, 2, -16, 0x79), mov(4, 1), store(3, 8, 4), mov(0, 0), EXIT),
        "sched_cls", "change what the kernel knows of a packet", "maybe", {},
    ),
    "an address that outlives a helper": (
        (
            *SPILLED, *TO_STACK, helper("map_peek_elem"), load(7, 10, -16, 0x79), mov(3, 1), store(7, 0, 3),
            mov(0, 2), EXIT,
        ),
        "xdp", CHANGE, "yes", {},
    ),
    "a callback that nobody knows": (
        (mov(1, 1), load(2, 10, -8, 0x79), mov(3, 0), mov(4, 0), helper("loop"), mov(0, 2), EXIT),
        "xdp", DROP, "maybe", {},
    ),
    "sockets in a map": (
        (*wide(1, source=1), copy(2, 10), helper("map_lookup_elem"), load(3, 0, 8, 0x79), mov(0, 2), EXIT),
        "xdp", "read kernel memory", "maybe",
        {"references": {0: Reference("map", "m")}, "maps": {"m": MapSpec("m", "sockmap", 4, 8, 1, 0)}},
    ),
    "a map within one": (
        (
            *wide(1, source=1), copy(2, 10), helper("map_lookup_elem"), copy(1, 0), copy(2, 10),
            helper("map_lookup_elem"), load(3, 0, 0), mov(0, 2), EXIT,
        ),
        "xdp", "read kernel memory", "no",
        {"references": {0: Reference("map", "m")}, "maps": {"m": MapSpec("m", "array_of_maps", 4, 4, 1, 0)}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LOST.values(), ids=LOST)
def test_what_the_walk_can_lose_sight_of(case):
    rows, type_, what, answer, more = case
    assert answers(told(rows, type_, **more))[what] == answer


KERNEL, USER, SOCKETS = "read kernel memory", "read user memory", "change sockets"
DENY = "deny what a process asks for"
SENDS_PACKET = (*wide(3, 64 << 32), helper("perf_event_output"), mov(0, 2), EXIT)
SENDS_DATA = (*wide(3), helper("perf_event_output"), mov(0, 2), EXIT)
STORES = (mov(3, 1), store(1, 8, 3), mov(0, 1), EXIT)

ANSWERS = [
    (SENDS_PACKET, "xdp", "", "read packets", "yes"),
    (SENDS_DATA, "xdp", "", "read packets", "no"),
    *(
        ((mov(0, 2), EXIT), type_, "", DROP, "yes")
        for type_ in ("lwt_in", "lwt_out", "lwt_xmit", "lwt_seg6local")
    ),
    ((mov(0, 0), EXIT), "lwt_in", "", DROP, "no"),
    ((mov(0, 1), EXIT), "lwt_in", "", DROP, "yes"),
    ((mov(0, 128), EXIT), "lwt_in", "", "send packets back or elsewhere", "yes"),
    ((mov(0, 0), EXIT), "sk_skb", "", DROP, "yes"),
    ((mov(0, 1), EXIT), "sk_skb", "", DROP, "no"),
    ((mov(0, 1), EXIT), "sched_act", "", DROP, "yes"),
    ((mov(0, 1), EXIT), "sched_cls", "", DROP, "no"),
    # a redirect to nowhere
    ((mov(0, 4), EXIT), "xdp", "", DROP, "maybe"),
    ((mov(0, 7), EXIT), "sched_cls", "", DROP, "maybe"),
    ((mov(0, 7), EXIT), "lwt_xmit", "", DROP, "maybe"),
    *(
        ((helper(name), mov(0, 0), EXIT), "kprobe", "", what, "maybe")
        for name in ("snprintf", "trace_printk", "trace_vprintk", "seq_printf", "get_stack")
        for what in (KERNEL, USER)
    ),
    ((helper("snprintf_btf"), mov(0, 0), EXIT), "kprobe", "", USER, "maybe"),
    ((helper("ktime_get_ns"), mov(0, 0), EXIT), "kprobe", "", USER, "no"),
    ((mov(0, 0), EXIT), "lsm", "lsm_cgroup/socket_bind", DENY, "yes"),
    ((mov(0, 1), EXIT), "lsm", "lsm_cgroup/socket_bind", DENY, "no"),
    ((mov(0, 0), EXIT), "tracing", "fmod_ret/bpf_modify_return_test", DENY, "no"),
    ((mov(0, -1), EXIT), "tracing", "fmod_ret/bpf_modify_return_test", DENY, "yes"),
    ((helper("lwt_push_encap"), mov(0, 0), EXIT), "lwt_in", "", CHANGE, "maybe"),
    ((helper("redirect_neigh"), EXIT), "sched_cls", "", CHANGE, "maybe"),
    ((helper("redirect"), EXIT), "sched_cls", "", CHANGE, "no"),
    (STORES, "cgroup_sock", "", SOCKETS, "maybe"),
    ((load(1, 1, 0, 0x79), *STORES), "struct_ops", "struct_ops/init", SOCKETS, "maybe"),
    (STORES, "kprobe", "", "write user memory", "maybe"),
]


@pytest.mark.parametrize(("rows", "type_", "section", "what", "answer"), ANSWERS)
def test_what_a_program_is_asked(rows: tuple[Row, ...], type_: str, section: str, what: str, answer: str):
    assert answers(told(rows, type_, section=section))[what] == answer


@pytest.mark.parametrize(("kind", "answer"), [("sockmap", "maybe"), ("hash", "no")])
def test_what_is_put_into_a_map_of_sockets(kind: str, answer: str):
    found = told(
        (helper("map_update_elem"), mov(0, 2), EXIT), "xdp", maps={"m": MapSpec("m", kind, 4, 8, 1, 0)}
    )
    assert answers(found)[SOCKETS] == answer


@pytest.mark.parametrize("name", ["probe_read", "probe_read_str"])
def test_an_address_that_may_be_either(name: str):
    found = answers(told((helper(name), mov(0, 0), EXIT), "kprobe"))
    assert "no" not in (found[KERNEL], found[USER])


@pytest.mark.parametrize(
    ("row", "references", "name"),
    [
        ((0x85, 0, 2, 0, -1), {0: Reference("extern", "bpf_send_signal_task")}, "bpf_send_signal_task"),
        ((0x85, 0, 2, 0, 7), {}, "a function without a name"),
        ((0x85, 0, 0, 0, -1), {0: Reference("extern", "bpf_new")}, "bpf_new"),
        (call(999), {}, "helper 999"),
    ],
)
def test_nothing_is_impossible_for_what_nobody_here_knows(row: Row, references, name: str):
    found = told((row, mov(0, 2), EXIT), "xdp", references=references)
    assert set(answers(found).values()) == {"maybe"}
    said = words.text(found)
    assert "cannot" not in said
    assert f"by {name}" in " ".join(said.split())


def test_what_is_thrown_is_returned():
    found = told(
        (mov(1, 1), (0x85, 0, 2, 0, -1), mov(0, 2), EXIT),
        "xdp",
        references={1: Reference("extern", "bpf_throw")},
    )
    assert {one.value for one in found.programs[0].returns} == {"XDP_PASS", "any value"}


HEAD = """#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
char LICENSE[] SEC("license") = "GPL";
"""
SOURCES = {
    "helper": """SEC("tc")
int look(struct __sk_buff *skb)
{
	__u32 m = 0;
	bpf_skb_load_bytes(skb, 14, &m, 4);
	if (m == 0x12345678)
		return TC_ACT_SHOT;
	return TC_ACT_OK;
}
""",
    "function": """static __attribute__((noinline)) int fill(struct __sk_buff *skb, int *verdict)
{
	*verdict = skb->len > 100 ? TC_ACT_SHOT : TC_ACT_OK;
	return 0;
}
SEC("tc")
int look(struct __sk_buff *skb)
{
	int verdict = TC_ACT_OK;
	fill(skb, &verdict);
	return verdict;
}
""",
    "callback": """static long turn(__u32 index, int *verdict)
{
	*verdict = index == 3 ? TC_ACT_SHOT : TC_ACT_OK;
	return 0;
}
SEC("tc")
int look(struct __sk_buff *skb)
{
	int verdict = TC_ACT_OK;
	bpf_loop(4, turn, &verdict, 0);
	return verdict;
}
""",
}


@pytest.mark.needs("clang")
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_compiled_one_that_drops(source: str, tmp_path: Path):
    file = tmp_path / "look.c"
    file.write_text(HEAD + source)
    assert answers(explain(ObjectSpec.read(compiled(file))))[DROP] != "no"
