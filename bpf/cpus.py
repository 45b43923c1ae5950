"""Two numbers that the kernel has of CPUs, which differ where their numbers have gaps, as on some servers and guests.

The kernel packs per-CPU values one after the other, one for each possible CPU. A program that indexes an array by
`bpf_get_smp_processor_id()` needs a place for each number up to the highest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

POSSIBLE: Final = Path("/sys/devices/system/cpu/possible")


def cpu_ranges(text: str) -> list[tuple[int, int]]:
    """First and last of each range of a list as the kernel writes it: "0,2-3". Raises ValueError."""
    ranges = [part.partition("-") for part in text.strip().split(",")]
    return [(int(first), int(last or first)) for first, _, last in ranges]


def possible_cpus() -> int:
    """How many CPUs the kernel may ever bring up: the length of a per-CPU value, not the online count."""
    return sum(last - first + 1 for first, last in cpu_ranges(POSSIBLE.read_text("ascii")))


def cpu_slots() -> int:
    """The highest number that a CPU can have, and one: the length of an array that is indexed by it."""
    return max(last for _, last in cpu_ranges(POSSIBLE.read_text("ascii"))) + 1
