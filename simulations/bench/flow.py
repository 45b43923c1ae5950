"""Section `flow`: what counting costs a saturated flow, beyond a program that does nothing.

One core sends 60-byte frames over a veth pair as fast as it can, and takes them in: the receiving end's XDP and its
stack run in the sender's softirq, so that its CPU time per packet is that of both sides (`child.flood`), and what a
program adds to it is its share of that core. The programs are exchanged by an update of the link, in changing order;
each is compared with the empty one of its own turn. `bpf_stats` would say it more directly, but costs four times what
the counter does. The 95 % interval of the median is by order statistics; where the machine's noise makes it wider than
the target, the share is not told as measured. Beside it stands what PROG_TEST_RUN makes of it: the programs' difference
in ns, with everything in the cache, as a share of the packet's whole cost. After the turns, the same flow shows by
`bpf_stats` what the programs of net_events take, which have no test run.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

import numpy as np

from mapek.bpf import (
    LoadedObject,
    ObjectSpec,
    PerCpuArrayMap,
    ProgArrayMap,
    Program,
    attach_xdp,
    load,
    object_path,
)
from mapek.bpf.xdp import XdpLink
from mapek.errors import PermanentError
from mapek.simulations.bench.plan import Budget
from mapek.simulations.bench.run_stats import net_events_rows
from mapek.simulations.bench.targets import Row
from mapek.simulations.paired import median_interval
from mapek.simulations.road import Road
from mapek.simulations.turns import in_turns

SHARE_PERCENT: Final = 1.0
TURNS: Final = 60
SLICES: Final = 24
DATAGRAMS: Final = 1280
REPEAT: Final = 50_000
REPEATS: Final = 15
EMPTY, ALONE, CHAINED = "empty", "xdp_counter", "dispatcher and xdp_counter"


class Programs:
    """The programs under test, loaded in the receiver's namespace; `close` unloads them."""

    def __init__(self) -> None:
        counter = ObjectSpec.read(object_path("xdp_counter"))
        self._loaded: list[LoadedObject] = []
        self.programs: dict[str, Program] = {}
        self.counters: dict[str, PerCpuArrayMap] = {}
        try:
            self.programs[EMPTY] = self._load(ObjectSpec.read(object_path("empty"))).programs["empty"]
            alone = self._load(counter)
            head = self._load(ObjectSpec.read(object_path("dispatcher")))
            chain = head.map("chain", ProgArrayMap)
            member = self._load(counter, {"slot": 0}, {"chain": chain})
            chain.set(0, member.programs["xdp_counter"].fd)
        except BaseException:
            self.close()
            raise
        self.programs |= {ALONE: alone.programs["xdp_counter"], CHAINED: head.programs["dispatcher"]}
        for name, loaded in ((ALONE, alone), (CHAINED, member)):
            self.counters[name] = loaded.map("counters", PerCpuArrayMap)

    def _load(
        self,
        spec: ObjectSpec,
        rodata: dict[str, int] | None = None,
        reuse: dict[str, ProgArrayMap] | None = None,
    ) -> LoadedObject:
        self._loaded.append(load(spec, rodata=rodata, reuse=reuse))
        return self._loaded[-1]

    def counted(self, name: str) -> int:
        """Packets that the counter of `name` has seen; 0 for the empty program."""
        return int(self.counters[name].summed()[1][:, 0].sum()) if name in self.counters else 0

    def close(self) -> None:
        """Close them all."""
        for loaded in self._loaded:
            loaded.close()


async def measure(budget: Budget) -> list[Row]:
    """ns per packet with each program, and each one's share beyond the empty one."""
    chance = random.Random(budget.seed)
    async with AsyncExitStack() as life:
        road = await life.enter_async_context(Road())
        programs = await road.receiver.run(Programs)
        life.callback(programs.close)
        link = await road.receiver.run(lambda: attach_xdp(programs.programs[EMPTY], road.index, "native"))
        life.push_async_callback(road.receiver.run, link.detach)
        took = await _turns(road, link, programs, chance)
        await road.receiver.run(partial(link.update, programs.programs[EMPTY]))
        events = await net_events_rows(
            road.sender, road.receiver, programs.programs[EMPTY], lambda: road.flood(SLICES, DATAGRAMS)
        )
        alone = await asyncio.to_thread(_by_test_run, programs)
    return [*_rows(took), _computed(alone, float(np.median(took[EMPTY]))), *events]


async def _turns(
    road: Road, link: XdpLink, programs: Programs, chance: random.Random
) -> dict[str, list[float]]:
    async def turn(name: str) -> float:
        await road.receiver.run(partial(link.update, programs.programs[name]))
        before = programs.counted(name)
        took = float(np.median(await road.flood(SLICES, DATAGRAMS)))
        await asyncio.sleep(0)
        seen, sent = programs.counted(name) - before, SLICES * DATAGRAMS
        # What is still in the veth's queue when the sender is done is a handful.
        if name in programs.counters and not 0.99 * sent <= seen <= 1.01 * sent:
            why = f"it saw {seen} of {sent} packets"
            raise PermanentError("measure", f"flow through {name}", why, "leave it the core")
        return took

    await road.flood(SLICES, DATAGRAMS)
    rounds: list[dict[str, float]] = []
    await in_turns(tuple(programs.programs), turn, rounds, chance, lambda: len(rounds) >= TURNS)
    return {name: [one[name] for one in rounds] for name in programs.programs}


def _rows(took: dict[str, list[float]]) -> list[Row]:
    empty = np.array(took[EMPTY])
    rows = []
    for name, values in took.items():
        low, middle, high = np.percentile(values, (5, 50, 95))
        note = f"p5-p95 {low:.0f}-{high:.0f}, {1e3 / middle:.2f} M packets/s, n = {len(values)} turns"
        rows.append(Row(f"{name}: a packet at saturation", round(float(middle), 1), "ns", None, note))
    for name in (ALONE, CHAINED):
        share = 100 * (np.array(took[name]) / empty - 1)
        low, high = median_interval(share) or (-np.inf, np.inf)
        target, middle = SHARE_PERCENT if name == ALONE else None, round(float(np.median(share)), 2)
        note = f"95 % interval {low:.2f} to {high:.2f} %, {len(share)} turns"
        noisy = high - low > 2 * SHARE_PERCENT
        said = f"the machine is too noisy: {middle} %, {note}" if noisy else note
        rows.append(Row(f"{name}: CPU beyond empty", None if noisy else middle, "%", target, said))
    return rows


def _by_test_run(programs: Programs) -> dict[str, float]:
    """ns a run, without a network, in turns."""
    # Ethernet, IPv4 and UDP as the flow has them, up to the first byte that no program reads.
    packet = bytes(12) + b"\x08\x00" + b"\x45" + bytes(8) + b"\x11" + bytes(36)
    took: dict[str, list[int]] = {name: [] for name in (EMPTY, ALONE)}
    for _ in range(REPEATS):
        for name, values in took.items():
            values.append(programs.programs[name].test_run(packet, REPEAT).duration_ns)
    return {name: float(np.median(values)) for name, values in took.items()}


def _computed(alone: dict[str, float], packet_ns: float) -> Row:
    more = alone[ALONE] - alone[EMPTY]
    note = f"{more:.0f} ns by PROG_TEST_RUN, of {packet_ns:.0f} ns a packet"
    return Row(f"{ALONE}: CPU beyond empty, computed", round(100 * more / packet_ns, 2), "%", None, note)
