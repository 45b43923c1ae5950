"""The file of identities is read again whenever what its path leads to has changed, and not when it has not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from mapek.clock import RealClock
from mapek.errors import ConfigError
from mapek.sensors.identities import Identities
from mapek.sensors.identity_watch import IdentityFile
from tests.support.machine import patience


def text(number: int) -> str:
    return f'[[identity]]\nspiffe_id = "spiffe://example.org/n"\nmacs = ["02:00:00:00:00:{number:02x}"]\n'


class Watched:
    """A file that is watched, and what the registry says by it."""

    def __init__(self, path: Path) -> None:
        self.registry = Identities()
        self.file = IdentityFile(path, self.registry)
        self.tasks: list[asyncio.Future[None]] = []

    async def open(self) -> None:
        await self.file.open(RealClock(), lambda work: self.tasks.append(asyncio.ensure_future(work)))

    async def close(self) -> None:
        self.file.close()
        await asyncio.gather(*self.tasks)

    def says(self) -> list[int]:
        return [address[5] for address in self.registry.addresses() if isinstance(address, bytes)]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(patience(5)):
            while not condition():  # noqa: ASYNC110 - inotify comes by the loop, the file by a thread
                await asyncio.sleep(0)

    async def becomes(self, number: int) -> None:
        await self.until(lambda: self.says() == [number])


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Callable[[Path], Watched]]:
    made: list[Watched] = []

    def make(path: Path) -> Watched:
        made.append(Watched(path))
        return made[-1]

    yield make
    for one in made:
        await one.close()


async def test_written_replaced_and_gone(watched, tmp_path: Path):
    path = tmp_path / "f"
    path.write_text(text(1))
    one = watched(path)
    await one.open()
    assert one.says() == [1]
    path.write_text(text(2))
    await one.becomes(2)
    (tmp_path / "g").write_text(text(3))
    (tmp_path / "g").rename(path)
    await one.becomes(3)
    path.unlink()
    await one.until(lambda: one.file.trouble != "")
    assert one.says() == [3]
    path.write_text(text(4))
    await one.until(lambda: one.file.trouble == "")
    assert one.says() == [4]


def swap(link: Path, target: Path) -> None:
    """Let `link` lead to `target`, atomically, as Kubernetes and symlink deployments do."""
    other = link.with_name(".swap")
    other.symlink_to(target)
    other.rename(link)


async def test_links_that_are_swapped(watched, tmp_path: Path):
    """As of a ConfigMap: the file is a link through a link to a folder; and a link to a link elsewhere."""
    for number in (1, 2, 3, 4):
        (tmp_path / f"v{number}").mkdir()
        (tmp_path / f"v{number}" / "f").write_text(text(number))
    folder = tmp_path / "config"
    folder.mkdir()
    swap(folder / "data", tmp_path / "v1")
    (folder / "f").symlink_to("data/f")
    one = watched(folder / "f")
    await one.open()
    assert one.says() == [1]
    swap(folder / "data", tmp_path / "v2")
    await one.becomes(2)
    (tmp_path / "v2" / "f").write_text(text(9))  # where it leads to
    await one.becomes(9)
    (folder / "f").unlink()
    (folder / "f").symlink_to(tmp_path / "v3" / "f")  # made, not renamed
    await one.becomes(3)
    swap(tmp_path / "v3" / "g", tmp_path / "v4" / "f")
    (tmp_path / "v3" / "g").rename(tmp_path / "v3" / "f")  # a link further on
    await one.becomes(4)
    (tmp_path / "v4" / "f").write_text(text(5))
    await one.becomes(5)


async def test_a_folder_that_goes_and_comes(watched, tmp_path: Path):
    folder = tmp_path / "up" / "config"
    folder.mkdir(parents=True)
    (folder / "f").write_text(text(1))
    one = watched(folder / "f")
    await one.open()
    (folder / "f").unlink()
    await one.until(lambda: "No such file" in one.file.trouble)
    folder.rmdir()
    (tmp_path / "up").rmdir()
    await asyncio.gather(*one.tasks)
    folder.mkdir(parents=True)
    (folder / "f").write_text(text(2))
    await one.becomes(2)
    folder.rename(tmp_path / "old")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "f").write_text(text(3))
    (tmp_path / "new").rename(folder)
    await one.becomes(3)
    (folder / "f").write_text(text(4))
    await one.becomes(4)


async def test_a_queue_that_overflowed(watched, tmp_path: Path):
    """The kernel drops what does not fit and says so without a name: the file is read again, whatever it says."""
    path = tmp_path / "f"
    path.write_text(text(1))
    one = watched(path)
    await one.open()
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    # Two names in turn, for the kernel merges the same event twice; the loop does not run meanwhile.
    (tmp_path / "a").touch()
    for turn in range(most):
        os.rename(tmp_path / "ab"[turn % 2], tmp_path / "ba"[turn % 2])
    path.write_text(text(2))
    await one.becomes(2)


async def test_what_others_do_in_the_folder_reads_nothing(watched, tmp_path: Path):
    path = tmp_path / "f"
    path.write_text(text(1))
    one = watched(path)
    await one.open()
    for _ in range(20):
        (tmp_path / "other").write_text("x")
        (tmp_path / "other").unlink()
    path.write_text(text(2))
    await one.until(lambda: one.file.loads == 2)
    assert one.says() == [2]


async def test_a_file_that_cannot_be_read_at_first(watched, tmp_path: Path):
    one = watched(tmp_path / "none" / "f")
    with pytest.raises(ConfigError, match="No such file"):
        await one.open()
