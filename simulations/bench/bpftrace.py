"""bpftrace as a rival: started with a script, told when its probes run, ended, and its maps read.

Only what it says of itself as JSON is read. Where it is not installed the row says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from mapek.errors import FeatureError, PermanentError, TemporaryError
from mapek.simulations.contender import Usage
from mapek.simulations.process import child_environment, end
from mapek.simulations.usage import usage

PATIENCE_S: Final = 60.0
_TOLD: Final = 'interval:ms:20 { printf("."); }'


class Bpftrace:
    """One script, running; an async context manager. `ready_s` is from start to its first sign of life.

    Raises FeatureError when it is not installed or this kernel has not what the script needs, TemporaryError when it
    says nothing for `PATIENCE_S`.
    """

    def __init__(self, script: str) -> None:
        self._script = f"{script} {_TOLD}"
        self._process: Process | None = None
        self.ready_s = 0.0

    async def __aenter__(self) -> Bpftrace:
        found = shutil.which("bpftrace")
        if found is None:
            raise FeatureError("run", "bpftrace", "it is not installed", "apt-get install bpftrace")
        start = time.monotonic()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mapek.simulations.bench.tracing_enter"),
            *(found, "-f", "json", "-e", self._script),
            stdout=PIPE,
            stderr=PIPE,
            env=child_environment(),
            limit=1 << 20,
        )
        try:
            await self._until_told()
        except BaseException:
            await end(self._process)
            raise
        self.ready_s = time.monotonic() - start
        return self

    async def _until_told(self) -> None:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        assert process.stderr is not None
        async with patience("start"):
            while line := await process.stdout.readline():
                if record(line).get("type") == "printf":
                    return
            said = (await process.stderr.read()).decode(errors="replace").strip().splitlines()
        raise FeatureError(
            "run", "bpftrace", said[-1] if said else "it ended without a word", "run it by hand"
        )

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            await end(self._process)

    def usage(self) -> Usage:
        """What it costs until now."""
        assert self._process is not None
        return usage(self._process.pid)

    async def counts(self) -> dict[str, int]:
        """End it; the sum of each of its maps, histograms included, by name.

        Raises PermanentError with its last words when it failed, TemporaryError when it does not end.
        """
        process = self._process
        assert process is not None
        os.kill(process.pid, signal.SIGINT)
        async with patience("end"):
            output, said = await process.communicate()
        found: dict[str, int] = {}
        for line in output.splitlines():
            one = record(line)
            data = one.get("data")
            if one.get("type") in ("map", "hist") and isinstance(data, dict):
                for name, value in data.items():
                    found[name] = summed(value)
        if process.returncode:
            last = said.decode(errors="replace").strip().splitlines()[-1:] or ["it failed"]
            raise PermanentError("read", "bpftrace", last[0], "run it by hand")
        return found


@asynccontextmanager
async def patience(tried: str, seconds: float = PATIENCE_S) -> AsyncIterator[None]:
    """Raises TemporaryError when what is inside takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise TemporaryError(
            tried, "bpftrace", f"not done after {seconds:g} s", "leave it the cores"
        ) from error


def record(line: bytes) -> dict[str, object]:
    """One line; between the records it writes empty ones."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def summed(value: object) -> int:
    """What a map of it holds: a number, numbers by key, or a histogram's buckets."""
    if isinstance(value, int):
        return value
    if isinstance(value, dict):
        return sum(map(summed, value.values()))
    if isinstance(value, list):
        return sum(bucket["count"] for bucket in value if isinstance(bucket, dict))
    return 0
