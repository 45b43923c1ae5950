"""Names that others chose, on their way to a terminal: a program, an interface, a process or a pin may be called
what clears the screen, hides a line or makes one up.
"""

from __future__ import annotations


def visible(line: str) -> str:
    r"""One line in which whatever is no letter, sign or space stands as its escape; a tab stays.

    >>> visible("a\x1b[2J\n\u202eb")
    'a\\x1b[2J\\n\\u202eb'
    """
    if line.isprintable():
        return line
    return "".join(
        letter if letter.isprintable() or letter == "\t" else letter.encode("unicode_escape").decode("ascii")
        for letter in line
    )
