"""What helpers do with what they are given, as the walk of `values` needs it: what they return and whom they call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from mapek.bpf import helpers
from mapek.bpf.alu import ANY, UNKNOWN, Value, narrow
from mapek.bpf.facts import Facts, Place
from mapek.bpf.spec import MapSpec

_REDIRECTS: Final = helpers.EFFECTS["redirects packets"]
_LOOKUPS: Final = frozenset(
    "map_lookup_elem map_lookup_percpu_elem sk_storage_get task_storage_get inode_storage_get cgrp_storage_get".split()
)
_READS_PACKET: Final = frozenset("skb_load_bytes skb_load_bytes_relative xdp_load_bytes csum_diff".split())
_COPIES_PACKET: Final = frozenset("perf_event_output skb_output xdp_output".split())
"""Beside the data that they are given they put as much of the packet as the flags say."""
WRITES_NOTHING: Final = frozenset(
    (
        "map_lookup_elem map_lookup_percpu_elem map_update_elem map_delete_elem map_push_elem ringbuf_output "
        "perf_event_output skb_output xdp_output skb_store_bytes xdp_store_bytes csum_diff trace_printk redirect_map"
    ).split()
)
"""Helpers that only read the memory that they are given; what is not here may write to it."""
_MAP_ACCESS: Final = {
    "map_lookup_elem": "looked up", "map_lookup_percpu_elem": "looked up", "map_peek_elem": "looked up",
    "map_update_elem": "updated", "map_push_elem": "updated", "map_pop_elem": "updated",
    "map_delete_elem": "deleted from", "for_each_map_elem": "walked", "ringbuf_reserve": "sent to user space",
    "ringbuf_output": "sent to user space", "ringbuf_query": "asked for its fill",
    "redirect_map": "redirected by", "sk_storage_get": "updated", "task_storage_get": "updated",
    "user_ringbuf_drain": "received from user space",
}  # fmt: skip
_SOCKETS: Final = ("sockmap", "sockhash", "xskmap")
"""Maps in which a helper looks up pointers to objects of the kernel."""
_NESTED: Final = ("array_of_maps", "hash_of_maps")
_CTXLEN: Final = 0xFFFFF << 32
_CALLBACK: Final = {
    "for_each_map_elem": 2, "find_vma": 3, "loop": 2, "timer_set_callback": 2, "user_ringbuf_drain": 2
}  # fmt: skip
"""In which register a helper is given the function that it calls."""


def called(
    name: str, registers: Sequence[Value], place: Place, facts: Facts, maps: Mapping[str, MapSpec]
) -> Value:
    """What a helper returns; what it does is added to `facts`."""
    if name in _READS_PACKET:
        facts.packet_reads.add(place)
    if name in _COPIES_PACKET and any(not isinstance(a, int) or a & _CTXLEN for a in registers[3]):
        facts.packet_reads.add(place)
    if name == "tail_call":
        targets = _named("map:", registers[2])
        facts.hands_on[place] = targets[0] if len(targets) == 1 and len(registers[2]) == 1 else ""
        for program_array in targets:
            facts.touch(program_array, "handed on to")
        return ANY
    _given(name, registers, place, facts)
    used = [one for register in registers[1:3] for one in _named("map:", register)]
    for used_map in used:
        facts.touch(used_map, _MAP_ACCESS.get(name, f"used by {name}"))
    if name in _LOOKUPS and (found := _looked_up(registers[1], maps)):
        return found
    if name == "ringbuf_reserve":
        return frozenset((0, "ring"))
    if name in _REDIRECTS:
        # The lowest bits of a map redirect's flags are what it returns when there is nothing in the map.
        otherwise = {a & 3 for a in registers[3] if isinstance(a, int)} if name == "redirect_map" else ()
        return frozenset((f"helper:{name}", *otherwise))
    return frozenset(("kernel",)) if name == "get_current_task_btf" else UNKNOWN


def _looked_up(map_: Value, maps: Mapping[str, MapSpec]) -> Value:
    """What is found in a map; nothing if it is not known which."""
    inner = [one for one in _named("value:", map_) if one in maps and maps[one].type in _NESTED]
    used = [*_named("map:", map_), *inner]
    if not used:
        return frozenset()
    # Values of maps within one are told as its own.
    found: Value = frozenset((0, *(f"value:{one}" for one in used)))
    sure = "unknown" not in map_ and not any(one in maps and maps[one].type in _SOCKETS for one in used)
    return narrow(found if sure else found | UNKNOWN)


def _given(helper: str, registers: Sequence[Value], place: Place, facts: Facts) -> None:
    """Memory that a helper is given: of a map it may be written, of a packet only read (`pkt_access`)."""
    for atom in (atom for register in registers[1:6] for atom in register):
        if atom == "packet":
            facts.packet_reads.add(place)
        elif atom == "unknown":
            facts.unknown_given.add(place)
        elif isinstance(atom, str) and atom.startswith("value:"):
            facts.touch(atom[6:], f"given to {helper}")


def callbacks(helper: str, registers: Sequence[Value]) -> Iterator[tuple[str, tuple[Value, ...]]]:
    """The functions that a helper calls, now or later, with their arguments; "" for one that is not known."""
    if (at := _CALLBACK.get(helper)) is None:
        return
    names = _named("func:", registers[at])
    if not names or "unknown" in registers[at]:
        yield "", ()
    values: Value = frozenset(f"value:{one}" for one in _named("map:", registers[1]))
    if not values or "unknown" in registers[1]:
        values |= UNKNOWN
    key: Value = frozenset(("stack",))
    args: Mapping[str, tuple[Value, ...]] = {
        "loop": (ANY, registers[3]),
        "for_each_map_elem": (UNKNOWN, key, values, registers[3]),
        "timer_set_callback": (UNKNOWN, key, registers[1]),
        "user_ringbuf_drain": (frozenset(("ring",)), registers[3]),
        "find_vma": (frozenset(("kernel",)), frozenset(("kernel",)), registers[4]),
    }
    given = args[helper]
    for name in names:
        yield name, given + (ANY,) * (5 - len(given))


def _named(kind: str, value: Value) -> list[str]:
    return [atom.removeprefix(kind) for atom in value if isinstance(atom, str) and atom.startswith(kind)]
