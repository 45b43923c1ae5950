"""`mapek run` with persist as its user sees it: killed, started again, and what /metrics says of it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mapek.simulations.agent import AgentProcess, configuration, key_name
from mapek.simulations.lab import Lab, Node
from mapek.simulations.topology import pair
from tests.netns.bpf.wires import udp
from tests.support.machine import patience

FRAMES = 400
UDP4 = re.compile(r"^mapek_xdp_counter_receive_packets_total\{(.*)\} (\d+)", re.M)


@asynccontextmanager
async def agent(lab: Lab) -> AsyncIterator[AgentProcess]:
    made = AgentProcess(lab.nodes["a"])
    toml = configuration(
        lab, lab.nodes["a"], "default", listen="127.0.0.1:9464", extra="[sensors.net_events]\n"
    )
    toml = toml.replace("[loop]\n", "[loop]\npersist = true\n")
    await made.open(toml, {key_name("a", "b"): "ab" * 32}, timeout=30 * patience(1))
    try:
        yield made
    finally:
        await made.close()


async def fetch(node: Node, path: str) -> str:
    def get() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:9464/{path}", timeout=10) as answer:
            return answer.read().decode()

    return await node.namespace.run(get)


async def counted(node: Node) -> int:
    """UDP frames over IPv4 that came on l0; 0 before it was read for the first time."""
    found = [
        int(value)
        for labels, value in UDP4.findall(await fetch(node, "metrics"))
        if all(word in labels for word in ('"l0"', '"ipv4"', '"udp"', '"no"'))
    ]
    assert len(found) <= 1
    return sum(found)


async def send(lab: Lab) -> None:
    def out() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("l0", 0))
            for _ in range(FRAMES):
                raw.send(udp())
                time.sleep(0.0001)

    await lab.nodes["b"].namespace.run(out)


async def until_counted(node: Node, frames: int) -> None:
    """A counter never goes back, and stops where it should; it is read once a second."""
    async with asyncio.timeout(patience(10)):
        before = 0
        while before < frames:
            now = await counted(node)
            assert before <= now <= frames
            before = now
            await asyncio.sleep(0.1)


@pytest.mark.needs("bpffs", "btf")
async def test_killed_and_started_again():
    async with Lab(pair(2)) as lab:
        node = lab.nodes["a"]
        for round_ in range(3):
            async with agent(lab) as running:
                await send(lab)
                await until_counted(node, (2 * round_ + 1) * FRAMES)
                assert "outlive" not in await fetch(node, "health")
                if round_ < 2:
                    os.kill(running.pid, signal.SIGKILL)
                    while running.running:  # noqa: ASYNC110 - no event tells of it
                        await asyncio.sleep(0.01)
            await send(lab)
