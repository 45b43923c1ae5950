"""What the runs came to: read from JUnit files, shown as a table, kept as JSON."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from xml.etree import ElementTree


@dataclass(frozen=True)
class Result:
    """One kernel's tests: how many passed, which failed (with their text), which skipped (with the reason).

    `again` are those among the passed that failed the first time, with what they said then.
    """

    entry: str
    release: str
    passed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    booted_s: float = 0.0
    cpu_s: float = 0.0
    again: dict[str, str] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        return self.passed > 0 and not self.failed


def of_junit(path: Path, entry: str, release: str) -> Result:
    """The result in pytest's JUnit file; without a file, nothing passed."""
    result = Result(entry, release)
    if not path.exists():
        return result
    passed = 0
    # Made by our own pytest in our own guest: not a stranger's XML.
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        bad = [part for part in case if part.tag in ("failure", "error")]
        skips = [part for part in case if part.tag == "skipped"]
        if bad:
            result.failed[name] = "\n".join(part.text or part.get("message") or "" for part in bad)
        elif skips:
            result.skipped[name] = skips[0].get("message", "")
        else:
            passed += 1
    return Result(entry, release, passed, result.failed, result.skipped)


def once_more(first: Result, second: Result) -> Result:
    """What came of it when the tests that failed in `first` ran again, alone, in `second`."""
    if second.passed + len(second.failed) != len(first.failed):
        return first
    again = {name: text for name, text in first.failed.items() if name not in second.failed}
    return replace(first, passed=first.passed + len(again), failed=second.failed, again=again)


def table(results: list[Result]) -> str:
    """One row a kernel, then each reason of a skip with the kernels and the number of tests."""
    head = ("kernel", "release", "passed", "failed", "skipped", "seconds", "CPU s")
    rows = [
        (
            r.entry,
            r.release,
            str(r.passed),
            str(len(r.failed)),
            str(len(r.skipped)),
            f"{r.seconds:.0f}",
            f"{r.cpu_s:.0f}",
        )
        for r in results
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]
    for result in results:
        for reason, count in sorted(Counter(result.skipped.values()).items()):
            lines.append(f"{result.entry}: {count} skipped: {reason}")
        lines += [f"{result.entry}: passed only when it ran again, alone: {name}" for name in result.again]
    return "\n".join(lines)


def write_summary(results: list[Result], path: Path) -> None:
    """All results as one JSON file."""
    path.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
