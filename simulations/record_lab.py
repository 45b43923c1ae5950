"""Makes the recordings that ship: a short campaign in the lab, as one node's loop saw it.

    python -m mapek.simulations.record_lab simulations/recordings

Needs what the lab needs (root, BPF). To be run again whenever our analyzers or policies decide otherwise on
purpose: a test replays what ships and compares byte for byte.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Final

from mapek.errors import MapekError, RecordingError
from mapek.simulations.agent import Mapek, Profile
from mapek.simulations.campaign import Series, Spell, run_campaign
from mapek.simulations.faults import DROP_AB, DROP_BOTH, gray

NODE: Final = "a"
PROFILES: Final[tuple[Profile, ...]] = ("default", "fast")
_FILE: Final = "recording.mcap"


class _Recorded(Mapek):
    """Agents that record, and whose recording is fetched before their node vanishes."""

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile, extra=f'[record]\nfile = "/run/{_FILE}"')
        self.recording = b""

    async def close(self) -> None:
        """Stop every agent, then keep what one of them recorded."""
        await super().close()
        if NODE in self.agents and not self.recording:
            file = self.agents[NODE].node.namespace.files / _FILE
            self.recording = file.read_bytes() if file.exists() else b""


async def record(profile: Profile) -> bytes:
    """One node's recording of two silent drops, a one-way drop, a gray failure and a quiet spell."""
    system = _Recorded(profile)
    faults = (Series(DROP_BOTH, 2), Series(DROP_AB, 1), Series(gray(30, hold_s=2.0), 1))
    result = await run_campaign(system, faults, [Spell(2.0)])
    if not result.healed:
        raise RecordingError(
            "record", f"the {profile} profile", "not every fault was healed", "see `mapek lab`"
        )
    if not system.recording:
        raise RecordingError("record", f"the {profile} profile", "the agent wrote no recording")
    return system.recording


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for profile in PROFILES:
            data = asyncio.run(record(profile))
            (folder / f"lab_{profile}.mcap").write_bytes(data)
            sys.stdout.write(f"{folder}/lab_{profile}.mcap: {len(data)} bytes\n")
    except (MapekError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
