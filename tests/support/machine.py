"""What this machine can run, asked from the machine itself and not from `mapek`.

A test names what it needs (`@pytest.mark.needs("tcx")`; the marker `netns` implies `NETNS`). Where it is
missing the test skips and says so, but a kernel that is new enough to have it makes the skip a failure: a
broken probe or a lost privilege must not turn the suite green. Who knows the machine (tools/vm and Debian's
kernels) names in MAPEK_PROMISED, with commas, what it surely has: a skip for that is a failure as well. Asking
the code under test would let its own bugs skip their tests, hence the few raw system calls here.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

NETNS = ("root", "bpf", "libbpf", "namespaces")

_BPF_PROG_LOAD = 5
_BPF_PROG_QUERY = 16
_BPF_TCX_INGRESS = 46
_BPF_PROG_TYPE_XDP = 6
_SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True)
class Feature:
    """One thing a test may need.

    Args:
        probe: answers whether it is here; may be slow, is asked once.
        since: the first kernel that has it in every configuration, or None when no version promises it. An
            older kernel excuses every skip.
        missing: what to print when it is not here.
        strict: whether MAPEK_REQUIRE_ALL makes its absence a failure.
    """

    probe: Callable[[], bool]
    missing: str
    since: tuple[int, int] | None = None
    strict: bool = True


def kernel() -> tuple[int, int]:
    """The running kernel's version, as (major, minor)."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def bpf_call(command: int, attributes: ctypes.Array[ctypes.c_char]) -> tuple[int, int]:
    """One bpf(2) call; (result, errno)."""
    number = _SYS_BPF.get(platform.machine())
    if number is None:
        return -1, 38
    result = _libc.syscall(
        ctypes.c_long(number), ctypes.c_long(command), attributes, ctypes.c_long(len(attributes))
    )
    return result, ctypes.get_errno()


def _loads_bpf() -> bool:
    code = ctypes.create_string_buffer(b"\xb7".ljust(8, b"\0") + b"\x95".ljust(8, b"\0"), 16)  # r0 = 0; exit
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQIIQ", _BPF_PROG_TYPE_XDP, 2, ctypes.addressof(code), ctypes.addressof(licence), 0, 0, 0
    )
    fd, _ = bpf_call(_BPF_PROG_LOAD, ctypes.create_string_buffer(attributes.ljust(72, b"\0"), 72))
    if fd < 0:
        return False
    os.close(fd)
    return True


def _has_library(name: str) -> Callable[[], bool]:
    def probe() -> bool:
        try:
            ctypes.CDLL(name)
        except OSError:
            return False
        return True

    return probe


