"""What was meant to be done and how it went, so that a restart knows what may be half done.

An intent is queued before its action and a result after; a thread of its own writes them in order, so
the loop never waits for a disk. No fsync per entry: a crash of the process loses nothing that reached
the kernel, and after a crash of the machine the boot id differs and every open plan is void anyway.
Without a state directory the journal is a bounded list in memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mapek.model import Incident, Plan

if TYPE_CHECKING:
    from mapek.knowledge.journal_writer import Writer

ROWS = 20_000
"""Entries that are kept; the oldest go first, open intents excepted."""


@dataclass(frozen=True, slots=True)
class OpenPlan:
    """An intent without a result: its steps may be done, half done or not begun; the kernel knows.

    `plan_id` is unique within its `run` only.
    """

    run: int
    plan_id: str
    plan: Plan
    intent_ns: int


@dataclass(frozen=True, slots=True)
class Found:
    """What the journal of earlier runs said when it was opened.

    Args:
        clean: the last run said that it stopped, or there was none.
        open: intents of this boot without a result, in order: read their state back from the kernel, then
            say so with `Journal.reconciled`, or they are found open again.
        voided: how many open intents belonged to another boot.
        notes: what somebody should know, a line each ("moved a damaged journal to ...").
    """

    clean: bool = True
    open: tuple[OpenPlan, ...] = ()
    voided: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal.

    Args:
        kind: "start", "intent", "result", "incident", "stop" or "void".
        plan_id: of intents and results, else empty.
        time_ns: when it happened, by the loop's clock.
        body: what there is to say, of the type that `kind` implies.
        run: 0 for this run, else the earlier one that the entry is about.
    """

    kind: str
    plan_id: str = ""
    time_ns: int = 0
    body: Plan | Incident | Result | None = None
    run: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """How a plan went: `done` as the kernel acknowledged all of its steps, or `detail` says why not."""

    done: bool
    detail: str = ""


class Journal:
    """Open it with `open_journal`. Its methods cost the loop microseconds and never raise.

    Attributes:
        found: what earlier runs left behind.
        recent: the last entries of this run, also without a state directory.
    """

    def __init__(self, found: Found | None = None, writer: Writer | None = None) -> None:
        self.found = found or Found()
        self.recent: deque[Entry] = deque(maxlen=256)
        self._writer = writer
        self._open = writer is not None
        self._pending: list[Entry] = []

    @property
    def dropped(self) -> int:
        """Entries that were not kept because the writer fell behind or the disk refused."""
        return self._writer.dropped if self._writer else 0

    @property
    def trouble(self) -> str:
        """Why the last write failed, one line; empty as long as all is well."""
        return self._writer.trouble if self._writer else ""

    def intent(self, plan_id: str, plan: Plan, time_ns: int = 0) -> None:
        """`plan` is about to be done. `plan_id` is unique in this run."""
        self._note(Entry("intent", plan_id, time_ns, plan))

    def result(self, plan_id: str, ok: bool, detail: str = "", time_ns: int = 0) -> None:
        """The plan is done, or has been given up and undone because of `detail`."""
        self._note(Entry("result", plan_id, time_ns, Result(ok, detail)))

    def reconciled(self, plan: OpenPlan, done: bool, detail: str = "", time_ns: int = 0) -> None:
        """What the kernel says of a plan that an earlier run of this boot left open."""
        self._note(Entry("result", plan.plan_id, time_ns, Result(done, detail), plan.run))

    def incident(self, incident: Incident, time_ns: int = 0) -> None:
        """An incident changed its state."""
        self._note(Entry("incident", "", time_ns, incident))

    def _note(self, entry: Entry) -> None:
        self.recent.append(entry)
        if not self._writer or not self._open:
            return
        self._pending.append(entry)
        if len(self._pending) > 1:
            return
        # the writer's thread is woken when this callback is done: awake, it would contend with the action
        # for the interpreter's lock
        try:
            asyncio.get_running_loop().call_soon(self._hand_over)
        except RuntimeError:
            self._hand_over()

    def _hand_over(self) -> None:
        pending, self._pending = self._pending, []
        if self._writer:
            for entry in pending:
                self._writer.put(entry)

    async def flush(self) -> None:
        """Return when all entries so far are written, or have been given up (see `trouble`)."""
        if self._writer and self._open:
            self._hand_over()
            await self._writer.flush()

    async def close(self, time_ns: int = 0) -> None:
        """Say that this run stopped in order, write everything and let the state directory go."""
        if self._writer and self._open:
            self._open = False
            self._hand_over()
            self._writer.put(Entry("stop", "", time_ns))
            await self._writer.close()


async def open_journal(
    state_dir: Path | None,
    boot_id: str,
    *,
    time_ns: int = 0,
    rows: int = ROWS,
    megabytes: int = 64,
    begin: Callable[[], None] = lambda: None,
) -> Journal:
    """The journal of `state_dir` (made if missing), or one in memory.

    A damaged journal is moved aside and begun anew, which `found.notes` says. Intents of another boot are
    voided for good; those of this boot stay open until somebody calls `reconciled`.

    Args:
        state_dir: a directory of this agent's own; a second agent with the same one is refused.
        boot_id: of the running kernel, as `boot_id()` reads it.
        time_ns: the loop's time, for the entry that says that a run started.
        rows: entries that are kept.
        megabytes: how large the file may become at the very most.
        begin: what the thread that writes does first, such as giving up its privileges.

    Raises:
        PermanentError: the directory is read-only, not a directory, in use by another agent, or its journal
            was written by a newer mapek.
    """
    if state_dir is None:
        return Journal()
    from mapek.knowledge.journal_writer import Writer  # brings SQLite, 2 MB, only where there is a state_dir

    writer = Writer(state_dir, boot_id, rows=rows, megabytes=megabytes, begin=begin)
    try:
        found = await asyncio.shield(asyncio.wrap_future(writer.start(time_ns)))
    except BaseException:
        await writer.close()
        raise
    return Journal(found, writer)


def boot_id() -> str:
    """What tells this boot of the kernel from every other; empty where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""
