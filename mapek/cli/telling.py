"""Lines for people on stdout and stderr, in which names that others chose can do no harm."""

from __future__ import annotations

import sys

from mapek.bpf.visible import visible


def tell(*lines: str) -> None:
    """Each as one line on stdout."""
    for line in lines:
        print(visible(line))


def say(message: object) -> None:
    """One line on stderr."""
    line = " | ".join(part.strip() for part in str(message).splitlines() if part.strip())
    print(f"mapek: {visible(line)}", file=sys.stderr, flush=True)
