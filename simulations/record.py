"""Makes the recording that ships: `python -m mapek.simulations.record simulations/recordings/pair.mcap`.

A short lab run in the fast profile, as node a saw and decided it: silence both ways, silence one way, a gray
fault, quiet. It is kept only if every fault was healed and a replay, in a process of its own, decides alike
with nothing missing; so whoever runs this after a change of the decisions ships what the code does now.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TextIO

from mapek.errors import MapekError, RecordingError
from mapek.simulations.agent import Mapek
from mapek.simulations.campaign import Series, Spell, run_campaign
from mapek.simulations.faults import DROP_AB, DROP_BOTH, gray
from mapek.simulations.lab import Lab
from mapek.simulations.process import child_environment
from mapek.simulations.told import Teller

LIMIT: Final = 250_000
"""Bytes that the recording may have: it is kept in git, and every version of it."""

_NODE: Final = "a"
_INSIDE: Final = "mapek-record.mcap"
_SERIES: Final = (Series(DROP_BOTH, 1), Series(DROP_AB, 1), Series(gray(10, hold_s=0.5), 1))
_QUIET: Final = Spell(0.5)


class _Recorded(Mapek):
    """Agents that record what they see; `data` is one node's recording once they have closed."""

    def __init__(self, teller: Teller) -> None:
        super().__init__("fast", extra=f'[record]\nfile = "/run/{_INSIDE}"', listener=teller.event)
        self.data = b""
        self._lab: Lab | None = None

    async def open(self, lab: Lab) -> None:
        """Start them."""
        await super().open(lab)
        self._lab = lab

    async def close(self) -> None:
        """Stop them, and take the recording before the node's private files go with the lab."""
        await super().close()
        lab, self._lab = self._lab, None
        if lab is not None:
            file = lab.nodes[_NODE].namespace.files / _INSIDE
            self.data = await asyncio.to_thread(file.read_bytes)


async def record(file: Path, *, out: TextIO | None = None) -> int:
    """Run the lab and put the recording at `file`; returns its size in bytes.

    Raises RecordingError, and leaves what was at `file`, when the run is not fit to be shown; and what the
    lab raises where it cannot run.
    """
    teller = Teller(out)
    agents = _Recorded(teller)
    result = await run_campaign(agents, _SERIES, (_QUIET,), listener=teller)
    if not result.healed:
        raise _unfit(
            file, "not every fault of it was healed", "look at what the agents said above, run it again"
        )
    if len(agents.data) > LIMIT:
        why = f"{len(agents.data)} bytes, more than {LIMIT}"
        raise _unfit(file, why, "run it again, or shorten the run in record.py")
    scratch = file.with_name(f".{file.name}.new")
    try:
        await asyncio.to_thread(scratch.write_bytes, agents.data)
        await _check(file, scratch)
        await asyncio.to_thread(scratch.replace, file)
    except OSError as error:
        raise RecordingError(
            "write", file, error.strerror or str(error), "name a file that can be written"
        ) from error
    finally:
        scratch.unlink(missing_ok=True)
    return len(agents.data)


async def _check(file: Path, scratch: Path) -> None:
    """Replay it as a user would."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mapek", "replay", "--json", str(scratch),
        stdout=PIPE, stderr=PIPE, env=child_environment(),
    )  # fmt: skip
    said, words = await process.communicate()
    try:
        found = json.loads(said)
        whole = not found["damage"] and not found["missing"] and not found["questions"]["unknown"]
        difference = found["difference"]
    except (ValueError, KeyError, TypeError) as error:
        last = words.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise _unfit(file, f"it cannot be replayed ({last[0]})", "mend that first") from error
    if difference is not None:
        why = f"a replay differs at decision {difference['number']}: {difference['replayed']}"
        raise _unfit(file, why, "find what the loop decides by that is not recorded")
    if process.returncode != 0 or not whole:
        raise _unfit(file, "something is missing in it", "run it again on a quieter machine")


def _unfit(file: Path, why: str, do: str) -> RecordingError:
    return RecordingError("keep", file, why, do)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when the recording was kept."""
    parser = argparse.ArgumentParser(
        prog="python -m mapek.simulations.record", description="Record a lab run to be shipped; as root."
    )
    parser.add_argument("file", type=Path, metavar="OUT.mcap")
    file: Path = parser.parse_args(argv).file
    try:
        size = asyncio.run(record(file))
    except MapekError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{file}: {size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
