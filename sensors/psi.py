"""psi: how long tasks stood still for want of CPU, memory or I/O, as the kernel accounts it, and alarms on it.

Stalled time is the cause that utilisation only hints at. Reading costs some microseconds a file; a trigger costs
nothing until tasks stall, but then the kernel looks ten times in each window.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import ClassVar, Final

import numpy as np

from mapek.bpf.worker import in_thread
from mapek.config.options import error, take_strings
from mapek.contracts import Options, Status, Surroundings, Touchpoint, Variant
from mapek.errors import AttachError, MapekError
from mapek.model import Entity, Event, Frame, Metric, Schema, Value
from mapek.sensors.cgroups import find_cgroups, is_below
from mapek.sensors.psi_files import (
    LINES,
    RESOURCES,
    ROOT,
    WINDOWS,
    Armed,
    Group,
    Pressure,
    Trigger,
)
from mapek.sensors.variants import choose

MOST_GROUPS: Final = 64
MOST_TRIGGERS: Final = 32
_FORM: Final = 'write it like "memory some 150000 1000000", or with a cgroup behind it'


def _schema(lines: Iterable[tuple[str, str]]) -> Schema:
    labels = [(("resource", resource), ("share", share)) for resource, share in lines]
    return Schema(
        "psi",
        "service",
        counters=tuple(
            Metric("stalled", "microseconds", "Time that tasks stood still for want of it.", labels=one)
            for one in labels
        ),
        gauges=tuple(
            Metric(
                "stalled",
                "ratio",
                "Share of time that tasks stood still, averaged by the kernel.",
                labels=(*one, ("window", window)),
            )
            for one in labels
            for window in WINDOWS
        ),
    )


SCHEMA: Final = _schema(LINES)
"""Of the newest kernel; the sensor's own has the lines that this kernel writes."""


