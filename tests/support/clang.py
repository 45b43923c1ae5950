"""Compiles BPF programs that only a test needs, with the repository's headers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mapek.bpf.build import compiler

INCLUDE = Path(__file__).parents[2] / "bpf" / "include"


def compiled(source: Path, target: str = "bpf") -> Path:
    """The object of a C file, in the same folder. Skips without clang.

    Args:
        target: "bpf" for this machine's byte order, "bpfel", "bpfeb", or another machine's name.
    """
    clang = shutil.which(compiler())
    if clang is None:
        pytest.skip("no clang; apt-get install clang-14")
    out = source.with_suffix(f".{target}.o")
    cpu = ["-mcpu=v3"] if target.startswith("bpf") else []
    flags = ["-target", target, "-O2", "-g", *cpu, "-nostdinc", "-isystem", str(INCLUDE)]
    subprocess.run([clang, *flags, "-c", str(source), "-o", str(out)], check=True)
    return out
