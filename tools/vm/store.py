"""Kernels on disk: fetched once, kept below the user's cache, safe to use from several runs at once.

What a release's newest kernel is called is asked again after a week; without the archive, what was found
before goes on being used. A kernel is complete when its folder exists: it is made aside and renamed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.vm.apt import Archive, PrivateApt
from tools.vm.catalogue import Entry
from tools.vm.problem import Problem

_META = "linux-image-amd64"
_FRESH_S = 7 * 24 * 3600


@dataclass(frozen=True)
class Kernel:
    """A kernel on disk; `release` is what uname -r says in it."""

    release: str
    folder: Path

    @property
    def image(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def modules(self) -> Path:
        return self.folder / "lib/modules" / self.release


def cache() -> Path:
    """The folder of all kernels; made if it is missing."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "mapek" / "kernels"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


@contextmanager
def locked(name: str) -> Iterator[Path]:
    """Keep other processes off one part of the cache; yields the cache."""
    folder = cache()
    with open(folder / f".{name}.lock", "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield folder


def kernel(entry: Entry, *, refresh: bool = False) -> Kernel:
    """The newest kernel of an entry, fetched if it is not here yet; blocks, raises Problem."""
    with locked(entry.suites[0]) as folder:
        note = folder / f"{entry.suites[0]}.release"
        known = Kernel(note.read_text().strip(), folder / note.read_text().strip()) if note.exists() else None
        kept = known if known and known.image.exists() else None
        if kept and not refresh and time.time() - note.stat().st_mtime < _FRESH_S:
            return kept
        try:
            found = _fetch(entry, folder)
        except Problem as problem:
            if kept is None:
                raise
            print(f"{problem}; going on with {kept.release}", flush=True)
            return kept
        note.write_text(found.release + "\n")
        return found


def _fetch(entry: Entry, folder: Path) -> Kernel:
    apt = PrivateApt(folder / f"apt-{entry.suites[0]}", Archive.of_this_machine(), entry.suites)
    suite = apt.update()
    image = _one(apt.depends(_META), "linux-image-", _META)
    made = Kernel(image.removeprefix("linux-image-"), folder / image.removeprefix("linux-image-"))
    if made.image.exists():
        return made
    print(f"{entry.name}: fetching {image} of {suite}", flush=True)
    # Later kernels come in two packages, which that of the old name depends on.
    parts = [p for p in apt.depends(image) if p.startswith(("linux-binary-", "linux-modules-"))]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as temporary:
        aside = Path(temporary)
        for package in parts or [image]:
            apt.download(package, aside)
        for deb in aside.glob("*.deb"):
            _check(["dpkg-deb", "--extract", str(deb), str(aside / "tree")])
            deb.unlink()
        _arrange(aside / "tree", aside / "kernel", made.release)
        shutil.rmtree(made.folder, ignore_errors=True)
        (aside / "kernel").rename(made.folder)
    return made


def _arrange(tree: Path, into: Path, release: str) -> None:
    modules = next(
        (tree / p for p in (f"lib/modules/{release}", f"usr/lib/modules/{release}") if (tree / p).is_dir()),
        None,
    )
    if modules is None:
        raise Problem(f"unpacking {release}: the package holds no modules of that release")
    images = (tree / f"boot/vmlinuz-{release}", modules / "vmlinuz")
    image = next((path for path in images if path.exists()), None)
    if image is None:
        raise Problem(f"unpacking {release}: the package holds no vmlinuz")
    into.mkdir()
    shutil.move(image, into / "vmlinuz")
    (into / "lib/modules").mkdir(parents=True)
    shutil.move(modules, into / "lib/modules" / release)
    _check(["depmod", "--basedir", str(into), release])


def _one(names: list[str], prefix: str, of: str) -> str:
    found = [name for name in names if name.startswith(prefix)]
    if len(found) != 1:
        raise Problem(f"resolving {of}: it depends on {len(found)} packages named {prefix}*, not on one")
    return found[0]


def _check(command: list[str]) -> None:
    path = {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | path)
    if done.returncode:
        raise Problem(f"{' '.join(command)}: {done.stderr.strip()}")