class Psi(Touchpoint):
    """Touchpoint `psi`. Rows are cgroups ("service"); "/" is the whole system.

    Events "psi.pressure", at most one per trigger and window, with the fields `resource`, `share`, `threshold_us`,
    `window_us` and `total_us` (stalled since boot).

    Options:
        cgroups: paths below the cgroup v2 mount, besides the whole system.
        triggers: "RESOURCE SHARE THRESHOLD_US WINDOW_US [CGROUP]"; the window 500 ms to 10 s.

    Needs kernel 4.20 with CONFIG_PSI, and no privilege; triggers need CAP_SYS_RESOURCE, or since 6.4 a window of
    whole 2 s. A trigger that cannot be set is said in `status`, and the sensor goes on without.
    """

    name: ClassVar[str] = "psi"
    counted: ClassVar[Mapping[str, str]] = {
        "fired": "Triggers that fired.",
        "unreadable": "Pressure files that could not be read, or held what no kernel writes.",
    }
    variants: ClassVar[tuple[Variant, ...]] = (Variant("files", ("psi",)),)

    def __init__(self, options: Options) -> None:
        names = tuple(dict.fromkeys(take_strings(options, "cgroups")))
        if len(names) > MOST_GROUPS:
            raise error(options, "cgroups", f"has {len(names)} entries", f"at most {MOST_GROUPS} are read")
        for index, name in enumerate(names):
            if not is_below(name):
                why, do = "is not below the cgroup mount", 'write it like "system.slice/x.service"'
                raise error(options, f"cgroups[{index}]", why, do)
        self._names = (ROOT, *names)
        self._triggers = _triggers(options, self._names)
        self._around: Surroundings | None = None
        self._schema = SCHEMA
        self._lines = LINES
        self._mount = ""
        self._groups: dict[str, Group] = {}
        self._missing: dict[str, MapekError] = {}
        self._armed: dict[Trigger, Armed] = {}
        self._unarmed: dict[Trigger, MapekError] = {}
        self._counts = {"fired": 0, "unreadable": 0}

    async def open(self, surroundings: Surroundings) -> None:
        """Open the files and set the triggers.

        Raises FeatureError when the kernel keeps no account of pressure.
        """
        await in_thread(lambda: choose(self.name, self.variants))
        root = Group(ROOT)
        await in_thread(root.open, lambda _: root.close())
        self._around, self._groups[ROOT] = surroundings, root
        try:
            found = root.read()
        except (OSError, ValueError) as cause:
            why = f"it is not what a kernel writes ({cause})"
            raise AttachError("read", "/proc/pressure", why, "see what is mounted there") from cause
        self._lines = tuple(line for line in LINES if line in found)
        self._schema = _schema(self._lines)
        self._mount = await in_thread(find_cgroups)
        for name in self._names[1:]:
            self._open_group(name)
        for trigger in self._triggers:
            await self._arm(trigger)

    def capabilities(self, opened: bool) -> frozenset[str]:
        """CAP_SYS_RESOURCE as long as a trigger that needs it may have to be set: one of a cgroup is set again when
        that is back."""
        needed = any(one.is_privileged() for one in self._triggers if not opened or one.group != ROOT)
        return frozenset(("CAP_SYS_RESOURCE",) if needed else ())

    def _open_group(self, name: str) -> bool:
        group = Group(name, self._mount)
        try:
            group.open()
        except MapekError as cause:
            self._missing[name] = cause
            return False
        self._groups[name] = group
        self._missing.pop(name, None)
        return True

    async def _arm(self, trigger: Trigger) -> None:
        if trigger.group in self._missing or trigger in self._armed:
            return
        try:
            armed = await in_thread(lambda: Armed.on(trigger, self._mount), Armed.close)
        except MapekError as cause:
            self._unarmed[trigger] = cause
            return
        if self._around is None or trigger in self._armed:
            armed.close()
            return
        self._unarmed.pop(trigger, None)
        self._armed[trigger] = armed
        asyncio.get_running_loop().add_reader(armed.epoll.fileno(), self._fired, armed)

    def _fired(self, armed: Armed) -> None:
        around, trigger = self._around, armed.trigger
        if around is None:
            return
        if armed.dead():
            self._disarm(trigger)
            return
        self._counts["fired"] += 1
        fields: dict[str, Value] = {
            "resource": trigger.resource,
            "share": trigger.share,
            "threshold_us": trigger.threshold_us,
            "window_us": trigger.window_us,
        }
        found = self._values(trigger.group)
        if found is not None and (trigger.resource, trigger.share) in found:
            fields["total_us"] = found[trigger.resource, trigger.share].total_us
        around.emit(Event(around.clock.now_ns(), Entity("service", trigger.group), "psi.pressure", fields))

    def _disarm(self, trigger: Trigger) -> None:
        armed = self._armed.pop(trigger, None)
        if armed is not None:
            asyncio.get_running_loop().remove_reader(armed.epoll.fileno())
            armed.close()

    async def close(self) -> None:
        self._around = None
        for trigger in tuple(self._armed):
            self._disarm(trigger)
        while self._groups:
            self._groups.popitem()[1].close()
        self._missing.clear()
        self._unarmed.clear()

    def schema(self) -> Schema:
        return self._schema

    def read(self) -> Frame | None:
        """One row per cgroup; that of one that is away is not valid, and it is looked for again."""
        if self._around is None:
            return None
        for name in tuple(self._missing):
            if self._open_group(name):
                for trigger in self._triggers:
                    if trigger.group == name:
                        self._around.spawn(self._arm(trigger))
        rows = len(self._names)
        counters = np.zeros((rows, len(self._schema.counters)), np.uint64)
        gauges = np.full((rows, len(self._schema.gauges)), np.nan)
        valid = np.zeros(rows, np.bool_)
        for row, name in enumerate(self._names):
            found = self._values(name)
            if found is None or any(line not in found for line in self._lines):
                continue
            lines = [found[line] for line in self._lines]
            counters[row] = [one.total_us for one in lines]
            gauges[row] = [average for one in lines for average in one.averages]
            valid[row] = True
        entities = tuple(Entity("service", name) for name in self._names)
        return Frame(self._around.clock.now_ns(), self._schema, entities, counters, gauges, valid)

    def _values(self, name: str) -> dict[tuple[str, str], Pressure] | None:
        group = self._groups.get(name)
        if group is None:
            return None
        try:
            return group.read()
        except ValueError:
            self._counts["unreadable"] += 1
        except OSError as cause:
            self._counts["unreadable"] += 1
            self._lose(group, cause)
        return None

    def _lose(self, group: Group, cause: OSError) -> None:
        """A cgroup that is made again has files of its own: these say ENODEV for ever."""
        why = AttachError(
            "read the pressure of", group.name, "the cgroup is gone", "it goes on when it is back"
        )
        why.__cause__ = cause
        self._missing[group.name] = why
        self._groups.pop(group.name).close()
        for trigger in self._triggers:
            if trigger.group == group.name:
                self._disarm(trigger)

    def status(self) -> Status:
        attached = {name: " ".join(group.fds) for name, group in self._groups.items()}
        attached |= {f"trigger {trigger}": "armed" for trigger in self._armed}
        troubles = tuple(str(one) for one in (*self._missing.values(), *self._unarmed.values()))
        return Status(bool(self._groups), attached, troubles, dict(self._counts))


def _triggers(options: Options, groups: tuple[str, ...]) -> tuple[Trigger, ...]:
    found: dict[Trigger, None] = {}
    for index, text in enumerate(take_strings(options, "triggers")):
        key, words = f"triggers[{index}]", text.split(maxsplit=4)
        if len(words) < 4 or not all(
            word.isascii() and word.isdecimal() and len(word) < 9 for word in words[2:4]
        ):
            raise error(options, key, "is no trigger", _FORM)
        resource, share, threshold, window = words[0], words[1], int(words[2]), int(words[3])
        if (resource, share) not in LINES:
            raise error(
                options, key, f"knows no {share} of {resource}", f"resources are {', '.join(RESOURCES)}"
            )
        if not 500_000 <= window <= 10_000_000 or not 0 < threshold <= window:
            do = "the window must be 500000 to 10000000, the threshold within it"
            raise error(options, key, "is out of the kernel's range", do)
        group = words[4] if len(words) > 4 else ROOT
        if group not in groups:
            raise error(options, key, "names a cgroup that is not in `cgroups`", "add it there")
        found[Trigger(resource, share, threshold, window, group)] = None
    if len(found) > MOST_TRIGGERS:
        raise error(options, "triggers", f"has {len(found)} entries", f"at most {MOST_TRIGGERS} are set")
    return tuple(found)
