"""The examples run as they lie there, and the README shows them as they are."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest

from mapek.cli import parser
from mapek.config import load_config, parse_config
from mapek.errors import ConfigError
from mapek.plugins import POLICIES, SENSORS, find

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"(?:<!-- (?P<mark>[^>]+) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
PLUGINS = ("traffic", "spare_metered")


def blocks(kind: str) -> list[tuple[str, str, str]]:
    """(page, mark, text) of all blocks of a kind."""
    return [
        (page.name, found["mark"] or "", found["text"])
        for page in PAGES
        for found in FENCE.finditer(page.read_text("utf-8"))
        if found["kind"] == kind
    ]


def of_page(page: str, mark: str = "") -> list[tuple[str, str]]:
    return [
        (kind, text)
        for kind in ("python", "toml", "console")
        for name, found, text in blocks(kind)
        if name == page and found.startswith(mark)
    ]


def words(page: str) -> list[str]:
    """The commands of a page's console blocks."""
    return [
        line.removeprefix("$ ").partition(" #")[0].strip()
        for _, text in ((kind, text) for kind, text in of_page(page) if kind == "console")
        for line in text.splitlines()
        if line.startswith("$ ")
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the examples: a plugin folder that others may write, as in some checkouts, is refused."""
    copied = tmp_path / "examples"
    shutil.copytree(EXAMPLES, copied, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (copied, *copied.rglob("*")):
        file.chmod(0o755 if file.is_dir() else 0o644)
    return copied


def make_key(file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("00" * 32 + "\n")
    file.chmod(0o600)


@pytest.mark.parametrize("name", ["pair", "full"])
def test_a_configuration_lacks_only_its_key(folder: Path, name: str) -> None:
    file = folder / f"{name}.toml"
    with pytest.raises(
        ConfigError, match="does not exist; make it with: \\(umask 077; openssl rand"
    ) as caught:
        load_config(file)
    make_key(Path(caught.value.do.rpartition("> ")[2].rstrip(")")))
    assert load_config(file).topology.paths()


def test_full_has_every_key_and_its_default(folder: Path) -> None:
    text = (folder / "full.toml").read_text()
    make_key(folder / "keys" / "b.key")
    config = load_config(folder / "full.toml")
    bare = parse_config('[node]\nname = "cellar"\n')
    assert (config.loop, config.service) == (bare.loop, bare.service)
    assert (config.record, config.plugin_directory) == (None, None)
    for key in ("profile", "realtime", "pin", "wait", "listen", "file", "directory", "preference"):
        assert re.search(rf"^{key} = ", text, re.MULTILINE), key


@pytest.mark.parametrize("name", sorted(PLUGINS))
def test_a_plugin_is_one_small_file(folder: Path, name: str) -> None:
    text = (folder / "plugins" / f"{name}.py").read_text()
    assert len([line for line in text.splitlines() if line.strip()]) < 15
    folder /= "plugins"
    if name == "traffic":
        assert find(SENSORS, name, folder).name == name
    else:
        assert find(POLICIES, name, folder).name == name


@pytest.mark.parametrize("page", ["README.md", "docs/DEVELOPMENT.md"])
def test_what_is_shown_of_a_file_is_the_file(page: str) -> None:
    shown = [found for found in FENCE.finditer((ROOT / page).read_text("utf-8")) if found["mark"]]
    files = {
        found["mark"].removeprefix("file: "): found["text"] for found in shown if "file: " in found["mark"]
    }
    assert page != "README.md" or {f"examples/plugins/{name}.py" for name in PLUGINS} <= set(files)
    for name, text in files.items():
        whole = (ROOT / name).read_text("utf-8")
        assert text in whole, f"{name} and what {page} shows of it differ"
        assert not name.endswith((".py", ".c", ".sh")) or text == whole


async def run(*command: str, cwd: Path, timeout: float = 30) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(timeout):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_the_pages_programs_run(folder: Path) -> None:
    """Each Python block that is no file of ours, as it stands, beside a node.toml."""
    programs = [text for page, mark, text in blocks("python") if page != "CONTRIBUTING.md" and not mark]
    assert len(programs) > 2
    shutil.copy(folder / "plugins.toml", folder / "node.toml")
    for number, text in enumerate(programs):
        (folder / f"program{number}.py").write_text(text)
        code, out, err = await run(sys.executable, f"program{number}.py", cwd=folder)
        assert code == 0, (out, err)


def test_toml_blocks_are_configurations(folder: Path) -> None:
    found = blocks("toml")
    assert found
    make_key(folder / "keys" / "attic.key")
    for page, _, text in found:
        whole = text if "[node]" in text else f'[node]\nname = "cellar"\n{text}'
        try:
            parse_config(whole, folder / "node.toml")
        except ConfigError as error:
            pytest.fail(f"{page}: {error}")


def test_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    seen = 0
    for page in PAGES:
        for line in words(page.name):
            command = shlex.split(line)
            if command[0] == "make":
                assert command[1] in targets, line
            elif command[0] == "mapek":
                parser().parse_args(command[1:])
            else:
                continue
            seen += 1
    assert seen > 4


async def test_mesh_node_sees_a_busy_link_with_our_own_plugins(folder: Path) -> None:
    """Real bytes over the loopback interface: counted by the sensor, judged by `threshold`, told."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "mesh_node.py",
        "plugins.toml",
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    lines: list[str] = []

    async def listen(stream: asyncio.StreamReader) -> None:
        while "link lo: busy" not in lines and (line := await stream.readline()):
            lines.append(line.decode().rstrip())

    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out,
    ):
        sink.bind(("127.0.0.1", 0))
        listening = asyncio.create_task(listen(process.stdout))
        async with asyncio.timeout(40):
            while not listening.done():
                for _ in range(20):
                    out.sendto(bytes(1000), sink.getsockname())
                await asyncio.wait((listening,), timeout=0.02)
    assert "link lo: busy" in lines, lines
    assert lines[0].startswith("cellar runs, /metrics on port ")
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(20):
        assert await process.wait() == 130
        assert b"Traceback" not in await process.stderr.read()


async def test_mesh_node_without_a_key_says_so_in_one_line(folder: Path) -> None:
    code, out, err = await run(sys.executable, "mesh_node.py", "pair.toml", cwd=folder)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "openssl rand" in err
