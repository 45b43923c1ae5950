"""The words of `mapek lab open`: a line in, a command out; nothing is done here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, get_args

from mapek.errors import ConfigError
from mapek.simulations.wire import Direction

HELP: Final = {
    "drop WIRE [ab|ba]": "lose every frame, both ways or one",
    "loss WIRE PERCENT [ab|ba]": "lose frames by chance",
    "carrier WIRE down|up": "take the carrier from both ends, or give it back",
    "flap WIRE": "silent for 50 ms, fine for 200 ms, and so on",
    "clear [WIRE]": "end all faults of a wire, or of all",
    "wait SECONDS": "do nothing for a while; for scripts",
    "status": "the flow, the wires and what the agents cost",
    "help": "this",
    "quit": "close the lab; so do the end of input and Ctrl-C",
}
_LONGEST_WAIT_S: Final = 86_400.0


@dataclass(frozen=True)
class Command:
    """One command: `wire` is empty where none belongs, `value` is percent or seconds."""

    verb: str
    wire: str = ""
    direction: Direction = "both"
    value: float = 0.0
    up: bool = False


def parse(line: str) -> Command | None:
    """The command on a line; None for an empty line or a comment (#). Raises ConfigError for anything else.

    >>> parse("loss l0 30 ab")
    Command(verb='loss', wire='l0', direction='ab', value=30.0, up=False)
    """
    words = line.partition("#")[0].split()
    if not words:
        return None
    match words:
        case ["status" | "help" | "quit" as verb]:
            return Command(verb)
        case ["clear"]:
            return Command("clear")
        case ["clear" | "flap" as verb, wire]:
            return Command(verb, wire)
        case ["drop", wire, *rest] if len(rest) < 2:
            return Command("loss", wire, _direction(rest), 100.0)
        case ["loss", wire, percent, *rest] if len(rest) < 2:
            return Command("loss", wire, _direction(rest), _number(percent, 100.0))
        case ["carrier", wire, "down" | "up" as way]:
            return Command("carrier", wire, up=way == "up")
        case ["wait", seconds]:
            return Command("wait", value=_number(seconds, _LONGEST_WAIT_S))
    usage = [text for text in HELP if text.split()[0] == words[0]]
    if usage:
        raise ConfigError(
            "read", f"command {line.strip()[:60]!r}", "it lacks or has a word", f"say {usage[0]}"
        )
    raise ConfigError("read", f"command {line.strip()[:60]!r}", "there is none of that name", "say help")


def _direction(words: list[str]) -> Direction:
    for known in get_args(Direction):
        if words == [known]:
            found: Direction = known
            return found
    if words:
        raise ConfigError(
            "read", f"direction {words[0][:20]!r}", "there is no such direction", "say ab or ba"
        )
    return "both"


def _number(word: str, most: float) -> float:
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise ConfigError("read", f"number {word[:20]!r}", "it is none or out of range", f"say 0 to {most:g}")
    return value
