"""An explanation as text for people, and the flow of control as a picture (Graphviz)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from mapek.bpf import helpers
from mapek.bpf.abilities import Ability, Where
from mapek.bpf.anatomy import Anatomy, Function
from mapek.bpf.explain import NAMELESS, Explanation, MapUse, Told
from mapek.bpf.validate import Report
from mapek.bpf.visible import visible

_WIDTH = 110
_LEFT = 12
_MOST_PLACES = 4


def text(one: Explanation, *, other_build: bool = False) -> str:
    """Every program of an object in plain words, one paragraph each.

    Args:
        other_build: what is loaded, and was asked for, did not come from this object.
    """
    total = sum(known.bytes for known in one.maps)
    lines = [
        f"{one.path}: {_count(one.programs, 'program')}, {_count(one.maps, 'map')} of {size(total)} when full, "
        f"licence {one.license!r}, {one.byteorder}-endian",
        f"sha256 {one.sha256}",
    ]
    if other_build:
        lines.append(
            "loaded from another build: this is the object on disk, and what is loaded may do otherwise"
        )
    for program in one.programs:
        lines += ["", f"program {program.name} ({program.type}, section {program.section!r})"]
        lines += [line for label, said in _told(program) for line in _row(label, said)]
    return "\n".join(map(visible, lines))


def report(one: Report) -> str:
    """What `validate` found, a line for each finding and a verdict last."""
    lines = [f"{found.severity:<7}{found}" for found in one.findings]
    for name, known in one.sizes.items():
        loops = f", {_count(range(known.loops), 'loop')} gone round once" if known.loops else ""
        lines.append(
            f"size   program {name}: {known.slots} instructions, {known.longest} on the longest way{loops}"
        )
    lines.append(f"size   maps: {size(one.map_bytes)} when full, on one CPU")
    refused = sum(found.severity == "refuse" for found in one.findings)
    lines.append(
        f"{one.path}: " + (f"refused for {_count(range(refused), 'reason')}" if refused else "valid")
    )
    return "\n".join(map(visible, lines))


def size(number: int) -> str:
    """A number of bytes, with the unit that suits it."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if number >= 1 << shift:
            return f"{number / (1 << shift):.3g} {unit}"
    return f"{number} bytes"


def _told(one: Told) -> Iterator[tuple[str, str]]:
    yield "runs", one.runs
    if one.source:
        yield "source", one.source
    loops = f"; {_count(range(one.loops), 'loop')} in it, each counted once" if one.loops else ""
    yield "size", f"{one.slots} instructions, {one.longest} on the longest way{loops}"
    if one.functions:
        yield "calls", ", ".join(one.functions)
    for returned in one.returns:
        yield "returns", returned.value + _places(returned.where)
    able: dict[tuple[str, str], list[str]] = {}
    for what, ability in one.can.items():
        if ability.answer != "no":
            able.setdefault(("can" if ability.answer == "yes" else "may", _means(ability)), []).append(what)
    yield from ((verb, ", ".join(what) + means) for (verb, means), what in able.items())
    cannot = [what for what, ability in one.can.items() if ability.answer == "no"]
    if cannot:
        yield "cannot", ", ".join(cannot)
    if one.hands_on:
        yield (
            "hands on",
            f"by a tail call to what is in {', '.join(one.hands_on)}; what that does is not said here",
        )
    if one.replaceable:
        names = ", ".join(one.replaceable)
        yield "open", f"another program may be put in the place of {names}; what that does is not said here"
    if not one.complete:
        yield "unsure", "it could not be walked to its end: what is not said here is possible too"
    if one.helpers:
        yield "helpers", ", ".join(one.helpers)
    if one.kfuncs:
        names = ", ".join(name or NAMELESS for name in one.kfuncs)
        yield "kernel", f"calls {names}; what these do is not known here, so nothing is impossible"
    for used in one.maps:
        yield "map", _map(used)


