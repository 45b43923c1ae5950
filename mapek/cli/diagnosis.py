"""What `mapek doctor` found: as JSON for scripts (docs/DOCTOR.md), and as text for people in 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mapek.bpf.demands import KINDS, Part
from mapek.bpf.host import GRANTS
from mapek.sensors.cures import cure

if TYPE_CHECKING:
    from mapek.bpf.host import Condition
    from mapek.service.kernel import Kernel

_WIDTH: Final = 80
_NAME: Final = 20
_ANSWER: Final = 9
_PLURALS: Final = {
    "program type": "program types",
    "attachment": "ways to attach",
    "map type": "map types",
    "helper": "helpers",
    "instruction": "instructions",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one configured sensor: in which `variant` it will run ("" where it needs none or cannot run at all).

    Args:
        missing: what keeps it from running.
        passed_over: why not in each better variant, by name.
        degraded: what it will do without, in the words that `/health` and `/metrics` will have.
        do: what would make it run, or run better.
        waits: what is missing may come, and an agent of this configuration starts and waits for it.
    """

    variant: str = ""
    missing: tuple[str, ...] = ()
    passed_over: tuple[tuple[str, str], ...] = ()
    degraded: tuple[str, ...] = ()
    do: tuple[str, ...] = ()
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """Of one part that our objects demand: "yes", "no" or "unknown", what brings it, and which objects use it."""

    answer: str
    since: str
    used_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Examined:
    """All that was found; `sensors` is None without a configuration."""

    kernel: Kernel
    conditions: tuple[Condition, ...]
    granted: Mapping[str, bool]
    parts: Mapping[Part, Told]
    sensors: Mapping[str, Verdict] | None

    @property
    def well(self) -> bool:
        """Whether programs can be loaded at all, and every configured sensor can run, or waits."""
        stuck = [one for one in (self.sensors or {}).values() if one.missing and not one.waits]
        return not self.kernel.trouble and not stuck


def document(found: Examined) -> dict[str, object]:
    """The JSON object; its keys stay."""
    kernel = found.kernel
    told: dict[str, object] = {
        "ok": found.well,
        "kernel": {"release": kernel.release, "features": dict(kernel.features)},
        "ebpf_loader": {"ok": not kernel.trouble, "libbpf": kernel.libbpf or None, "trouble": kernel.trouble},
        "machine": {
            one.name: {"answer": one.answer.value, "found": one.said, "do": one.do}
            for one in found.conditions
        },
        "capabilities": list(kernel.capabilities),
        "programs": {_PLURALS[kind].replace(" ", "_"): _parts(found.parts, kind) for kind in KINDS},
    }
    if found.sensors is not None:
        told["sensors"] = {name: _sensor(one) for name, one in found.sensors.items()}
    return told


def _parts(parts: Mapping[Part, Told], kind: str) -> dict[str, object]:
    listed = {part: one for part, one in parts.items() if part.kind == kind}
    if kind != "helper":
        return {part.name: _part(one) for part, one in listed.items()}
    types = sorted({part.of for part in listed})
    return {of: {part.name: _part(one) for part, one in listed.items() if part.of == of} for of in types}


def _part(one: Told) -> dict[str, object]:
    return {"answer": one.answer, "since": one.since, "used_by": list(one.used_by)}


def _sensor(one: Verdict) -> dict[str, object]:
    return {
        "ok": not one.missing,
        "variant": one.variant or None,
        "missing": list(one.missing),
        "passed_over": dict(one.passed_over),
        "degraded": list(one.degraded),
        "do": list(one.do),
        "waits": one.waits,
    }


def lines(found: Examined) -> Iterator[str]:
    """The text, line by line."""
    kernel = found.kernel
    yield "machine"
    for one in found.conditions:
        yield from _row(one.name, one.answer.value, one.said, one.do)
    answer = "no" if kernel.trouble else "yes"
    yield from _row("libbpf", answer, kernel.trouble or kernel.libbpf)
    yield from ("", "privileges")
    for name, held in found.granted.items():
        yield from _row(name, "yes" if held else "no", GRANTS[name])
    if lacking := [name for name, held in found.granted.items() if not held]:
        yield from _wrapped(f"-> {cure(' '.join(lacking))}", " " * (2 + _NAME + _ANSWER))
    yield from ("", "features of the kernel")
    yield from _grouped((name, *_split(answer)) for name, answer in kernel.features.items())
    for kind in KINDS:
        yield from ("", f"{_PLURALS[kind]} that our programs use")
        yield from _grouped(_rows(found.parts, kind))
    if found.sensors is None:
        yield from ("", "sensors: give a configuration (-c FILE.toml) to see how they would run")
        return
    yield from ("", "sensors")
    for name, verdict in found.sensors.items():
        yield from _told(name, verdict)
    stuck = [name for name, verdict in found.sensors.items() if verdict.missing and not verdict.waits]
    yield ""
    yield from _wrapped(f"cannot run: {', '.join(stuck)}" if stuck else "every configured sensor can run", "")


def _split(answer: str) -> tuple[str, str]:
    """ "no (kernel 5.15)" in two."""
    word, _, rest = answer.partition(" ")
    return word, rest.strip("()")


def _rows(parts: Mapping[Part, Told], kind: str) -> Iterator[tuple[str, str, str]]:
    """Name, answer, and what to know about a "no"; a helper's types are told only where they differ."""
    listed = [(part, one) for part, one in parts.items() if part.kind == kind]
    answers: dict[str, set[str]] = {}
    for part, one in listed:
        answers.setdefault(part.name, set()).add(one.answer)
    seen = set()
    for part, one in listed:
        name = part.name if len(answers[part.name]) == 1 else f"{part.name} in {part.of}"
        if name not in seen:
            seen.add(name)
            yield name, one.answer, f"{one.since}; used by {', '.join(one.used_by)}"


def _grouped(rows: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """All that is there in one paragraph, and so what is unknown; a line each for what is not there."""
    known = sorted(rows)
    for answer in ("yes", "unknown"):
        if names := [name for name, said, _ in known if said == answer]:
            yield from _wrapped(", ".join(names), f"  {answer:<{_ANSWER}}")
    for name, said, why in known:
        if said == "no":
            yield from _wrapped(f"{name}: {why}", f"  {'no':<{_ANSWER}}")


def _told(name: str, one: Verdict) -> Iterator[str]:
    if one.missing:
        yield from _row(name, "waits" if one.waits else "no", "; ".join(one.missing))
    else:
        yield from _row(name, "yes", f"will run as {one.variant}" if one.variant else "will run")
    for word in one.degraded:
        yield from _wrapped(word, " " * (2 + _NAME + _ANSWER))
    for do in one.do:
        if any(do in why for why in one.missing):
            continue
        yield from _wrapped(f"-> {do}", " " * (2 + _NAME + _ANSWER))


def _row(name: str, answer: str, said: str, do: str = "") -> Iterator[str]:
    yield from _wrapped(said, f"  {name:<{_NAME - 1}} {answer:<{_ANSWER}}")
    if do:
        yield from _wrapped(f"-> {do}", " " * (2 + _NAME + _ANSWER))


def _wrapped(text: str, first: str) -> list[str]:
    clean = "".join(letter if letter.isprintable() else "?" for letter in text)
    # What is to be typed is not cut at its dashes.
    return textwrap.wrap(
        clean, _WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False
    ) or [first.rstrip()]
