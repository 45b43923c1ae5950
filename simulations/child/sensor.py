"""Sensors, opened and closed as it is told, and empty programs in their place: `sensor`, in the receiver's namespace.

Requests, each answered with a number (1) when it is done; what cannot be done ends the process, with the reason as its
last words:

    open NAME JSON   the touchpoint of that name with these options, on the road's interface
    empty KIND       programs that return at once: "xdp", "tc" or "syscalls"
    close            whatever is open
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Final, cast

from mapek import plugins
from mapek.bpf.worker import in_thread
from mapek.config.options import Table
from mapek.config.settings import PluginConfig
from mapek.errors import MapekError
from mapek.knowledge import Path, Peer, Topology
from mapek.simulations.empties import Kind, attach_empty
from mapek.simulations.road import INTERFACE, RECEIVER, SENDER
from mapek.simulations.surroundings import opened

_SECRET: Final = bytes(range(32))


def topology() -> Topology:
    """What an agent at the receiver would know: a peer at the other end."""
    here, there = ip_address(RECEIVER), ip_address(SENDER)
    path = Path("sender", INTERFACE, there, here)
    return Topology("receiver", [here], [Peer("sender", (there,), (ip_network(there),), (path,), _SECRET)])


async def main() -> None:
    """Answer until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; who asks ends us in order
    async with AsyncExitStack() as life:
        while line := await asyncio.to_thread(sys.stdin.readline):
            kind, _, rest = line.strip().partition(" ")
            if kind == "close":
                await life.aclose()
            elif kind == "empty":
                detach = await in_thread(partial(attach_empty, cast(Kind, rest), INTERFACE), ExitStack.close)
                life.push_async_callback(in_thread, detach.close)
            else:
                name, _, options = rest.partition(" ")
                chosen = PluginConfig(name, name, Table(json.loads(options), place=f"[sensors.{name}]"))
                sensor = plugins.create(plugins.SENSORS, chosen)
                await life.enter_async_context(opened(sensor, topology()))
            sys.stdout.write("1\n")
            sys.stdout.flush()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except MapekError as error:
        sys.exit(str(error))
