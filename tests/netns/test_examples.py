"""examples/mesh_node.py and its plugins on a node of the lab: a loop inside somebody else's program heals."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from pathlib import Path

import pytest

from mapek.simulations.agent import AgentProcess, configuration, key_name
from mapek.simulations.faults import DROP_BOTH
from mapek.simulations.lab import Lab
from mapek.simulations.process import end
from mapek.simulations.topology import pair
from mapek.simulations.traffic import traffic

pytestmark = pytest.mark.netns

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PLUGINS = """
[plugins]
directory = "{folder}"
[sensors.traffic]
[analyzers.metered]
plugin = "threshold"
sensor = "traffic"
metric = "transmit"
above = 20_000
hold_s = 3
entities = ["l1"]
symptom = "busy"
[policies.spare_metered]
[policies.link_failover]
hold_down_s = 3600
hold_down_max_s = 3600
"""


class Said:
    """The lines of a program as they come."""

    def __init__(self, stream: asyncio.StreamReader, errors: asyncio.StreamReader) -> None:
        self.lines: list[str] = []
        self._stream, self._errors = stream, errors

    async def until(self, wanted: str, seconds: float = 30) -> str:
        """Read on to the first line that begins with `wanted`."""
        try:
            async with asyncio.timeout(seconds):
                while line := (await self._stream.readline()).decode().rstrip():
                    self.lines.append(line)
                    if line.startswith(wanted):
                        return line
        except TimeoutError:
            pass
        async with asyncio.timeout(1):
            errors = await self._errors.read(4096)
        pytest.fail(f"no line {wanted!r} in {self.lines}; {errors!r}")


@pytest.mark.timeout(120)
async def test_mesh_node_heals_and_leaves_the_metered_link(tmp_path: Path) -> None:
    folder = tmp_path / "plugins"
    shutil.copytree(EXAMPLES / "plugins", folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (folder, *folder.iterdir()):
        file.chmod(0o755 if file.is_dir() else 0o644)
    async with Lab(pair(links=2)) as lab:
        a, b = lab.nodes["a"], lab.nodes["b"]
        keys = {key_name("a", "b"): "5c" * 32}
        peer = AgentProcess(b)
        await peer.open(configuration(lab, b, "default"), keys)
        try:
            files = a.namespace.files
            (files / "mapek-keys").mkdir(mode=0o700)
            for name, key in keys.items():
                (files / "mapek-keys" / name).touch(mode=0o600)
                (files / "mapek-keys" / name).write_text(key)
            (files / "mapek").mkdir(mode=0o700)
            toml = configuration(lab, a, "default", extra=PLUGINS.format(folder=folder))
            (files / "node.toml").write_text(toml)
            program = await a.namespace.start(
                [sys.executable, str(EXAMPLES / "mesh_node.py"), "/run/node.toml"]
            )
            assert program.stdout is not None
            assert program.stderr is not None
            said = Said(program.stdout, program.stderr)
            try:
                await said.until("a runs")
                await said.until("b is reached over b/l0")
                async with traffic(lab) as flow:
                    await flow.settled(10)
                    async with DROP_BOTH.on(lab.wires["l0"]):
                        await said.until("path b/l0: path_dead")
                        assert ", MTTR " in await said.until("incident 1 recovered")
                        await flow.settled(10)
                    await said.until("link l1: busy")
                    assert ", MTTR " in await said.until("incident 2 recovered")
                    await said.until("b is reached over b/l0")
                    await flow.settled(10)
                    assert (await flow.carrier_of("ab")).spec.name == "l0"
                program.send_signal(signal.SIGINT)
                async with asyncio.timeout(20):
                    assert await program.wait() == 130
                    assert b"Traceback" not in await program.stderr.read()
            finally:
                await end(program, grace=5)
        finally:
            await peer.close()
