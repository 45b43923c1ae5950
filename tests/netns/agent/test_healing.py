"""Two agents on a lab's real links: what they heal, and what is no fault of the link at all."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from tests.netns.agent.nodes import agents

L0, L1 = "b/l0", "b/l1"


def recovered(both, node):
    return both.said(node, "incident", state="recovered")


async def moved(both, link, *nodes):
    """All of the nodes have switched to a link, and an answer over it proved each repair."""
    for node in nodes:
        peer = "b" if node == "a" else "a"
        await both.until(lambda node=node, peer=peer: both.said(node, "switch", to=f"{peer}/{link}"))
        await both.until(lambda node=node: recovered(both, node))


@pytest.mark.parametrize("direction", ["both", "ab", "ba"])
async def test_silence(direction):
    async with agents() as both:
        start = both.lab.wires["l0"].fault(direction)
        await moved(both, "l1", "a", "b")
        for node in ("a", "b"):
            (event,) = recovered(both, node)[:1]
            assert event.fields["kind"] == "path_dead"
            # onset: the last probe that came back was sent before the fault
            assert start - 50_000_000 < event.fields["onset_ns"] <= start + 2_000_000
            order = [event.fields[f"{stage}_ns"] for stage in ("onset", "detected", "planned", "acted", "recovered")]
            assert order == sorted(order)
            assert event.fields["detected_ns"] > start


@pytest.mark.parametrize("mode", ["generic", "tc"])
async def test_silence_seen_without_native_xdp(mode):
    async with agents(extra=f'[sensors.link_watch]\nmode = "{mode}"\n') as both:
        both.lab.wires["l0"].fault()
        await moved(both, "l1", "a", "b")


async def test_an_interface_taken_down_and_brought_back():
    async with agents() as both:
        namespace = both.lab.nodes["a"].namespace
        index = next(i for i, name in both.lab.nodes["a"].interfaces.items() if name == "l0")
        await namespace.route(lambda route: route.link("set", index=index, state="down"))
        await moved(both, "l1", "a", "b")
        await namespace.route(lambda route: route.link("set", index=index, state="up"))
        await both.until(lambda: both.said("a", "symptom", entity=f"path {L0}", cleared=True))
        await both.until(lambda: both.said("b", "symptom", entity="path a/l0", cleared=True))


async def test_an_agent_that_stands_still_blames_nobody_and_is_not_blamed():
    async with agents() as both:
        pid = both.mapek.agents["a"].pid
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(1.0)  # a thousand probe intervals
        os.kill(pid, signal.SIGCONT)
        await both.mapek.at_rest(10)
        for node in ("a", "b"):
            assert both.said(node, "switch", reason="path_dead") == []
            assert both.said(node, "incident") == []


async def test_a_stop_is_no_failure_for_the_neighbour():
    async with agents() as both:
        await both.mapek.agents["a"].close()
        assert both.mapek.agents["b"].running
        await asyncio.sleep(1.0)  # a thousand intervals without an agent there
        assert both.said("b", "incident") == []
        assert both.said("b", "switch", to="a/l1") == []


async def test_a_killed_agent_leaves_its_reflector():
    async with agents() as both:
        os.kill(both.mapek.agents["a"].pid, signal.SIGKILL)
        await both.until(lambda: not both.mapek.agents["a"].running)
        await asyncio.sleep(1.0)
        assert both.said("b", "incident") == []
        assert both.said("b", "switch", to="a/l1") == []
        # and it still sees what happens to the link
        both.lab.wires["l0"].fault()
        await both.until(lambda: both.said("b", "switch", to="a/l1"))
