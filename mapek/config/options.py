"""A table of the configuration and how to read it: each key by name, type and range, or one clear line.

Plugins read their own options with `take`; what a plugin never asked for is an unknown key, found by
`leftover` after its constructor returned, so that no plugin needs a second list of its own keys.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from mapek.errors import ConfigError

T = TypeVar("T")

_WORDS: Mapping[type, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}
_RESERVED = frozenset({"enabled", "plugin"})


class Table(Mapping[str, object]):
    """One table of a TOML file that knows where it stands and which of its keys were read.

    Args:
        values: what TOML gave.
        file: the file's name, for messages.
        place: the table's own name in the file ("[sensors.link_watch]"); empty for the top.
        defaults: values that stand for keys that the file does not set.
        folder: of the file, where relative paths start.
    """

    def __init__(
        self,
        values: Mapping[str, object],
        file: str = "options",
        place: str = "",
        defaults: Mapping[str, object] | None = None,
        folder: Path = Path(),
    ) -> None:
        self.file, self.place, self.folder = file, place, folder
        self._values, self._defaults = dict(values), dict(defaults or {})
        self._read: set[str] = set()

    def __getitem__(self, key: str) -> object:
        self._read.add(key)
        return self._values[key] if key in self._values else self._defaults[key]

    def __iter__(self) -> Iterator[str]:
        # Who walks the whole table takes the keys as they come, and has to judge them.
        self._read.update(self._values)
        return iter({**self._defaults, **self._values})

    def __len__(self) -> int:
        return len({**self._defaults, **self._values})

    def set_keys(self) -> tuple[str, ...]:
        """The keys that the file sets, in its order; does not count as reading them."""
        return tuple(self._values)

    def merged(self) -> dict[str, object]:
        """All values, those not set by their defaults; does not count as reading them."""
        return {**self._defaults, **self._values}

    def leftover(self) -> None:
        """Raise ConfigError for the first key that nobody has asked for."""
        for key in self._values:
            if key not in self._read and key not in _RESERVED:
                raise error(self, key, "unknown key", guess(key, self._read | _RESERVED, "remove it"))


def error(options: Mapping[str, object], key: str, why: str, do: str) -> ConfigError:
    """A ConfigError about `key` of `options`, in one line whatever the file holds."""
    file = options.file if isinstance(options, Table) else "options"
    place = options.place if isinstance(options, Table) else ""
    where = " ".join(part for part in (f"{file}:", place, plain(key)) if part)
    return ConfigError("read", where, why, do)


def plain(text: object, limit: int = 60) -> str:
    """`text` on one line and not too long: what comes from a file may hold anything."""
    line = str(text)
    if not line.isprintable():
        line = line.encode("unicode_escape").decode("ascii")
    return line if len(line) <= limit else line[: limit - 1] + "…"


def open_at_once(path: str, flags: int) -> int:
    """An opener for `open` that does not wait for the other end of a FIFO in a file's place."""
    return os.open(path, flags | os.O_NONBLOCK)


def guess(word: str, known: Iterable[str], otherwise: str) -> str:
    """What to do about a `word` that is none of `known`: the nearest, all if few, or `otherwise`."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f'did you mean "{near[0]}"?'
    return f"known are {', '.join(names)}" if 0 < len(names) <= 12 else otherwise


def take(
    options: Mapping[str, object],
    key: str,
    kind: type[T],
    default: T | None = None,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Iterable[T] = (),
    required: bool = False,
) -> T:
    """The value of `key`, of type `kind` (str, int, float, bool, list, dict), or `default` if it is not set.

    A whole number is taken where a float is asked for; true is never taken for 1.

    Args:
        default: what stands for a key that is not set; needed unless `required`.
        minimum: the smallest number (or length of a string or list) allowed.
        maximum: the largest one.
        choices: the only values allowed, if any.

    Raises:
        ConfigError: not set though `required`, wrong type, out of range, none of `choices`.

    >>> take({"period_ms": 10}, "period_ms", float, 1.0, minimum=0.1)
    10.0
    >>> take({"period_ms": "10"}, "period_ms", float, 1.0)
    Traceback (most recent call last):
    mapek.errors.ConfigError: read options: period_ms: is a string, not a number; write it without quotes
    """
    try:
        value = options[key]
    except KeyError:
        if required:
            raise error(options, key, "is missing", f"set it to {_WORDS.get(kind, kind.__name__)}") from None
        if default is None:
            raise ValueError(f"take({key!r}) needs a default or required=True") from None
        return default
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise error(options, key, f"is {_word(value)}, not {_WORDS[kind]}", _cure(value, kind))
    allowed = tuple(choices)
    if allowed and value not in allowed:
        words = tuple(f'"{choice}"' if isinstance(choice, str) else str(choice) for choice in allowed)
        raise error(options, key, f"is {_quoted(value)}, not {' or '.join(words)}", "use one of them")
    _check_range(options, key, value, minimum, maximum)
    return value


def take_strings(options: Mapping[str, object], key: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
    """A list of strings. Raises ConfigError for anything else."""
    values = take(options, key, list, list(default))
    for place, value in enumerate(values):
        if not isinstance(value, str):
            raise error(options, f"{key}[{place}]", f"is {_word(value)}, not a string", "put it in quotes")
    return tuple(values)


def located(options: Mapping[str, object], key: str, written: str) -> Path | None:
    """The path that `key` names, from the folder of the configuration where it is relative; None for "".

    Raises ConfigError for what cannot be a path.
    """
    if "\0" in written:
        raise error(options, key, "holds a zero byte", "write a path")
    folder = options.folder if isinstance(options, Table) else Path()
    return folder / Path(written).expanduser() if written else None


def _check_range(
    options: Mapping[str, object], key: str, value: object, minimum: float | None, maximum: float | None
) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise error(options, key, f"is {value}, not a finite number", "write a finite number")
    measured = len(value) if isinstance(value, str | list) else value
    if not isinstance(measured, int | float):
        return
    what = "" if measured is value else " in length"
    limits = (
        f"at least {minimum:g}"
        if maximum is None and minimum is not None
        else f"at most {maximum:g}"
        if maximum is not None
        else ""
    )
    if minimum is not None and maximum is not None:
        limits = f"between {minimum:g} and {maximum:g}"
    if (minimum is not None and measured < minimum) or (maximum is not None and measured > maximum):
        raise error(options, key, f"is {measured:g}{what}", f"it must be {limits}{what}")


def _word(value: object) -> str:
    for kind in (bool, str, int, float, list, dict):
        if isinstance(value, kind):
            return "true or false" if kind is bool else _WORDS[kind]
    return f"a {type(value).__name__}"  # TOML's dates and times


def _quoted(value: object) -> str:
    return f'"{plain(value)}"' if isinstance(value, str) else plain(value)


def _cure(value: object, kind: type) -> str:
    if isinstance(value, str) and kind in (int, float, bool):
        return "write it without quotes"
    if kind is str:
        return "put it in quotes"
    if kind is list:
        return "put it in square brackets"
    return f"write {_WORDS[kind]}"
