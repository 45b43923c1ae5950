"""The bpf(2) system call: one function, its commands, and errors turned into `mapek.errors`.

libbpf 1.1 wraps most commands, but not the ones of newer kernels (tcx links), and its wrappers cost a second
layer of argument copying on the hot path. So whatever works on a file descriptor goes straight to the kernel
from here, and libbpf is kept for what is hard: relocating and loading objects.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import struct
from typing import Final

from mapek.errors import AttachError, DegradedError, FeatureError, MapekError, PrivilegeError

MAP_CREATE: Final = 0
MAP_LOOKUP_ELEM: Final = 1
MAP_UPDATE_ELEM: Final = 2
MAP_DELETE_ELEM: Final = 3
MAP_GET_NEXT_KEY: Final = 4
PROG_LOAD: Final = 5
OBJ_PIN: Final = 6
OBJ_GET: Final = 7
PROG_TEST_RUN: Final = 10
PROG_GET_FD_BY_ID: Final = 13
MAP_GET_FD_BY_ID: Final = 14
OBJ_GET_INFO_BY_FD: Final = 15
MAP_LOOKUP_BATCH: Final = 24
LINK_CREATE: Final = 28
LINK_UPDATE: Final = 29
LINK_DETACH: Final = 34

_PROG_INFO, _NR_MAP_IDS = 232, 52  # struct bpf_prog_info: its size, and where nr_map_ids and map_ids stand

# bpf(2) has no libc wrapper; each machine has its own number.
_NUMBERS: Final = {
    "x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "armv7l": 386, "armv6l": 386,
    "armv8l": 386, "i686": 357, "i586": 357, "ppc64le": 361, "ppc64": 361, "ppc": 361, "s390x": 351,
    "mips": 4355, "mips64": 5315,
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_long)
_syscall.restype = ctypes.c_long


@functools.cache
def _number() -> int:
    machine = platform.machine()
    # A 32-bit Python on a 64-bit kernel enters through the 32-bit table.
    if ctypes.sizeof(ctypes.c_void_p) == 4:
        machine = {"x86_64": "i686", "aarch64": "armv7l", "mips64": "mips"}.get(machine, machine)
    try:
        return _NUMBERS[machine]
    except KeyError:
        raise FeatureError(
            "call", "bpf(2)", f"unknown machine {machine}", "add its system call number"
        ) from None


def bpf_at(command: int, address: int, size: int) -> int:
    """Call bpf(2) on the `union bpf_attr` of `size` bytes at `address`; returns the result, or the negative
    errno.

    The hot path: the caller keeps its buffer and what it points to alive.
    """
    result: int = _syscall(_number(), command, address, size)
    return result if result >= 0 else -ctypes.get_errno()


def bpf_raw(command: int, attr: bytes | bytearray) -> int:
    """Call bpf(2) on a packed `union bpf_attr` (a bytearray is written back); the result, or the negative
    errno.

    EINTR and EAGAIN, with which the verifier gives way to signals, are tried again a few times.
    """
    buffer = (
        (ctypes.c_char * len(attr)).from_buffer(attr)
        if isinstance(attr, bytearray)
        else ctypes.create_string_buffer(attr, len(attr))
    )
    result = 0
    for _ in range(5):
        result = bpf_at(command, ctypes.addressof(buffer), len(attr))
        if result not in (-errno.EINTR, -errno.EAGAIN):
            break
    return result


def bpf(command: int, attr: bytes | bytearray, tried: str, on: object) -> int:
    """Call bpf(2) and raise what `explain` makes of a failure."""
    result = bpf_raw(command, attr)
    if result < 0:
        raise explain(-result, tried, on)
    return result


def missing_capabilities(*wanted: str) -> list[str]:
    """Those of `wanted` ("CAP_BPF", ...) that this thread does not have in effect; SYS_ADMIN stands for BPF
    and PERFMON."""
    from mapek.bpf.capabilities import effective

    have = effective()
    implied = {"CAP_BPF", "CAP_PERFMON"} if "CAP_SYS_ADMIN" in have else set[str]()
    return [name for name in wanted if name not in have and name not in implied]


def _memory_is_locked() -> bool:
    """Whether the limit of locked memory may be what the kernel refuses by."""
    import resource

    from mapek.bpf.features import kernel_version

    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return kernel_version() < (5, 11) and limit != resource.RLIM_INFINITY


def explain(
    code: int,
    tried: str,
    on: object,
    *,
    wanted: tuple[str, ...] = ("CAP_BPF", "CAP_NET_ADMIN"),
    needs: str = "",
) -> MapekError:
    """The exception for errno `code` of a bpf(2) command, chained to its OSError.

    Args:
        wanted: capabilities the operation needs; the missing ones are named on EPERM.
        needs: what brings the feature ("tcx, kernel 6.6"), named on EINVAL, EOPNOTSUPP or ENOSYS.
    """
    cause = OSError(code, os.strerror(code))
    error: MapekError
    if code in (errno.EPERM, errno.EACCES):
        missing = missing_capabilities(*wanted)
        if missing:
            error = PrivilegeError(tried, on, f"{' and '.join(missing)} missing", "run as root or grant it")
        else:
            why = "not permitted although no capability is missing"
            do = "look for a lockdown, LSM or seccomp rule"
            if _memory_is_locked():
                do = f"raise RLIMIT_MEMLOCK, which kernels before 5.11 count maps and programs by, or {do}"
            error = PrivilegeError(tried, on, why, do)
    elif code == errno.ENODEV:
        error = AttachError(tried, on, "no such interface", "check the name and the network namespace")
    elif code in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, 524) and needs:
        error = FeatureError(
            tried, on, f"the kernel says {errno.errorcode.get(code, code)}", f"it needs {needs}"
        )
    elif code == errno.ENOMEM:
        error = AttachError(tried, on, "out of memory", "free some, or use smaller maps")
    elif code == errno.ENOSYS:
        error = FeatureError(tried, on, "this kernel has no bpf(2)", "build it with CONFIG_BPF_SYSCALL")
    elif code in (errno.EBUSY, errno.EEXIST):
        error = AttachError(tried, on, "already in use", "detach what holds it")
    else:
        error = DegradedError(tried, on, os.strerror(code) if code < 512 else f"error {code}")
    error.__cause__ = cause
    return error


def pin(fd: int, path: str | os.PathLike[str]) -> None:
    """Pin the object behind `fd` at `path` on a bpffs; raises AttachError when something is there already."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    result = bpf_raw(OBJ_PIN, struct.pack("=QII", ctypes.addressof(name), fd, 0))
    if result == -errno.EPERM and not missing_capabilities("CAP_BPF"):
        error = AttachError(
            "pin to", os.fspath(path), "not on a bpffs", "mount -t bpf bpf /sys/fs/bpf, and pin below it"
        )
        raise error from OSError(errno.EPERM, os.strerror(errno.EPERM))
    if result < 0:
        raise explain(-result, "pin to", os.fspath(path))


