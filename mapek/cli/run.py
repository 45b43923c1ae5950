"""`mapek run`: the loop of one node, until SIGTERM, SIGHUP or Ctrl-C.

Only here are signals handled, priorities set and lines printed: the library does none of it. A second signal
ends the process at once.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from mapek.cli.logs import Log
    from mapek.cli.printing import Record
    from mapek.config import Config
    from mapek.loop import Loop
    from mapek.service import Service


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    command = commands.add_parser("run", help="run the loop of this node")
    command.add_argument("-c", "--config", required=True, metavar="FILE.toml", help="the configuration")
    command.add_argument("--json", action="store_true", help="print JSON lines")
    command.add_argument("--wait", action="store_true", help="start although a sensor cannot open yet")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    import asyncio
    import logging

    from mapek.assembly import SWITCH_S
    from mapek.cli.logs import Log
    from mapek.cli.signals import until_signal
    from mapek.config import load_config

    config = load_config(arguments.config)
    sys.setswitchinterval(SWITCH_S)
    log = Log()
    logging.basicConfig(level=logging.WARNING, handlers=[log])
    try:
        wait = arguments.wait or config.loop.wait
        return asyncio.run(until_signal(_work(config, log, arguments.json, wait)))
    finally:
        log.say_held()


async def _work(config: Config, log: Log, as_json: bool, wait: bool) -> int:
    import asyncio
    import time
    from contextlib import AsyncExitStack

    from mapek.assembly import build
    from mapek.cli import memory, realtime, say
    from mapek.cli.output import Lines
    from mapek.cli.printing import Published, Records, human_line, json_line
    from mapek.model import Suspicion
    from mapek.service import serve, view_of

    began_ns = time.monotonic_ns()
    records = Records()

    def line(record: Record) -> str:
        return json_line(record) if as_json else human_line(record, began_ns)

    def dropped(count: int) -> str:
        return line({"type": "dropped", "time_ns": time.monotonic_ns(), "count": count})

    async with AsyncExitStack() as life:
        lines = Lines(sys.stdout.fileno(), dropped)
        life.callback(lines.close)
        # After the loop has closed, so that whoever reads it knows that nothing is left attached.
        life.callback(lambda: put({"type": "stopped", "time_ns": time.monotonic_ns()}))

        def put(record: Record) -> None:
            lines.put(lambda: line(record))

        def tell(published: Published) -> None:
            if isinstance(published, Suspicion):
                # Before a plan moves anything: what the path was is known only until then.
                records.learn(loop.knowledge.facts)
            for record in records.of(published):
                put(record)

        memory.hold_little()
        level = realtime.enable(config.loop.realtime)
        tap = None
        if config.record is not None:
            from mapek.cli.recorded import recorder

            tap = (await life.enter_async_context(recorder(config, config.record))).tap
        async with build(config, tap=tap) as loop:
            log.say_held([str(error) for error in loop.failed_at_start.values()])
            for error in loop.failed_at_start.values():
                say(error)
            if loop.failed_at_start and not wait:
                return 1
            records.learn(loop.knowledge.facts)
            life.callback(loop.subscribe(tell))
            async with serve(view_of(loop), config.service, node=config.node.name) as service:
                realtime.give_back(level)
                put(_ready(config, loop, service, level))
                await asyncio.get_running_loop().create_future()
    return 0


def _ready(config: Config, loop: Loop, service: Service, level: str) -> Record:
    import time

    return {
        "type": "ready",
        "time_ns": time.monotonic_ns(),
        "node": config.node.name,
        "sensors": [name for name, one in loop.monitor.watched.items() if one.open],
        "degraded": [
            f"{name}: {word}" for name, one in loop.monitor.watched.items() for word in one.status().degraded
        ],
        "service": f"{config.service.host} port {service.port}" if service.port else "off",
        "realtime": level,
    }
