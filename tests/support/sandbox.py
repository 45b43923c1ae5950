"""Runs a command as nobody, as `packaging/mapek.service` would: `sandbox.py CAPABILITIES [UNIT] -- COMMAND…`.

systemd itself does that only as process 1, so its restrictions are made here by the kernel's own means: the file
system read-only but for the service's folders, ambient capabilities, no_new_privs, and with UNIT the unit's filter of
system calls, compiled by libseccomp from the lists of `systemd-analyze syscall-filter`. Started as root in a mount
namespace that it may change; standard library only, and nothing of mapek.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

NOBODY = 65534
CAPABILITIES = {
    "CAP_DAC_READ_SEARCH": 2, "CAP_NET_ADMIN": 12, "CAP_IPC_LOCK": 14, "CAP_SYS_NICE": 23, "CAP_SYS_RESOURCE": 24,
    "CAP_PERFMON": 38, "CAP_BPF": 39,
}  # fmt: skip
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16, "AF_PACKET": 17}
OWN = ("/run/mapek", "/run/mapek-keys")
"""What systemd would give to the service's user; the state directory stays writable."""
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _MOVE, _REC, _PRIVATE = 1, 2, 4, 32, 4096, 8192, 16384, 1 << 18
_NEWNS = 0x20000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    _check(
        _libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()), f"mount {target}"
    )


def own_mounts() -> None:
    """A mount namespace of our own, from which nothing spreads."""
    _check(_libc.unshare(_NEWNS), "unshare")
    _mount("", "/", "", _REC | _PRIVATE)


def let_nobody_reach(*paths: str) -> None:
    """Make the interpreter and the checkout readable where they lie in a folder that only root may enter."""
    closed: dict[str, list[str]] = {}
    for path in paths:
        for above in reversed(Path(path).resolve().parents):
            if not above.stat().st_mode & 0o001:
                closed.setdefault(str(above), []).append(str(Path(path).resolve()))
                break
    for above, inside in closed.items():
        aside = [tempfile.mkdtemp(prefix="mapek-", dir="/run") for _ in inside]
        for path, place in zip(inside, aside, strict=True):
            _mount(path, place, "", _BIND | _REC)
        _mount("tmpfs", above, "tmpfs", _NOSUID | _NODEV, "mode=755")
        for path, place in zip(inside, aside, strict=True):
            os.makedirs(path, 0o755, exist_ok=True)
            _mount(place, path, "", _MOVE)
            os.rmdir(place)


def prepare_folders() -> None:
    """State and keys for nobody, and a folder of the bpffs in the place of all of it."""
    for top in OWN:
        for folder, _, files in os.walk(top):
            for name in ("", *files):
                os.chown(os.path.join(folder, name), NOBODY, NOBODY)
    with contextlib.suppress(OSError):
        os.makedirs("/sys/fs/bpf/mapek", 0o700, exist_ok=True)
        os.chown("/sys/fs/bpf/mapek", NOBODY, NOBODY)
        _mount("/sys/fs/bpf/mapek", "/sys/fs/bpf", "", _BIND)


def protect() -> None:
    """ProtectSystem=strict, ProtectKernelTunables, PrivateTmp, PrivateDevices as far as files go."""
    for top in OWN:
        if os.path.isdir(top):
            _mount(top, top, "", _BIND)
    if not __file__.startswith("/tmp/"):  # else the checkout would be hidden
        _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, "mode=1777")
    _mount("/proc/sys", "/proc/sys", "", _BIND)
    writable = (*OWN, "/tmp", "/sys/fs/bpf", "/dev", "/proc")
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        places = [line.split()[4].encode().decode("unicode_escape") for line in mounts]
    for place in dict.fromkeys(places):
        if place != "/proc/sys" and any(place == one or place.startswith(f"{one}/") for one in writable):
            continue
        with contextlib.suppress(OSError):  # one that is hidden by another cannot be reached either
            _mount("", place, "", _REMOUNT | _BIND | _RDONLY | _NOSUID)


def limits(realtime: int) -> None:
    """LimitRTPRIO= and LimitMEMLOCK=, as far as we may raise them."""
    for which, value in (
        (resource.RLIMIT_RTPRIO, realtime),
        (resource.RLIMIT_MEMLOCK, resource.RLIM_INFINITY),
    ):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(which, (value, value))


