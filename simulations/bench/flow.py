"""Section `flow`: what counting costs a saturated flow, beyond a program that does nothing.

One core sends 60-byte frames over a veth pair as fast as it can, and takes them in: the receiving end's XDP and its
stack run in the sender's softirq, so that time per packet at saturation is CPU per packet, of both sides, and what a
program adds to it is its share of that core. The programs are exchanged by an update of the link, in changing order;
each is compared with the empty one of its own turn. `bpf_stats` would say it more directly, but costs four times what
the counter does. The 95 % interval of the median is found by resampling the turns; where the machine's noise makes it
wider than the target, the share is not told as measured. Beside it stands what PROG_TEST_RUN makes of it: the
programs' difference in ns, with everything in the cache, as a share of the packet's whole cost. After the turns, the
same flow shows by `bpf_stats` what the programs of net_events take, which have no test run.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import numpy.typing as npt
from pyroute2 import IPRoute

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
from mapek.errors import FeatureError, PermanentError
from mapek.simulations.bench.native import Native, compile_c
from mapek.simulations.bench.plan import Budget
from mapek.simulations.bench.run_stats import net_events_rows
from mapek.simulations.bench.targets import Row
from mapek.simulations.netns import Namespace

SHARE_PERCENT: Final = 1.0
TURNS: Final = 60
SLICES: Final = 24
DATAGRAMS: Final = 1280
REPEAT: Final = 50_000
REPEATS: Final = 15
PORT: Final = 9
SENDER, RECEIVER = "10.9.0.1", "10.9.0.2"
EMPTY, ALONE, CHAINED = "empty", "xdp_counter", "dispatcher and xdp_counter"
Floats = npt.NDArray[np.float64]


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
    with TemporaryDirectory(prefix="mapek-bench-") as folder:
        try:
            program = await compile_c("udp_flood", Path(folder))
        except FeatureError as error:
            return [Row(f"{ALONE}: CPU beyond empty", None, "%", SHARE_PERCENT, str(error))]
        async with AsyncExitStack() as life:
            here, there = [await life.enter_async_context(Namespace(name)) for name in ("sender", "receiver")]
            index = await _lay(here, there)
            # Somebody to take them, who lets them drop when its buffer is full: no answers by ICMP.
            sink = life.enter_context(await there.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sink.bind((RECEIVER, PORT))
            programs = await there.run(Programs)
            life.callback(programs.close)
            link = await there.run(lambda: attach_xdp(programs.programs[EMPTY], index, "native"))
            life.push_async_callback(there.run, link.detach)
            cpu = max(os.sched_getaffinity(0))
            flood = await life.enter_async_context(Native(program, RECEIVER, PORT, cpu, inside=here))
            took = await _turns(flood, there, link, programs, chance)
            await there.run(partial(link.update, programs.programs[EMPTY]))
            events = await net_events_rows(
                here, there, programs.programs[EMPTY], lambda: flood.ask(SLICES, DATAGRAMS)
            )
            alone = await asyncio.to_thread(_by_test_run, programs)
    return [*_rows(took, chance), _computed(alone, float(np.median(took[EMPTY]))), *events]


async def _lay(here: Namespace, there: Namespace) -> int:
    """The veth pair with its addresses; returns the receiver's ifindex."""

    def make(route: IPRoute) -> None:
        peer = {"ifname": "in", "net_ns_pid": there.pid}
        route.link("add", ifname="out", kind="veth", peer=peer)

    def raise_(name: str, address: str, route: IPRoute) -> int:
        index: int = route.link_lookup(ifname=name)[0]
        route.addr("add", index=index, address=address, prefixlen=24)
        route.link("set", index=index, state="up")
        return index

    await here.route(make)
    await here.route(partial(raise_, "out", SENDER))
    return await there.route(partial(raise_, "in", RECEIVER))


async def _turns(
    flood: Native, there: Namespace, link: XdpLink, programs: Programs, chance: random.Random
) -> dict[str, list[float]]:
    took: dict[str, list[float]] = {name: [] for name in programs.programs}
    await flood.ask(SLICES, DATAGRAMS)
    for _ in range(TURNS):
        for name in chance.sample(list(took), len(took)):
            await there.run(partial(link.update, programs.programs[name]))
            before = programs.counted(name)
            took[name].append(float(np.median(await flood.ask(SLICES, DATAGRAMS))) / 1e3)
            await asyncio.sleep(0)
            seen, sent = programs.counted(name) - before, SLICES * DATAGRAMS
            # What is still in the veth's queue when the sender is done is a handful.
            if name in programs.counters and not 0.99 * sent <= seen <= 1.01 * sent:
                why = f"it saw {seen} of {sent} packets"
                raise PermanentError("measure", f"flow through {name}", why, "leave it the core")
    return took


def _rows(took: dict[str, list[float]], chance: random.Random) -> list[Row]:
    empty = np.array(took[EMPTY])
    rows = []
    for name, values in took.items():
        low, middle, high = np.percentile(values, (5, 50, 95))
        note = f"p5-p95 {low:.0f}-{high:.0f}, {1e3 / middle:.2f} M packets/s, n = {len(values)} turns"
        rows.append(Row(f"{name}: a packet at saturation", round(float(middle), 1), "ns", None, note))
    for name in (ALONE, CHAINED):
        share = 100 * (np.array(took[name]) / empty - 1)
        low, high = interval(share, chance)
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


def interval(values: Floats, chance: random.Random, draws: int = 2000) -> tuple[float, float]:
    """The 95 % interval of the median of `values`, by resampling."""
    picked = np.random.default_rng(chance.randrange(2**32)).choice(values, (draws, len(values)))
    low, high = np.percentile(np.median(picked, axis=1), (2.5, 97.5))
    return float(low), float(high)
