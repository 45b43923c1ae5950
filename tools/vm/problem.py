"""The one exception of this package: its text is the line that the user reads."""

from __future__ import annotations


class Problem(Exception):
    """Something that keeps a kernel from being fetched or booted, in one line: what was tried, why, what to do."""
