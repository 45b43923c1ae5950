"""The guest's first root: busybox, a few modules and guest.sh, as the kernel's own cpio format.

Written here and not by cpio(1), which would be one more package for forty lines. Only what is needed to reach
this machine's root over 9p goes in; every other module is loaded from there.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from tools.vm.problem import Problem
from tools.vm.store import Kernel, locked

GUEST = Path(__file__).with_name("guest.sh")
_MODULES = "virtio_pci virtio_console virtio_rng 9pnet_virtio 9p overlay".split()


def initramfs(kernel: Kernel) -> Path:
    """The file for this kernel and this guest.sh, made if it is missing; raises Problem."""
    busybox = _busybox()
    content = hashlib.sha256(GUEST.read_bytes() + Path(__file__).read_bytes() + busybox).hexdigest()[:12]
    path = kernel.folder / f"initramfs-{content}.gz"
    with locked(kernel.release):
        if not path.exists():
            for old in kernel.folder.glob("initramfs-*.gz"):
                old.unlink()
            aside = path.with_suffix(".new")
            aside.write_bytes(gzip.compress(pack(_files(kernel, busybox)), 1))
            aside.rename(path)
    return path


def _busybox() -> bytes:
    path = shutil.which("busybox")
    program = Path(path).read_bytes() if path else b""
    if not program or b"/ld-linux" in program:
        raise Problem(
            "making the initramfs: no statically linked busybox here; apt-get install busybox-static"
        )
    return program


def _files(kernel: Kernel, busybox: bytes) -> Iterator[tuple[str, bytes]]:
    yield "bin/busybox", busybox
    yield "init", GUEST.read_bytes()
    for position, module in enumerate(load_order((kernel.modules / "modules.dep").read_text(), _MODULES)):
        name = Path(module).name.split(".ko")[0]
        yield f"mods/{position:02}-{name}.ko", _unpacked(kernel.modules / module)


def load_order(modules_dep: str, wanted: Iterable[str]) -> list[str]:
    """Paths in modules.dep of `wanted` and of what they depend on, each after its own dependencies.

    Names that are not in the file are built into the kernel.
    """
    depends: dict[str, list[str]] = {}
    by_name: dict[str, str] = {}
    for line in modules_dep.splitlines():
        path, _, rest = line.partition(":")
        depends[path] = rest.split()
        by_name[Path(path).name.split(".ko")[0].replace("-", "_")] = path
    order: dict[str, None] = {}

    def add(path: str) -> None:
        for other in reversed(depends.get(path, [])):  # the file lists the first to load last
            if other not in order and other != path:
                add(other)
        order.setdefault(path)

    for name in wanted:
        if name in by_name:
            add(by_name[name])
    return list(order)


def _unpacked(path: Path) -> bytes:
    match path.suffix:
        case ".xz":
            return lzma.decompress(path.read_bytes())
        case ".gz":
            return gzip.decompress(path.read_bytes())
        case ".zst":
            done = subprocess.run(["zstd", "-dcq", str(path)], check=False, capture_output=True)
            if done.returncode:
                raise Problem(f"unpacking {path}: {done.stderr.decode().strip()}; apt-get install zstd")
            return done.stdout
        case _:
            return path.read_bytes()


def pack(files: Iterable[tuple[str, bytes]]) -> bytes:
    """A cpio archive ("newc") of executable files and of the folders above them, owned by root."""
    out = io.BytesIO()
    folders: set[str] = set()
    number = 0

    def entry(name: str, mode: int, data: bytes = b"") -> None:
        nonlocal number
        number += 1
        encoded = name.encode() + b"\0"
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + encoded)
        out.write(bytes(-out.tell() % 4))
        out.write(data)
        out.write(bytes(-out.tell() % 4))

    for name, data in files:
        parents = [str(parent) for parent in Path(name).parents if str(parent) != "."]
        for folder in reversed(parents):
            if folder not in folders:
                folders.add(folder)
                entry(folder, stat.S_IFDIR | 0o755)
        entry(name, stat.S_IFREG | 0o755, data)
    entry("TRAILER!!!", 0)
    return out.getvalue()