def _has_bpffs() -> bool:
    """A bare directory is there in any sysfs, and root may write to it as far as access(2) knows."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    there = any(fields[1:3] == ["/sys/fs/bpf", "bpf"] for fields in mounts)
    return there and os.access("/sys/fs/bpf", os.W_OK | os.X_OK)


def _makes_namespaces() -> bool:
    return subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True).returncode == 0


def _since(*version: int) -> Callable[[], bool]:
    return lambda: kernel() >= version


def _tcx() -> bool:
    # A kernel that does not know the attach type refuses the question itself.
    return bpf_call(_BPF_PROG_QUERY, _query(1, _BPF_TCX_INGRESS))[0] == 0


def _query(ifindex: int, attach_type: int) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(struct.pack("=II", ifindex, attach_type).ljust(64, b"\0"), 64)


def _kprobes() -> bool:
    return Path("/sys/bus/event_source/devices/kprobe/type").exists()


def _module(name: str) -> Callable[[], bool]:
    """Whether a module is loaded, built in, or there to be loaded."""

    def probe() -> bool:
        if Path("/sys/module", name).exists():
            return True
        modprobe = shutil.which("modprobe", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        return (
            modprobe is not None
            and subprocess.run([modprobe, "-n", "-q", name], check=False, capture_output=True).returncode == 0
        )

    return probe


def _batman_v() -> bool:
    # The module alone knows what it was built with, and names its functions once it is loaded.
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    modprobe = shutil.which("modprobe", path=path)
    if modprobe is None or subprocess.run([modprobe, "-q", "batman-adv"], check=False).returncode:
        return False
    with open("/proc/kallsyms", encoding="ascii") as symbols:
        return any(" batadv_v_elp_iface_enable" in line for line in symbols)


FEATURES: dict[str, Feature] = {
    "root": Feature(lambda: os.geteuid() == 0, "not root; run it as root"),
    "bpf": Feature(
        _loads_bpf, "bpf(2) refuses to load a program: no CAP_BPF, or no BPF in the kernel", (5, 10)
    ),
    "libbpf": Feature(_has_library("libbpf.so.1"), "libbpf.so.1 is missing; apt-get install libbpf1"),
    "namespaces": Feature(_makes_namespaces, "cannot make a network namespace: no CAP_SYS_ADMIN", (3, 0)),
    "btf": Feature(
        lambda: Path("/sys/kernel/btf/vmlinux").exists(), "the kernel carries no BTF", strict=False
    ),
    "bpffs": Feature(_has_bpffs, "no writable bpffs on /sys/fs/bpf; mount -t bpf bpf /sys/fs/bpf", (4, 4)),
    "bpf_timer": Feature(_since(5, 15), "bpf_timer needs Linux 5.15", (5, 15)),
    "foreign_objects": Feature(
        lambda: bool(os.environ.get("MAPEK_FOREIGN")),
        "no objects of others; tools/foreign.sh DIRECTORY, and set MAPEK_FOREIGN to it",
        strict=False,
    ),
    "graphviz": Feature(
        lambda: shutil.which("dot") is not None, "no dot to draw with; apt-get install graphviz", strict=False
    ),
    "live_rename": Feature(_since(6, 2), "an interface that is up can be renamed since Linux 6.2", (6, 2)),
    "tcx": Feature(_tcx, "tcx needs Linux 6.6", (6, 6)),
    "cc": Feature(
        lambda: any(map(shutil.which, ("cc", "gcc", "clang"))),
        "a C compiler is missing; apt-get install gcc",
        strict=False,
    ),
    "clang": Feature(lambda: shutil.which("clang") is not None, "clang is missing; apt-get install clang"),
    "bpftool": Feature(
        lambda: shutil.which("bpftool", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is not None,
        "bpftool is missing; apt-get install bpftool",
    ),
    "bird": Feature(
        lambda: shutil.which("bird", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is not None,
        "bird is missing; apt-get install bird2",
    ),
    "tracefs": Feature(
        lambda: any(
            os.access(f"/sys/kernel/{place}/events", os.R_OK | os.X_OK)
            for place in ("tracing", "debug/tracing")
        ),
        "tracefs is not mounted below /sys/kernel",
        strict=False,
    ),
    "kprobes": Feature(_kprobes, "the kernel has no kprobes (CONFIG_KPROBES)", strict=False),
    "batman_adv": Feature(_module("batman_adv"), "the kernel has no batman-adv", strict=False),
    "batman_v": Feature(_batman_v, "the kernel's batman-adv is built without B.A.T.M.A.N. V", strict=False),
    "batctl": Feature(
        lambda: shutil.which("batctl", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is not None,
        "batctl is missing; apt-get install batctl",
    ),
    "psi": Feature(
        lambda: Path("/proc/pressure/cpu").exists(), "no /proc/pressure (CONFIG_PSI, psi=1)", strict=False
    ),
    "cgroup2": Feature(
        lambda: " cgroup2 " in Path("/proc/mounts").read_text(), "cgroup v2 is not mounted", strict=False
    ),
    "memcg_v1": Feature(
        lambda: Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists(),
        "the memory cgroup v1 is not mounted",
        strict=False,
    ),
    "openssl": Feature(
        lambda: shutil.which("openssl") is not None,
        "openssl is missing; apt-get install openssl",
        strict=False,
    ),
    "systemd_analyze": Feature(
        lambda: shutil.which("systemd-analyze") is not None,
        "systemd-analyze is missing; apt-get install systemd",
        strict=False,
    ),
    "libseccomp": Feature(
        _has_library("libseccomp.so.2"),
        "libseccomp.so.2 is missing; apt-get install libseccomp2",
        strict=False,
    ),
    "tun": Feature(lambda: Path("/dev/net/tun").exists(), "there is no /dev/net/tun", strict=False),
    "netem": Feature(_module("sch_netem"), "the kernel has no netem", strict=False),
}


@functools.cache
def has(name: str) -> bool:
    """Whether feature `name` is here. Raises KeyError for a name not in FEATURES."""
    return FEATURES[name].probe()


def capable() -> bool:
    """Whether this process holds what the `netns` tests need: then none of them may skip."""
    status = Path("/proc/self/status").read_text()
    effective = int(status.split("CapEff:")[1].split()[0], 16)
    return os.geteuid() == 0 and all(effective >> cap & 1 for cap in (_CAP_NET_ADMIN, _CAP_SYS_ADMIN))


def require_all() -> bool:
    """Whether CI asked that nothing skips but what the kernel's configuration lacks."""
    return os.environ.get("MAPEK_REQUIRE_ALL", "") not in ("", "0")


def promised() -> frozenset[str]:
    """Features that whoever started the run knows to be here."""
    return frozenset(filter(None, os.environ.get("MAPEK_PROMISED", "").split(",")))


def patience(seconds: float) -> float:
    """A deadline as long as this machine needs: MAPEK_TIME_SCALE stretches it where the processor is emulated."""
    return seconds * float(os.environ.get("MAPEK_TIME_SCALE") or 1)


def effort(seconds: float) -> float:
    """A bound of processor time, as long as this run needs: coverage, which traces each line, takes most of it."""
    return patience(seconds) * (5 if sys.gettrace() is not None else 1)


def verdict(names: tuple[str, ...]) -> tuple[str, bool] | None:
    """None when a test that needs `names` can run, else (why not, whether that is a failure)."""
    for name in names:
        feature = FEATURES[name]
        if has(name):
            continue
        if name in promised():
            return f"{feature.missing}; yet this machine was said to have it (MAPEK_PROMISED)", True
        if feature.since and capable():
            here, since = ".".join(map(str, kernel())), ".".join(map(str, feature.since))
            if kernel() < feature.since:
                return feature.missing, False
            return f"{feature.missing}; yet Linux {here} has it (since {since}) and this is root", True
        return feature.missing, require_all() and feature.strict
    return None


def main() -> int:
    """Print what is here; exit with 0 where the `netns` tests can run, 1 where they cannot."""
    for name, feature in FEATURES.items():
        print(f"{name:12} {'yes' if has(name) else 'no: ' + feature.missing}")
    return 0 if all(map(has, NETNS)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