def become_nobody(names: list[str]) -> None:
    """uid and gid 65534 with these capabilities: permitted, effective, inheritable, ambient and bounding."""
    mask = sum(1 << CAPABILITIES[name] for name in names)
    for bit in range(64):
        if not mask >> bit & 1:
            _libc.prctl(24, bit, 0, 0, 0)  # PR_CAPBSET_DROP; EINVAL behind the last
    _check(_libc.prctl(8, 1, 0, 0, 0), "PR_SET_KEEPCAPS")
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header, data = struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", low, low, low, high, high, high)
    _check(_libc.capset(header, data), "capset")
    for name in names:
        _check(_libc.prctl(47, 2, CAPABILITIES[name], 0, 0), f"PR_CAP_AMBIENT_RAISE {name}")
    _check(_libc.prctl(38, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    _check(_libc.prctl(4, 1, 0, 0, 0), "PR_SET_DUMPABLE")  # /proc/self is our own


def settings(unit: str, key: str) -> list[str]:
    """The words of each line of `key` in a unit file."""
    with open(unit, encoding="utf-8") as file:
        return [line.partition("=")[2].strip() for line in file if line.startswith(f"{key}=")]


def _members(group: str) -> set[str]:
    if not group.startswith("@"):
        return {group}
    out = subprocess.run(
        ["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True
    )
    found: set[str] = set()
    for line in out.stdout.splitlines()[1:]:
        if (name := line.strip()) and not name.startswith("#"):
            found |= _members(name)
    return found


def allowed_calls(unit: str) -> set[str]:
    """The system calls that the SystemCallFilter= lines of a unit leave: an allow-list, as its first line is one."""
    found: set[str] = set()
    for line in settings(unit, "SystemCallFilter"):
        named = set().union(*(_members(word) for word in line.removeprefix("~").split()))
        found = found - named if line.startswith("~") else found | named
    # What systemd itself always lets through.
    return found | _members("@default")


class _Compare(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def filter_calls(calls: set[str], families: list[str]) -> None:
    """Load the filter: EPERM for other calls, other address families, and memory both to be written and run."""
    lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    lib.seccomp_init.restype, lib.seccomp_init.argtypes = ctypes.c_void_p, (ctypes.c_uint32,)
    lib.seccomp_load.argtypes = (ctypes.c_void_p,)
    add = lib.seccomp_rule_add_array
    add.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Compare))
    allow, refuse, masked, equal = 0x7FFF0000, 0x00050001, 7, 4
    context = lib.seccomp_init(refuse)

    def number(name: str) -> int:
        found: int = lib.seccomp_syscall_resolve_name(name.encode())
        return found

    for name in sorted(calls - {"socket", "mmap", "mprotect"}):
        if number(name) >= 0:
            _check(add(context, allow, number(name), 0, None), name)
    for family in families:
        one = _Compare(0, equal, FAMILIES[family], 0)
        _check(add(context, allow, number("socket"), 1, ctypes.byref(one)), family)
    # prot: neither both PROT_WRITE and PROT_EXEC (mmap), nor PROT_EXEC at all (mprotect).
    for prot in (0, 2, 4):
        one = _Compare(2, masked, 6, prot)
        _check(add(context, allow, number("mmap"), 1, ctypes.byref(one)), "mmap")
    one = _Compare(2, masked, 4, 0)
    _check(add(context, allow, number("mprotect"), 1, ctypes.byref(one)), "mprotect")
    _check(lib.seccomp_load(context), "seccomp_load")


def main(arguments: list[str]) -> None:
    split = arguments.index("--")
    given, command = arguments[:split], arguments[split + 1 :]
    names = [name for name in given[0].split(",") if name]
    unit = given[1] if len(given) > 1 else ""
    calls = allowed_calls(unit) if unit else set()
    own_mounts()
    let_nobody_reach(sys.base_prefix, sys.prefix, str(Path(__file__).parents[2]))
    prepare_folders()
    if unit:
        protect()
        limits(int(settings(unit, "LimitRTPRIO")[0]))
        os.umask(int(settings(unit, "UMask")[0], 8))
    become_nobody(names)
    if unit:
        filter_calls(calls, settings(unit, "RestrictAddressFamilies")[0].split())
    # Its coverage has nowhere to go.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    os.execvpe(command[0], command, environment)


if __name__ == "__main__":
    main(sys.argv[1:])
