"""Section `packets`: what each program costs per packet, by PROG_TEST_RUN, without a network.

What can be repeated on one packet runs 100 000 times in the kernel, program after program in turns. A probe
can not: it is numbered, signed and accepted once, and comes back changed. So probes are made by our own
`stamp`, reflected and taken in again, one run each, and an empty program that runs once in between tells what
the kernel's own stop watch costs.
"""

from __future__ import annotations

import asyncio
import struct
from contextlib import ExitStack
from ipaddress import ip_address
from typing import Final

import numpy as np

from mapek.bpf import LoadedObject, ObjectSpec, load, object_path
from mapek.bpf.dispatcher import SLOTS
from mapek.bpf.maps import ArrayMap
from mapek.errors import PermanentError
from mapek.knowledge.topology import Address
from mapek.sensors.link_watch_layout import IN_USE, PORT, WATCH, packed, peer_key
from mapek.sensors.link_watch_paths import PathTable
from mapek.sensors.stamp import session_key, template
from mapek.simulations.bench.plan import Budget
from mapek.simulations.bench.subjects import (
    ENDS,
    XDP_DROP,
    XDP_TX,
    Subject,
    batadv,
    chain_of,
    frame,
    mesh_filter,
    tc_classifier,
)
from mapek.simulations.bench.targets import Row

COUNTER_NS: Final = 10.0
REPEAT: Final = 100_000
TURNS: Final = 31
PROBES: Final = 1500
_SECRET: Final = bytes(range(32))


class Loopback:
    """link_watch as prober and as its own peer: path 0 from `here` to `there`, path 1 back."""

    def __init__(self, loaded: LoadedObject, here: Address, there: Address) -> None:
        self._stamp, self._receive = loaded.programs["stamp"], loaded.programs["link_watch"]
        self._table = PathTable(loaded.map("configs", ArrayMap), loaded.map("paths", ArrayMap), 2, 10_000_000)
        probe = session_key(_SECRET, here, there), session_key(_SECRET, there, here)
        for index, (local, peer, keys) in enumerate(((here, there, probe), (there, here, probe[::-1]))):
            self._table.restart(index, 1)
            values = {
                "local": list(packed(local)),
                "peer": list(packed(peer)),
                "own_key": keys[0],
                "peer_key": keys[1],
                "reply_rate": 1_000_000,
                "reply_burst": 1_000_000,
            }
            self._table.configure(index, values, IN_USE | WATCH)
            loaded.maps["peers"].update(peer_key(0, peer, local), struct.pack("=I", index))
        self._packet = frame(here, there, PORT, PORT, template(0))
        self.took: dict[str, list[int]] = {"stamp": [], "reflect": [], "answer": []}

    def run(self) -> None:
        """One probe there and back. Raises PermanentError when one of the three does not do its part."""
        stamped = self._stamp.test_run(self._packet)
        reply = self._receive.test_run(stamped.data)
        taken = self._receive.test_run(reply.data)
        newest = self._table.next_seq(0)
        said = (reply.retval, taken.retval, self._table.answered_between(0, newest - 1, newest))
        if said != (XDP_TX, XDP_DROP, 1):
            raise PermanentError("measure", "link_watch", f"it said {said}", "see its tests")
        for name, found in (("stamp", stamped), ("reflect", reply), ("answer", taken)):
            self.took[name].append(found.duration_ns)


async def measure(budget: Budget) -> list[Row]:
    """All rows, in ns per packet; the notes hold the 5th and the 95th percentile of the turns."""
    del budget
    return await asyncio.to_thread(_measure)


def _measure() -> list[Row]:
    foreign = frame(*ENDS, 5000, 6000, bytes(64))
    counter, watch = ObjectSpec.read(object_path("xdp_counter")), ObjectSpec.read(object_path("link_watch"))
    parts = {"link_watch", "stamp"}
    with ExitStack() as life:
        empty = life.enter_context(load(ObjectSpec.read(object_path("empty")))).programs["empty"]
        alone = life.enter_context(load(counter)).programs["xdp_counter"]
        watcher = life.enter_context(load(watch, programs=parts))
        subjects = {
            "empty": Subject(empty, foreign),
            "xdp_counter": Subject(alone, foreign),
            "link_watch, foreign packet": Subject(watcher.programs["link_watch"], foreign),
        }
        for count in (0, 1, 2, 4, len(SLOTS)):
            head = life.enter_context(chain_of(counter, "xdp_counter", count))
            subjects[f"dispatcher, {count} x xdp_counter"] = Subject(head, foreign)
        for more in (mesh_filter, batadv, tc_classifier):
            subjects |= more(life)
        once = Subject(empty, foreign)
        loops = {4: Loopback(watcher, *ENDS)}
        six = life.enter_context(load(watch, programs=parts))
        loops[6] = Loopback(six, ip_address("fe80::1"), ip_address("fe80::2"))
        for _ in range(TURNS):
            for subject in subjects.values():
                subject.run(REPEAT)
        for _ in range(PROBES):
            once.run(1)
            for loop in loops.values():
                loop.run()
    return [*_repeated(subjects), *_single(once, loops)]


def _repeated(subjects: dict[str, Subject]) -> list[Row]:
    took = {name: subject.took for name, subject in subjects.items()}
    rows = [_row(name, values) for name, values in took.items()]
    counted = _median(took["xdp_counter"]) - _median(took["empty"])
    rows.insert(2, Row("xdp_counter over empty", counted, "ns", COUNTER_NS))
    one, most = (_median(took[f"dispatcher, {count} x xdp_counter"]) for count in (1, len(SLOTS)))
    each = round((most - one) / (len(SLOTS) - 1) - counted, 1)
    first = one - _median(took["xdp_counter"])
    note = "its tail call; what xdp_counter itself costs is taken off"
    rows.append(Row("dispatcher before one program", first, "ns"))
    rows.append(Row("dispatcher, cost of each further program", each, "ns", None, note))
    return rows


def _single(once: Subject, loops: dict[int, Loopback]) -> list[Row]:
    base = _median(once.took)
    rows = [_row("stop watch (empty, one run)", once.took)]
    for version, loop in loops.items():
        for name, word in (("stamp", "send"), ("reflect", "reflect"), ("answer", "take in the answer of")):
            values = [value - base for value in loop.took[name]]
            rows.append(_row(f"link_watch, {word} an IPv{version} probe", values, "less the stop watch; "))
    return rows


def _median(values: list[int]) -> float:
    return float(np.median(values))


def _row(name: str, values: list[int] | list[float], note: str = "") -> Row:
    low, middle, high = np.percentile(values, (5, 50, 95))
    return Row(name, float(middle), "ns", None, f"{note}{low:.0f}-{high:.0f}, n = {len(values)}")
