"""`mapek run`: the loop of one node, until SIGTERM, SIGHUP or Ctrl-C.

Only here are signals handled, priorities set, privileges given up and lines printed: the library does none of it.
A second signal ends the process at once.
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
    from mapek.service.notify import Notifier


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
    import os
    from importlib import import_module

    from mapek.bpf import capabilities, rules

    # Frames are small: its threads would only cost memory. Who wants them all the same has them without privileges.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    capabilities.without_any(lambda: import_module("numpy"))
    from mapek.assembly import SWITCH_S
    from mapek.cli.logs import Log
    from mapek.cli.signals import until_signal
    from mapek.config import load_config
    from mapek.service.notify import Notifier

    config = load_config(arguments.config)
    if config.rules is not None:
        rules.enforce(rules.read(config.rules))
    notifier = Notifier(os.environ)
    sys.setswitchinterval(SWITCH_S)
    log = Log()
    logging.basicConfig(level=logging.WARNING, handlers=[log])
    try:
        wait = arguments.wait or config.loop.wait
        return asyncio.run(until_signal(_work(config, log, notifier, arguments.json, wait)))
    finally:
        notifier.close()
        log.say_held()


async def _work(config: Config, log: Log, notifier: Notifier, as_json: bool, wait: bool) -> int:
    import asyncio
    import time
    from contextlib import AsyncExitStack

    from mapek.assembly import build, make_touchpoints
    from mapek.bpf import capabilities
    from mapek.cli import memory, realtime, say
    from mapek.cli.output import Lines
    from mapek.cli.printing import Published, Records, human_line, json_line
    from mapek.model import Suspicion
    from mapek.service import serve, view_of
    from mapek.service.privileges import Privileges, for_files

    began_ns = time.monotonic_ns()
    records = Records()

    def line(record: Record) -> str:
        return json_line(record) if as_json else human_line(record, began_ns)

    def dropped(count: int) -> str:
        return line({"type": "dropped", "time_ns": time.monotonic_ns(), "count": count})

    capabilities.no_new_privileges()
    privileges, files = Privileges(), for_files(config.node.state_dir, config.record)
    privileges.before(make_touchpoints(config), realtime.CAPABILITIES | files)
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
        locked = realtime.still_needed(level)
        tap = None
        if config.record is not None:
            from mapek.cli.recorded import recorder

            tap = (await life.enter_async_context(recorder(config, config.record))).tap
        async with build(
            config, tap=tap, begin_thread=lambda: capabilities.hold_only(files | locked)
        ) as loop:
            log.say_held([str(error) for error in loop.failed_at_start.values()])
            for name, error in loop.failed_at_start.items():
                say(error)
                if cause := privileges.unsaid(loop.monitor.watched[name].touchpoint, error):
                    say(cause)
            if not wait and not _bearable(loop):
                return 1
            records.learn(loop.knowledge.facts)
            life.callback(loop.subscribe(tell))
            privileges.after(loop, locked | files)
            life.callback(privileges.stop)
            async with serve(
                view_of(loop), config.service, node=config.node.name, privileges=privileges
            ) as service:
                realtime.give_back(level)
                put(_ready(config, loop, service, level))
                notifier.ready(loop)
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    notifier.stopping()
    return 0


def _bearable(loop: Loop) -> bool:
    """Whether it goes on with what failed at the start: what is missing of the kernel or of privileges turns off the
    sensors that need it, as long as one works. Anything else (a wrong interface, a route of somebody else) is for
    the operator to mend first."""
    from mapek.errors import DegradedError

    failed = loop.failed_at_start
    lesser = all(isinstance(error, DegradedError) for error in failed.values())
    return not failed or (lesser and any(one.open for one in loop.monitor.watched.values()))


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
