"""Builds a running loop from a configuration: plugins by name, a real clock, the journal."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from mapek.clock import RealClock
from mapek.contracts import Touchpoint
from mapek.knowledge import Knowledge
from mapek.knowledge.journal import OpenPlan, boot_id, open_journal
from mapek.loop import Loop, Tap
from mapek.plugins import ACTIONS, ANALYZERS, POLICIES, SENSORS, create_all
from mapek.rehearsal import rehearse
from mapek.tally import Tally

if TYPE_CHECKING:
    from mapek.config import Config


SWITCH_S = 0.0005
"""For `sys.setswitchinterval`, which is the process's and so not ours to call here: after so many seconds a thread
gives the interpreter to the loop that waits for it. Python's own 5 ms let every thread that loads a program or
imports hold the loop up for as long."""


@asynccontextmanager
async def build(
    config: Config, *, tap: Tap | None = None, begin_thread: Callable[[], None] = lambda: None
) -> AsyncIterator[Loop]:
    """The loop of `config`, opened; leaving closes it and detaches everything but pinned reflectors.

    What failed to open is in `Loop.failed_at_start` and is being retried. `begin_thread` is the first that the
    journal's thread does, which needs no privilege but the one to write to its folder.

    Raises:
        ConfigError: an option of a plugin. PluginError: a plugin that cannot be found or imported.
        MapekError: the journal cannot be opened.
    """
    directory = config.plugin_directory
    touchpoints = make_touchpoints(config)
    analyzers = create_all(ANALYZERS, config.analyzers, directory).values()
    policies = create_all(POLICIES, config.policies, directory).values()
    boot = boot_id()
    await rehearse(
        config.topology,
        create_all(ANALYZERS, config.analyzers, directory).values(),
        create_all(POLICIES, config.policies, directory).values(),
    )
    knowledge = Knowledge(config.topology, boot_id=boot)
    tally = Tally()
    clock = RealClock(lambda late_ns: tally.observe("timer_lateness_seconds", None, late_ns / 1e9))
    try:
        journal = await open_journal(config.node.state_dir, boot, begin=begin_thread)
        try:
            async with Loop(
                knowledge,
                clock,
                touchpoints,
                analyzers,
                policies,
                journal=journal,
                tap=tap,
                tally=tally,
                state_dir=config.node.state_dir,
            ) as loop:
                for plan in journal.found.open:
                    journal.reconciled(plan, *_read_back(plan, knowledge))
                yield loop
        finally:
            await journal.close(clock.now_ns())
    finally:
        clock.close()


def make_touchpoints(config: Config) -> list[Touchpoint]:
    """New touchpoints of `config`, none of them open. Raises ConfigError and PluginError as `build`."""
    return [
        *create_all(SENSORS, config.sensors, config.plugin_directory).values(),
        *create_all(ACTIONS, config.actions, config.plugin_directory).values(),
    ]


def _read_back(open_plan: OpenPlan, knowledge: Knowledge) -> tuple[bool, str]:
    """Was an intent carried out that a dead agent left behind? The touchpoints have read the kernel by now."""
    wanted = {step.fields.get("path") for step in open_plan.plan.steps}
    found = knowledge.facts.get(f"active_path/{open_plan.plan.entity.name}")
    return found in wanted, f"found in the kernel: {found or 'nothing'}"
