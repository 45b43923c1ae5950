"""The small contracts of the kernel side: capability names, errors, lazy names, the chain's order, the
build."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mapek.bpf
from mapek.bpf import capabilities, features, libbpf, syscall
from mapek.bpf.dispatcher import SLOTS
from mapek.errors import AttachError, DegradedError, FeatureError, MapekError, PrivilegeError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("mask", "names"),
    [
        (0, set()),
        (1 << 12, {"CAP_NET_ADMIN"}),
        (1 << 39 | 1 << 38, {"CAP_BPF", "CAP_PERFMON"}),
        (1 << 0 | 1 << 21 | 1 << 40, {"CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE"}),
        (1 << 60, set()),
    ],
)
def test_capability_names(mask: int, names: set[str]):
    assert capabilities.decode(mask) == names


def test_effective_capabilities_are_those_of_proc():
    text = Path("/proc/thread-self/status").read_text()
    assert capabilities.effective() == capabilities.decode(int(text.split("CapEff:")[1].split()[0], 16))


@pytest.mark.parametrize(
    ("code", "needs", "kind", "says"),
    [
        (errno.ENODEV, "", AttachError, "no such interface"),
        (errno.EINVAL, "tcx, kernel 6.6", FeatureError, "it needs tcx, kernel 6.6"),
        (errno.EOPNOTSUPP, "x", FeatureError, "ENOTSUP"),
        (errno.ENOSYS, "", FeatureError, "no bpf"),
        (errno.ENOMEM, "", AttachError, "out of memory; free some"),
        (errno.EBUSY, "", AttachError, "in use"),
        (errno.EPERM, "", PrivilegeError, ""),
        (errno.EIO, "", DegradedError, "Input/output"),
        (524, "", DegradedError, "error 524"),
    ],
)
def test_errors_are_explained(code: int, needs: str, kind: type[MapekError], says: str):
    error = syscall.explain(code, "attach", "v0", needs=needs)
    assert type(error) is kind
    assert says in str(error)
    assert str(error).startswith("attach v0: ")
    assert isinstance(error.__cause__, OSError)
    assert error.__cause__.errno == code


def test_missing_capabilities_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(capabilities, "effective", lambda: frozenset({"CAP_NET_ADMIN"}))
    error = syscall.explain(errno.EPERM, "load", "x.o", wanted=("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"))
    assert isinstance(error, PrivilegeError)
    assert "CAP_BPF and CAP_PERFMON missing" in str(error)
    monkeypatch.setattr(capabilities, "effective", lambda: frozenset({"CAP_SYS_ADMIN"}))
    assert syscall.missing_capabilities("CAP_BPF", "CAP_NET_ADMIN") == ["CAP_NET_ADMIN"]


def test_importing_costs_nothing_heavy():
    code = (
        "import sys, mapek.bpf;"
        "print([m for m in ('numpy', 'pyroute2', 'ctypes', 'asyncio') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_parsing_needs_neither_libbpf_nor_numpy():
    code = (
        "import sys; from mapek.bpf import ObjectSpec, object_path; ObjectSpec.read(object_path('empty'));"
        "print([m for m in ('numpy', 'pyroute2', 'mapek.bpf.libbpf') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_resolves():
    for name in mapek.bpf._WHERE:
        assert getattr(mapek.bpf, name).__doc__ or name in ("TcLink",)
    with pytest.raises(AttributeError):
        mapek.bpf.no_such_name  # noqa: B018
    assert "load" in dir(mapek.bpf)


def test_the_slots_are_those_of_the_c_header():
    text = (ROOT / "bpf/programs/chain.h").read_text()
    body = re.search(r"enum chain_slot \{(.*?)\}", text, re.DOTALL)
    assert body is not None
    names = [n.removeprefix("CHAIN_").lower() for n in re.findall(r"CHAIN_\w+", body[1])]
    assert names == [*SLOTS, "slots"]


def test_a_missing_libbpf_names_the_package(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("libbpf.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", fail)
    with pytest.raises(FeatureError, match="install libbpf1"):
        libbpf.library.__wrapped__()


def test_every_binding_is_fully_typed():
    for name, (_, arguments) in libbpf._SIGNATURES.items():
        function = getattr(libbpf.library(), name)
        assert tuple(function.argtypes) == arguments


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("invalid func unknown#169", "kernel 5.15"),
        ("invalid func unknown#181", "kernel 5.17"),
        ("invalid func unknown#9999", "a kernel newer than 6.18"),
        ("program of this type cannot use helper bpf_timer_init#169", ""),
        ("R0 !read_ok", ""),
    ],
)
def test_unknown_helpers_name_a_kernel(line: str, version: str):
    assert features.version_of_complaint(line) == version


@pytest.mark.parametrize(
    ("running", "version"), [((5, 10), "kernel 5.13 for functions as callbacks"), ((5, 13), ""), ((6, 1), "")]
)
def test_a_callback_names_a_kernel(monkeypatch: pytest.MonkeyPatch, running: tuple[int, int], version: str):
    monkeypatch.setattr(features, "kernel_version", lambda: running)
    line = "number of funcs in func_info doesn't match number of subprogs"
    assert features.version_of_complaint(line) == version


def test_probe_knows_its_names():
    with pytest.raises(ValueError, match="no_such_feature"):
        features.probe("no_such_feature")
    assert features.since("tcx") == "kernel 6.6"


def test_unsure_answers_are_not_cached(monkeypatch: pytest.MonkeyPatch):
    answers = [features.Answer.UNKNOWN, features.Answer.NO, features.Answer.YES]
    monkeypatch.setitem(features.FEATURES, "made_up", ("kernel 9.9", lambda: answers.pop(0)))
    try:
        assert features.probe("made_up") is features.Answer.UNKNOWN
        assert features.probe("made_up") is features.Answer.NO
        assert features.probe("made_up") is features.Answer.NO
        with pytest.raises(FeatureError, match=r"it needs kernel 9\.9"):
            features.require("made_up", "start", "watchdog")
    finally:
        features._sure.pop("made_up", None)


@pytest.mark.needs("clang")
def test_the_objects_in_git_are_what_the_sources_build():
    command = [sys.executable, "-m", "mapek.bpf.build", "--check"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr


@pytest.mark.needs("clang")
def test_the_bytes_do_not_depend_on_where_they_are_built(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "bpf"
    subprocess.run(["cp", "-rL", str(ROOT / "bpf"), str(copy)], check=True)
    for built in copy.glob("programs/*.o"):
        built.unlink()
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(copy / "build.py"), "xdp_counter"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    for target in ("bpfel", "bpfeb"):
        name = f"xdp_counter.{target}.o"
        assert (copy / "programs" / name).read_bytes() == (ROOT / "bpf/programs" / name).read_bytes()


def test_build_refuses_an_unknown_program():
    command = [sys.executable, "-m", "mapek.bpf.build", "no_such"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert out.returncode == 2
    assert "no such program: no_such" in out.stderr