def get_pinned(path: str | os.PathLike[str]) -> int:
    """A new fd of the object pinned at `path`; raises FileNotFoundError when there is none."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    result = bpf_raw(OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0))
    if result == -errno.ENOENT:
        raise FileNotFoundError(errno.ENOENT, "nothing pinned", os.fspath(path))
    if result < 0:
        raise explain(-result, "open pin", os.fspath(path))
    return result


def kind(fd: int) -> str:
    """ "map", "prog" or "link", for any other descriptor what /proc calls it."""
    name = os.readlink(f"/proc/self/fd/{fd}")
    return name.removeprefix("anon_inode:").removeprefix("bpf-").removeprefix("bpf_")


def info(fd: int, size: int = 256) -> bytearray:
    """The kernel's info struct of the program, map or link behind `fd`, at most `size` bytes, zero where not
    filled."""
    data = bytearray(size)
    if (code := fill_info(fd, data)) < 0:
        raise explain(-code, "read info of fd", fd)
    return data


def fill_info(fd: int, data: bytearray) -> int:
    """As `info`, into `data`, which may hold addresses and sizes of arrays for the kernel to fill; 0 or the negative
    errno."""
    view = (ctypes.c_char * len(data)).from_buffer(data)
    code = bpf_raw(OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, len(data), ctypes.addressof(view)))
    del view
    return code


def map_ids(fd: int) -> tuple[int, ...]:
    """Ids of the maps that the program behind `fd` uses."""
    data = info(fd, _PROG_INFO)
    count = struct.unpack_from("=I", data, _NR_MAP_IDS)[0]
    if not count:
        return ()
    ids = (ctypes.c_uint32 * count)()
    data = bytearray(_PROG_INFO)
    struct.pack_into("=IQ", data, _NR_MAP_IDS, count, ctypes.addressof(ids))
    if (code := fill_info(fd, data)) < 0:
        raise explain(-code, "read maps of program fd", fd)
    return tuple(ids[: min(count, struct.unpack_from("=I", data, _NR_MAP_IDS)[0])])


def fd_by_id(command: int, ident: int) -> int:
    """A new fd for a program, map or link id; raises FileNotFoundError when it is gone, or not yet."""
    result = bpf_raw(command, struct.pack("=IIII", ident, 0, 0, 0))
    # EAGAIN: a link that has its id, but is not attached yet, and that the kernel pretends not to have.
    if result in (-errno.ENOENT, -errno.EAGAIN):
        raise FileNotFoundError(errno.ENOENT, f"bpf object id {ident} is gone")
    if result < 0:
        raise explain(-result, "open bpf id", ident, wanted=("CAP_SYS_ADMIN",))
    return result


def charged(fd: int) -> int:
    """Bytes of kernel memory that the program or map behind `fd` takes: from 5.11 on no limit counts them, but the
    kernel goes on to say them."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return next((int(line.partition(":")[2]) for line in file if line.startswith("memlock:")), 0)


def map_bytes(ident: int) -> int:
    """The same of a map by its id; 0 where it is gone. Raises PrivilegeError without CAP_SYS_ADMIN."""
    try:
        fd = fd_by_id(MAP_GET_FD_BY_ID, ident)
    except FileNotFoundError:
        return 0
    try:
        return charged(fd)
    finally:
        os.close(fd)