def _means(ability: Ability) -> str:
    by = f" by {', '.join(ability.helpers)}" if ability.helpers else ""
    return by + _places(ability.where)


def _map(one: MapUse) -> str:
    shape = f"{one.max_entries} entries of {one.key_size} + {one.value_size} bytes, {size(one.bytes)}"
    if one.type == "ringbuf":
        shape = size(one.bytes)
    uses = f": {', '.join(one.uses)}" if one.uses else ""
    return f"{one.name} ({one.type}, {shape}){uses}"


def _places(where: tuple[Where, ...]) -> str:
    shown = [
        f"{at.file.rsplit('/', 1)[-1]}:{at.line}" if at.line else f"{at.function}+{at.slot}" for at in where
    ]
    shown = list(dict.fromkeys(shown))
    more = f" and {len(shown) - _MOST_PLACES} more" if len(shown) > _MOST_PLACES else ""
    return f" ({', '.join(shown[:_MOST_PLACES])}{more})" if shown else ""


def _row(label: str, said: str) -> list[str]:
    # Before it is wrapped, for that would make spaces of a line's end.
    return textwrap.wrap(
        visible(said), _WIDTH, initial_indent=f"  {label:<{_LEFT - 2}}", subsequent_indent=" " * _LEFT
    )


def _count(things: Iterable[object], what: str) -> str:
    number = sum(1 for _ in things)
    return f"{number or 'no'} {what}{'s' * (number != 1)}"


def dot(anatomy: Anatomy, programs: Iterable[str]) -> str:
    """The flow of control of some programs and what they call, in Graphviz' language.

    A box is a basic block with its source lines and the helpers that it calls; a dashed red arrow closes a loop.
    """
    functions = {one.name: one for name in programs for one in anatomy.reach(name)}
    lines = ["digraph bpf {", '  node [shape=box, fontname="monospace", fontsize=10];', "  rankdir=TB;"]
    for number, function in enumerate(functions.values()):
        lines += [f"  subgraph cluster_{number} {{", f"    label={_quoted(function.name)};"]
        lines += [f"    {line}" for line in _drawn(function)]
        lines.append("  }")
    for function in functions.values():
        for slot, known in function.references.items():
            if known.kind == "function" and functions.get(known.name) and functions[known.name].flow.blocks:
                block = max((one.start for one in function.flow.blocks if one.start <= slot), default=0)
                lines.append(
                    f"  {_node(function, block)} -> {_node(functions[known.name], 0)} [style=dotted];"
                )
    return "\n".join([*lines, "}"])


def _drawn(function: Function) -> Iterator[str]:
    calls: dict[int, list[str]] = {}
    for one, number in function.helpers():
        calls.setdefault(one.slot, []).append(helpers.name(number))
    back = set(function.flow.back_edges)
    for block in function.flow.blocks:
        called = [name for slot in range(block.start, block.end) for name in calls.get(slot, ())]
        first, last = function.line(block.start), function.line(block.end - 1)
        rows = [f"{block.start}..{block.end - 1} ({block.count})"]
        if first and last:
            rows.append(f"{first.file.rsplit('/', 1)[-1]}:{first.number}-{last.number}")
        rows += [first.text] if first and first.text else []
        rows += [f"{name}()" for name in called]
        yield f"{_node(function, block.start)} [label={_quoted(*rows)}];"
        for after in block.next:
            closes = ' [color=red, style=dashed, label="loop"]' if (block.start, after) in back else ""
            yield f"{_node(function, block.start)} -> {_node(function, after)}{closes};"


def _node(function: Function, start: int) -> str:
    return _quoted(f"{function.name}+{start}")


def _quoted(*rows: str) -> str:
    escaped = (visible(row).replace("\\", "\\\\").replace('"', '\\"') for row in rows)
    return '"' + "\\l".join(escaped) + ("\\l" if len(rows) > 1 else "") + '"'
