"""What a walk over a program finds out: `values` walks, `called` knows helpers, `explain` makes answers of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from mapek.bpf.alu import Value

Place = tuple[str, int]
"""A function and a slot in it."""


@dataclass
class Facts:
    """What a program can do.

    Args:
        returns: what it can return and where, "any" for what it computes and "helper:NAME" for what a helper says.
        packet_writes, packet_reads: places that access packet data directly. context_writes: with the byte offset.
        kernel_reads: places that follow pointers of the kernel. unknown_writes, unknown_reads: places that access
            what the walk cannot tell. unknown_given: places that give such a pointer to a helper.
        maps: what is done to each map. hands_on: tail calls with their map, "" where it is not known.
        complete: nothing was left out for the lack of budget.
    """

    returns: dict[Place, Value] = field(default_factory=dict)
    packet_writes: set[Place] = field(default_factory=set)
    packet_reads: set[Place] = field(default_factory=set)
    context_writes: dict[Place, int] = field(default_factory=dict)
    kernel_reads: set[Place] = field(default_factory=set)
    unknown_writes: set[Place] = field(default_factory=set)
    unknown_reads: set[Place] = field(default_factory=set)
    unknown_given: set[Place] = field(default_factory=set)
    maps: dict[str, set[str]] = field(default_factory=dict)
    hands_on: dict[Place, str] = field(default_factory=dict)
    complete: bool = True

    def touch(self, name: str, how: str) -> None:
        """Something is done to a map."""
        self.maps.setdefault(name, set()).add(how)
