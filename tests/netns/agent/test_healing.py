"""Two agents on a lab's real links: what they heal, and what is no fault of the link at all."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from tests.netns.agent.nodes import agents

L0 = "b/l0"


def recovered(both, node):
    return both.said(node, "incident", state="recovered")


def healed(both, node):
    return [event for event in recovered(both, node) if "acted_ns" in event.fields]


async def moved(both, link, *nodes):
    """The traffic of all of the nodes takes a link, and an answer over it has proved each repair."""
    for node in nodes:
        await both.until(lambda node=node: recovered(both, node))
        assert await both.way(node) == link


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
            order = [
                event.fields[f"{stage}_ns"]
                for stage in ("onset", "detected", "planned", "acted", "recovered")
            ]
            assert order == sorted(order)
            assert event.fields["detected_ns"] > start


@pytest.mark.kernel
async def test_silence_at_a_slow_pace():
    """Slow enough for an emulated processor: what is asked there is that it heals, not how fast."""
    async with agents("default", "[sensors.link_watch]\ninterval_ms = 100\n") as both:
        start = both.lab.wires["l0"].fault()
        # On a slow machine a path may also become well again by itself, which is an incident without an action.
        for node in ("a", "b"):
            await both.until(lambda node=node: healed(both, node))
            assert await both.way(node) == "l1"
            event = healed(both, node)[0]
            assert event.fields["kind"] == "path_dead"
            assert start < event.fields["detected_ns"] <= event.fields["acted_ns"]
            assert event.fields["acted_ns"] <= event.fields["recovered_ns"]


async def test_silence_seen_on_tc():
    # generic mode is proved on a bare veth (sensors/test_interfaces.py): the wires of the lab redirect by tc, and
    # what was redirected the kernel keeps away from generic XDP
    async with agents(extra='[sensors.link_watch]\nmode = "tc"\n') as both:
        both.lab.wires["l0"].fault()
        await moved(both, "l1", "a", "b")


async def test_an_interface_taken_down_and_brought_back():
    async with agents() as both:
        namespace = both.lab.nodes["a"].namespace
        index = next(i for i, name in both.lab.nodes["a"].interfaces.items() if name == "l0")
        await namespace.route(lambda route: route.link("set", index=index, state="down"))
        await moved(both, "l1", "a", "b")

        def bring_back(route):
            route.link("set", index=index, state="up")
            # the kernel keeps no link-local address of a link that was down
            (link,) = both.lab.topology.links_of(both.lab.nodes["a"].spec)[:1]
            route.addr("add", index=index, address=link.link_local(both.lab.nodes["a"].spec), prefixlen=64)

        await namespace.route(bring_back)
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
            assert both.said(node, "incident") == []
            assert await both.way(node) == "l0"


async def test_a_stop_is_no_failure_for_the_neighbour():
    async with agents() as both:
        await both.mapek.agents["a"].close()
        assert both.mapek.agents["b"].running
        await asyncio.sleep(1.0)  # a thousand intervals without an agent there
        assert both.said("b", "incident") == []
        assert await both.way("b") == "l0"


async def test_a_killed_agent_leaves_its_reflector():
    async with agents() as both:
        os.kill(both.mapek.agents["a"].pid, signal.SIGKILL)
        await both.until(lambda: not both.mapek.agents["a"].running)
        await asyncio.sleep(1.0)
        assert both.said("b", "incident") == []
        assert await both.way("b") == "l0"
        # and it still sees what happens to the link
        both.lab.wires["l0"].fault()
        await moved(both, "l1", "b")
