"""Builds every `programs/*.bpf.c` twice, little- and big-endian, or checks that the objects in git are what
the sources give.

Run as `python bpf/build.py [--check] [NAME...]`. The objects lie in git so that users need no compiler; that
is only honest if they can be rebuilt to the byte, so nothing of the build machine may leak in: headers are
vendored (`-nostdinc`), paths are mapped, DWARF is stripped and only BTF stays, which the verifier's log
needs to name source lines. The trade-off: one fixed compiler (Debian's clang 14) decides the bytes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAMS = HERE / "programs"
# Another version gives other bytes for the same source.
CLANG = "14"
TARGETS = ("bpfel", "bpfeb")
FLAGS = (
    "-O2", "-g", "-mcpu=v3", "-std=gnu11", "-nostdinc", "-Wall", "-Wextra", "-Werror",
    "-Wno-unused-parameter", "-Wno-unused-function", "-fno-ident", "-isystem", "include", "-I", "programs",
)  # fmt: skip


def compiler() -> str:
    """The compiler that decides the bytes: `clang-14` where it has that name, else `clang`."""
    from shutil import which

    return which("clang-14") or "clang"


def compiler_version() -> str:
    """The compiler's major version ("14"), "" where there is no compiler."""
    try:
        said = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
    return said.partition("version ")[2].partition(".")[0]


def build(source: Path, target: str, out: Path) -> None:
    """Compile `source` for `target` ("bpfel" or "bpfeb") into `out`; raises CalledProcessError with the
    compiler's words."""
    maps = (f"-ffile-prefix-map={HERE}=.", f"-fdebug-prefix-map={HERE}=.", "-fdebug-compilation-dir=.")
    relative = source.relative_to(HERE)
    subprocess.run(
        [compiler(), *FLAGS, *maps, "-target", target, "-c", str(relative), "-o", str(out)],
        cwd=HERE,
        check=True,
    )
    strip = Path(compiler()).name.replace("clang", "llvm-strip")
    subprocess.run([strip, "-g", str(out)], check=True)


def main(argv: list[str] | None = None) -> int:
    """Build, or with `--check` compare; returns 1 if an object in git is missing or differs."""
    parser = argparse.ArgumentParser(prog="bpf/build.py", description="build or check the BPF objects")
    parser.add_argument("--check", action="store_true", help="rebuild elsewhere and compare bytes")
    parser.add_argument("names", nargs="*", help="program names (default: all)")
    args = parser.parse_args(argv)
    sources = sorted(PROGRAMS.glob("*.bpf.c"))
    if args.names:
        known = {s.name.removesuffix(".bpf.c"): s for s in sources}
        if missing := [n for n in args.names if n not in known]:
            parser.error(f"no such program: {', '.join(missing)}; known: {', '.join(known)}")
        sources = [known[n] for n in args.names]
    if (version := compiler_version()) != CLANG:
        found = f"clang {version} is installed" if version else "no clang is installed"
        print(
            f"build BPF objects: {found}; the bytes in git are clang {CLANG}'s, install that", file=sys.stderr
        )
        return 1
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for source in sources:
            for target in TARGETS:
                kept = source.with_name(source.name.removesuffix(".bpf.c") + f".{target}.o")
                fresh = Path(scratch) / kept.name
                try:
                    build(source, target, fresh)
                except subprocess.CalledProcessError:
                    failed += 1
                    print(f"{source.name} {target}: does not compile", file=sys.stderr)
                    continue
                data = fresh.read_bytes()
                if not args.check:
                    if not kept.exists() or kept.read_bytes() != data:
                        # Written beside and renamed: another process may be loading the old object right now.
                        beside = kept.with_suffix(".new")
                        beside.write_bytes(data)
                        beside.replace(kept)
                        print(f"{kept.name}: built, {len(data)} bytes")
                elif not kept.exists() or kept.read_bytes() != data:
                    failed += 1
                    print(
                        f"{kept.name}: differs from what {source.name} builds; run make bpf", file=sys.stderr
                    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
