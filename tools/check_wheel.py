"""Build sdist -> wheel -> empty environment, and import every module there.

hatchling drops a folder that it has seen under another name without a word, so what the checkout holds is
compared with what was installed, file by file. Needs the network, or pip's cache, for the dependencies.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_SHIPPED = ("mapek/bpf/include/",)
IMPORT_ALL = """
import importlib, pkgutil, sys, mapek
found = pkgutil.walk_packages(mapek.__path__, "mapek.", onerror=lambda name: None)
names = ["mapek", *(module.name for module in found)]
bad = []
for name in names:
    if name.endswith("__main__"):
        continue
    try:
        importlib.import_module(name)
    except Exception as error:
        bad.append(f"  {name}: {type(error).__name__}: {error}")
from importlib.metadata import entry_points
for group in ("mapek.sensors", "mapek.analyzers", "mapek.policies", "mapek.actions"):
    for point in entry_points(group=group):
        try:
            point.load()
        except Exception as error:
            bad.append(f"  entry point {group} {point.name}: {type(error).__name__}: {error}")
print(f"{len(names)} modules below {mapek.__path__[0]}")
sys.exit("cannot be imported:\\n" + "\\n".join(bad) if bad else 0)
"""


def shipped() -> set[str]:
    """What the installed package must hold, as paths that begin with `mapek/`."""
    files = set()
    for base, folders, names in os.walk(ROOT / "mapek", followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        files |= {str(Path(base, name).relative_to(ROOT)) for name in names if not name.endswith(".pyc")}
    return {name for name in files if not name.startswith(NOT_SHIPPED)}


def run(*command: str | Path, cwd: Path) -> None:
    """Run `command`; its failure ends the check with one line."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, check=False)
    if done.returncode:
        sys.exit(f"check_wheel: {' '.join(map(str, command[:4]))} ... exited with {done.returncode}")


def build(scratch: Path) -> tuple[Path, Path]:
    """Make the sdist, then the wheel from nothing but the unpacked sdist."""
    flags = ("--no-isolation", "--outdir", scratch)
    run(sys.executable, "-m", "build", "--sdist", *flags, ROOT, cwd=scratch)
    (sdist,) = scratch.glob("mapek-*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(scratch / "unpacked", filter="data")
    (tree,) = (scratch / "unpacked").iterdir()
    run(sys.executable, "-m", "build", "--wheel", *flags, tree, cwd=scratch)
    (wheel,) = scratch.glob("mapek-*.whl")
    return sdist, wheel


def compare(wheel: Path) -> None:
    """Fail for a file that the checkout has and the wheel lacks, or the other way round."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("mapek/")}
    expected = shipped()
    if held != expected:
        missing, extra = sorted(expected - held), sorted(held - expected)
        sys.exit(f"check_wheel: missing in the wheel: {missing}; there by mistake: {extra}")
    objects = sorted(name for name in held if name.endswith(".o"))
    print(
        f"{wheel.name}: {len(held)} files, {wheel.stat().st_size / 1024:.0f} KB, {len(objects)} BPF objects:"
    )
    print("  " + "\n  ".join(objects or ["none"]))
    for name in objects:
        sister = name.replace(".bpfel.o", ".bpfeb.o") if ".bpfel." in name else name.replace("bpfeb", "bpfel")
        if sister not in held:
            sys.exit(f"check_wheel: {name} has no sister {sister} of the other byte order")
    if "mapek/py.typed" not in held or not objects:
        sys.exit("check_wheel: py.typed or every BPF object is missing")


def main() -> None:
    """Run the whole check; exits with 0 only when it all holds."""
    parser = argparse.ArgumentParser(description="sdist -> wheel -> empty environment -> import everything")
    parser.add_argument("--keep", type=Path, help="copy the sdist and the wheel here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mapek-wheel-") as name:
        scratch = Path(name)
        sdist, wheel = build(scratch)
        compare(wheel)
        venv.create(scratch / "env", with_pip=True)
        python = scratch / "env" / "bin" / "python"
        run(python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", wheel, cwd=scratch)
        run(python, "-W", "error", "-I", "-c", IMPORT_ALL, cwd=scratch)
        run(scratch / "env" / "bin" / "mapek", "version", cwd=scratch)
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            for made in (sdist, wheel):
                (options.keep / made.name).write_bytes(made.read_bytes())
    print("check_wheel: the wheel built from the sdist holds every module and all can be imported")


if __name__ == "__main__":
    main()
