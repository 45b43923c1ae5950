"""What a plugin implements: Touchpoint (sensor and effector), Analyzer, Policy.

Each is a base class whose methods have harmless defaults, so that a plugin overrides the one or two
that it needs; nothing here does any work. Analyzers and policies are pure with regard to time and
chance: they see frames and events, each with its stamps, and nothing else, so that a replay of the
same inputs makes the same decisions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

    from mapek.clock import Clock
    from mapek.knowledge import Knowledge
    from mapek.knowledge.topology import Topology
    from mapek.model import (
        Applied,
        Event,
        Finding,
        Frame,
        Incident,
        Inquiry,
        Plan,
        Schema,
        Step,
        Symptom,
    )

T = TypeVar("T")

Options = Mapping[str, Any]
"""A plugin's table of the configuration file, as TOML gave it; the plugin checks names and types."""


@dataclass(frozen=True, slots=True)
class Status:
    """What a touchpoint says about itself; the same words go to `/health`, `/metrics` and `doctor`.

    Args:
        up: it works, perhaps with less than everything.
        attached: what it is attached to, by name ("wlan0" -> "native").
        degraded: what is missing and why, a line each.
        counts: its own counters by name ("ring_drops", "send_errors", ...).
    """

    up: bool
    attached: Mapping[str, str] = field(default_factory=dict)
    degraded: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Variant:
    """One way in which a touchpoint can work.

    Args:
        name: as its option and its status call it ("tp_btf").
        needs: capabilities ("CAP_BPF") and features of `mapek.bpf.features` ("ringbuf"), all of them.
        gives: what is better with it than with the next one, for people.
        keeps: those of its capabilities without which it cannot go on once it is open; None: all of them.
    """

    name: str
    needs: tuple[str, ...] = ()
    gives: str = ""
    keeps: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the loop hands to a touchpoint when it opens it.

    Args:
        emit: give an event to the loop; cheap, from the event loop's thread only.
        clock: the loop's clock.
        knowledge: the loop's knowledge, to read.
        spawn: run a coroutine as a supervised task of this touchpoint; it is cancelled at close.
        commons: what touchpoints of one loop share, by type; see `shared`.
        state_dir: the agent's own directory; None if it has none. It tells one agent's things from another's.
        touchpoints: the names of all touchpoints of this loop.
    """

    emit: Callable[[Event], None]
    clock: Clock
    knowledge: Knowledge
    spawn: Callable[[Awaitable[None]], None]
    commons: dict[type, object] = field(default_factory=dict)
    state_dir: Path | None = None
    touchpoints: frozenset[str] = frozenset()

    def shared(self, kind: type[T]) -> T:
        """The one `kind()` of this loop, such as the owner of the XDP hooks that several sensors attach to."""
        found = self.commons.get(kind)
        if not isinstance(found, kind):
            found = self.commons[kind] = kind()
        return found


class Touchpoint:
    """A sensor, an effector, or both: whatever owns a handle into the kernel or another system.

    Life: constructed with its options (raises ConfigError), opened, used, closed. `open` and `close` may be
    cancelled; `close` may come twice and must leave nothing attached. A failed `open` is tried again with
    back-off as the class of its error says.
    """

    name: ClassVar[str]
    kind: ClassVar[Literal["sensor", "effector"]] = "sensor"
    variants: ClassVar[tuple[Variant, ...]] = ()
    """The ways in which it can work, the best first; empty for one that needs nothing special."""
    counted: ClassVar[Mapping[str, str]] = {}
    """What `Status.counts` may hold, with a line of help each for `/metrics`."""
    opens_after: ClassVar[tuple[str, ...]] = ()
    """Touchpoints that must have been opened before, if they come before it in the configuration."""
    wanted_variant: str = "auto"
    """The one of `variants` that its options ask for."""
    period_ns: int = 1_000_000_000
    """How often Monitor calls `read`; 0 for a touchpoint that only emits events."""

    def shortfalls(self, topology: Topology) -> tuple[str, ...]:
        """What it would do without if it were opened now, beyond what its variant says, in the words of its
        `Status.degraded`: for `mapek doctor`, which opens nothing. May block for milliseconds.

        Args:
            topology: that of the configuration, as the sensor will find it in Knowledge.

        Raises a MapekError for what would keep it from opening, as `open` would.
        """
        return ()

    async def open(self, surroundings: Surroundings) -> None:
        """Attach, subscribe, allocate. Must not block the event loop: slow kernel calls go to a thread."""

    async def close(self) -> None:
        """Undo `open`, however far it came."""

    def capabilities(self, opened: bool) -> frozenset[str]:
        """The capabilities that it may need from now on: to be opened, or, once `opened`, to go on.

        A process lets go of what none of its touchpoints names. By default what its `variants` say, of the one that
        is wanted if there is one.
        """
        ways = [one for one in self.variants if one.name == self.wanted_variant] or self.variants
        found: set[str] = set()
        for one in ways:
            kept = one.needs if not opened or one.keeps is None else one.keeps
            found.update(need for need in kept if need.startswith("CAP_"))
        return frozenset(found)

    def schema(self) -> Schema | None:
        """The columns of this sensor's frames; None if it has none."""
        return None

    def read(self) -> Frame | None:
        """The present values; called on the event loop, so it must take well under a millisecond."""
        return None

    def ask(self, inquiry: Inquiry) -> bool:
        """Begin to answer `inquiry` with an event "inquiry.answer"; False if it is not this touchpoint's."""
        return False

    async def act(self, step: Step) -> Applied:
        """Do `step` and say what the kernel answered; raises a MapekError when it refused.

        Idempotent: done twice, it leaves the same state, and says `changed=False` the second time.
        """
        raise NotImplementedError(f"{self.name} acts on nothing")

    def act_now(self, step: Step) -> Applied | None:
        """As `act`, at once and without a task: for what takes microseconds. None: leave it to `act`."""
        return None

    def on_event(self, event: Event) -> None:
        """Hear what happens elsewhere: a link that is back, a path that traffic has moved to."""

    def status(self) -> Status:
        """How it does, from memory: no kernel call."""
        return Status(up=True)


class Analyzer:
    """Makes findings of what the sensors saw. Must not read a clock: time comes with its inputs."""

    name: ClassVar[str]

    def start(self, knowledge: Knowledge) -> None:
        """Called once before the first input."""

    def on_frame(self, frame: Frame, knowledge: Knowledge) -> Iterable[Finding]:
        """Findings from a frame; `knowledge.rates` has its counters as rates."""
        return ()

    def on_event(self, event: Event, knowledge: Knowledge) -> Iterable[Finding]:
        """Findings from an event. Called on the hot path: keep it short."""
        return ()


class Policy:
    """Answers symptoms with plans. Must not read a clock: time comes with its inputs."""

    name: ClassVar[str]

    def start(self, knowledge: Knowledge) -> None:
        """Called once before the first input."""

    def plan(self, symptom: Symptom, knowledge: Knowledge) -> Plan | None:
        """What to do about `symptom`; None if this policy has no answer."""
        return None

    def cleared(self, symptom: Symptom, knowledge: Knowledge) -> None:
        """The entity is well again."""

    def on_event(self, event: Event, knowledge: Knowledge) -> Plan | None:
        """A plan without a symptom: a voluntary move back, or a state of the kernel to restore."""
        return None

    def unproved(self, plan: Plan, knowledge: Knowledge) -> Plan | None:
        """A plan of this policy was carried out, but the proof that it expected did not come: what now?"""
        return None

    def on_incident(self, incident: Incident, knowledge: Knowledge) -> None:
        """How a plan of this policy went: called whenever its incident changes state."""
