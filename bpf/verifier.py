"""Turns the verifier's log into the few lines that matter.

A log can be megabytes, of which a person needs the last complaint and the source line it is about. As in
cilium/ebpf, two small rules choose: drop the statistics at the end, then take the last line, and the ones
before it while it is a mere continuation. For the complaints that are met most often, the usual cure is known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_STATISTICS: Final = re.compile(
    r"^(processed \d+ insns|verification time|stack depth|max_states|mark_read|-- (BEGIN|END) PROG LOAD LOG)"
)
_INSTRUCTION: Final = re.compile(r"^\d+: ")
_STATE: Final = re.compile(r"^(from \d+ to \d+|R\d+[=_w]|\d+: R\d|; R\d|last_idx|regs=|parent |frame\d+: )")
_SOURCE: Final = re.compile(r"^; ?(.*?)(?: @ ([^ ]+:\d+))?$")
_REGISTER: Final = re.compile(r"\bR(\d+)\b")

TOO_LARGE: Final = (
    "make loops shorter, or move them into a function that is not inlined, or split it by a tail call"
)
"""What to do about a program that the verifier gives up on."""

CURES: Final = tuple(
    (re.compile(complaint), cure)
    for complaint, cure in (
        (
            r"invalid access to packet|outside of the packet",
            "compare the address behind the last byte with data_end before every read of the packet",
        ),
        (r"_or_null('| prohibited)", "test what the helper returned for NULL before it is used"),
        (
            r"invalid access to map value|outside of the allowed memory range",
            "stay within the size of the map's value: compare the offset with it",
        ),
        (
            r"unbounded memory access|unbounded min value|min value is negative|unbounded max|math between",
            "bound the index right before it is used, unsigned: if (i >= N) return, or i &= N - 1",
        ),
        (
            r"!read_ok",
            "give the variable a value on every way that leads here; a call leaves nothing in R1 to R5",
        ),
        (
            r"infinite loop detected|back-edge",
            "give the loop a bound that shrinks to its end: for (i = 0; i < CONSTANT; i++)",
        ),
        (
            r"too large\. Processed|too many (states|jumps)|sequence of \d+ jumps",
            TOO_LARGE,
        ),
        (
            r"[Rr]eference leak|Unreleased reference|spin_lock-ed region|bpf_spin_unlock is missing",
            "release on every way to the exit what was taken: bpf_ringbuf_submit or _discard, bpf_sk_release, "
            "bpf_spin_unlock",
        ),
        (
            r"cannot use helper|unknown func|invalid func",
            "take a helper that this program type and this kernel have (bpf-helpers(7), mapek doctor)",
        ),
        (r"GPL", 'call no such helper, or license it so: char LICENSE[] SEC("license") = "GPL"'),
        (
            r"invalid mem access '(scalar|inv)'",
            "read through it by bpf_probe_read_kernel or BPF_CORE_READ: it is a number to the verifier",
        ),
        (
            r"variable ctx access|dereference of modified ctx",
            "read the context at offsets that are constant, from the pointer that the program was given",
        ),
        (
            r"pointer arithmetic|pointer comparison prohibited",
            "only add to a pointer and subtract from it: compute with a number, and add that",
        ),
        (
            r"At program exit the register R0|should have been in",
            "return only what this program type may, such as 0 or 1 (see `returns` of mapek bpf explain)",
        ),
        (r"invalid bpf_context access", "use a field that this program type has, in its full width"),
        (
            r"(write to|read from|access to|off).* stack|invalid stack|stack size|stack depth",
            "take less than 512 bytes of stack: put large things into a per-CPU array map",
        ),
        (r"type=\S+ expected=", "give the helper what it wants in that argument: R1 is the first"),
    )
)


@dataclass(frozen=True, slots=True)
class Complaint:
    """What a log says, for people.

    Args:
        message: the verifier's own words.
        register: the one that was wrong ("R1"), with what it held when it was last said ("R1, which is pkt(r=0)");
            "" where the message names none.
        place: of the source, "file.c:12"; "" without BTF. `line` is the text there.
        cure: the usual one, "" for a complaint that is not among those that are known.
    """

    message: str
    register: str = ""
    place: str = ""
    line: str = ""
    cure: str = ""


def complaint(log: str) -> Complaint:
    """The last complaint of a log. Every part is "" for an empty log."""
    rows = [row.strip() for row in log.replace("\0", "").splitlines()]
    rows = [row for row in rows if row and not _STATISTICS.match(row)]
    last = len(rows)
    while last and not (_INSTRUCTION.match(rows[last - 1]) or rows[last - 1].startswith(";")):
        last -= 1
    message = ", ".join(rows[last:] or rows[-1:])
    cure = next((cure for pattern, cure in CURES if pattern.search(message)), "")
    register, place, line = "", "", ""
    if found := _REGISTER.search(message):
        register = found[0]
        holds = re.compile(rf"\b{register}(?:_\w+)?=(\S+)")
        if held := next((one for row in reversed(rows[:last]) for one in holds.findall(row)[-1:]), ""):
            register += f", which is {held}"
    for row in reversed(rows[:last]):
        # A line without text or number is code that comes from no line.
        if (source := _SOURCE.match(row)) and source[1]:
            line, place = source[1].strip(), source[2] or ""
            break
    return Complaint(message, register, place, line, cure)


def summary(log: str, lines: int = 3) -> str:
    """The complaint of a verifier log and the source line before it, joined to one line; "" for an empty log.

    Args:
        log: the text as the kernel wrote it, NULs and statistics included.
        lines: at most so many lines are taken.
    """
    rows = [row.strip() for row in log.replace("\0", "").splitlines()]
    rows = [row for row in rows if row and not _STATISTICS.match(row)]
    if not rows:
        return ""
    picked = [rows[-1]]
    # "... or a helper call's second line": a complaint that starts with a blank or a bracket continues the
    # one before.
    for row in reversed(rows[:-1]):
        if len(picked) >= lines:
            break
        if _STATE.match(row):
            continue
        if row.startswith(";"):
            picked.append(f"at source line {row.lstrip('; ')!r}")
            break
        if _INSTRUCTION.match(row):
            if len(picked) == 1:
                picked.append(f"instruction {row}")
            continue
        if row[0].islower() or row[0] in "([":
            picked.append(row)
    return ", ".join(picked)
