"""Names that others chose never reach the terminal as they are: not as escapes, not as lines of their own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest

from mapek.bpf import ProgramSpec, inventory, words
from mapek.bpf.anatomy import Anatomy
from mapek.bpf.explain import explain
from mapek.bpf.inventory import Attached, Holder, Loaded
from mapek.bpf.validate import validate
from mapek.cli import main, release, say
from mapek.cli.bpf import clean
from mapek.cli.logs import Log
from mapek.cli.printing import human_line
from mapek.cli.release import Left
from tests.support.bytecode import EMPTY, EXIT, anatomy, mov

EVIL = "a\x1b[2J\nb\x9b1m\u202ec\udc80"
SEEN = r"a\x1b[2J\nb\x9b1m\u202ec\udc80"


def evil() -> Anatomy:
    """An object whose only program has the name."""
    found = anatomy(mov(0, 2), EXIT)
    spec = replace(
        found.spec, path=EVIL, license=EVIL, programs={EVIL: ProgramSpec(EVIL, EVIL, "xdp", "", 2)}
    )
    return Anatomy(spec, {EVIL: replace(found.functions["main"], name=EVIL)})


def explained() -> None:
    print(words.text(explain(evil().spec, evil())))


def validated() -> None:
    # The name of a symbol that its object does not have comes back in the reason.
    print(words.report(validate(replace(EMPTY, path=EVIL))))


def drawn() -> None:
    print(words.dot(evil(), [EVIL]).replace("\\\\", "\\"))


def logged() -> None:
    log = Log()
    log.say_held()
    log.handle(logging.LogRecord("x", logging.WARNING, "", 0, "%s is ill", (EVIL.replace("\n", ""),), None))


LOADED = Loaded(
    7, "p", "xdp", "00", "", 0, 0, 2, 2, 0, 0, (), (Attached(0, "xdp", EVIL),), (Holder(1, EVIL),), 0, (EVIL,)
)  # fmt: skip
LEFT = Left(EVIL, EVIL, EVIL, "chain")


def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "programs", lambda: [LOADED])
    main(["bpf", "list"])


def cleaned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean, "clean", lambda *_, **__: [clean.Found(1, LEFT)])
    main(["bpf", "clean"])


def released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "release", lambda *_, **__: [LEFT])
    monkeypatch.setattr(release, "release_filters", lambda **_: [])
    main(["release"])


PRINTERS: list[Callable[..., None]] = [
    lambda: say(EVIL.replace("\n", "")),
    explained,
    validated,
    drawn,
    logged,
    listed,
    cleaned,
    released,
    lambda: print(human_line({"type": "failed", "entity": EVIL, "why": EVIL}, 0)),
]


@pytest.mark.parametrize("printer", PRINTERS)
def test_a_hostile_name(
    printer: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    printer(*([monkeypatch] if printer in (listed, cleaned, released) else []))
    said = "".join(capsys.readouterr())
    assert not {letter for letter in said if not letter.isprintable()} - {"\n"}
    assert SEEN in said or SEEN.replace(r"\n", "") in said
    assert not any(line.startswith("b") for line in said.splitlines())
