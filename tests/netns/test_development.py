"""docs/DEVELOPMENT.md, followed to the letter: every command of it in order, and the sensor that comes of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapek.bpf import ObjectSpec, features
from mapek.bpf.explain import explain
from mapek.bpf.words import text
from mapek.config.options import Table
from mapek.plugins import SENSORS, find
from mapek.testing import VethLinks, check_sensor
from tests.netns.sensors.wires import Space

pytestmark = [pytest.mark.netns, pytest.mark.needs("clang")]

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "DEVELOPMENT.md").read_text("utf-8")
MADE_BY_OTHERS = ("apt-get ", "make demo")
"""What sets the checkout up: this test runs in one where it was done."""


@pytest.fixture
def checkout() -> Iterator[Path]:
    """The examples copied beside the rest as it is; readable to all, for the suite asks as nobody too."""
    folder = Path(tempfile.mkdtemp(prefix="mapek-development-"))
    try:
        folder.chmod(0o755)
        shutil.copytree(
            ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("*.o", "__pycache__")
        )
        for file in (folder / "examples").rglob("*"):
            file.chmod(0o755 if file.is_dir() or file.suffix == ".sh" else 0o644)
        for name in ("bpf", "mapek", ".venv"):
            (folder / name).symlink_to(ROOT / name)
        yield folder
    finally:
        shutil.rmtree(folder)


def commands() -> list[str]:
    """Those of the page's console blocks, in order, without their comments."""
    blocks = re.findall(r"^```console\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    return [line.removeprefix("$ ").partition(" #")[0].strip() for line in lines]


def built(checkout: Path) -> Path:
    subprocess.run([checkout / "examples" / "packet_sizes" / "build.sh"], check=True)
    return checkout / "examples" / "packet_sizes"


@pytest.mark.timeout(180)
def test_the_page_leads_to_a_graph(checkout: Path) -> None:
    said = ""
    for command in commands():
        if command.startswith(MADE_BY_OTHERS):
            continue
        done = subprocess.run(
            command.split(), cwd=checkout, env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        said += done.stdout
    assert "packet_sizes.o: valid" in said
    assert "all in the right bucket" in said
    sent, counted = re.findall(r"sent (\d+) frames, counted (\d+)", said)[0]
    assert sent == counted == "1700"
    assert re.search(r"sent 958000 bytes, counted 958000$", said, re.MULTILINE)
    picture = (checkout / "sizes.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 5000


def test_what_the_page_shows_of_explain_is_said(checkout: Path) -> None:
    spec = ObjectSpec.read(built(checkout) / "packet_sizes.o")
    shown = re.findall(r"^```text\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[0]
    assert shown in text(explain(spec))


@pytest.mark.timeout(180)
async def test_its_sensor_passes_the_suite(checkout: Path) -> None:
    sensor = find(SENSORS, "packet_sizes", built(checkout) / "plugins")
    space = Space.new()
    try:
        with space.entered():
            links = VethLinks({"l0": ["10.0.0.1/24"]})
            links.add("l0")
            await check_sensor(lambda: sensor(Table({"interfaces": ["l0"]})), links=links, deny=features.deny)
    finally:
        space.close()
