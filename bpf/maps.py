"""BPF maps as what they are: each kind is a class that owns its file descriptor and knows how it is read
fast.

Keys and values go in and out as bytes; whole maps are read by batch into numpy, since a Python loop over
lookups is 10-40 times slower. Hash batches restart with a larger buffer on ENOSPC and are bounded, so a map
that changes under the reader can not hold it for ever. Maps are not locked: use one from one thread at a
time.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt

from mapek.bpf import syscall
from mapek.bpf.batch import BatchReader, Bytes
from mapek.bpf.cpus import possible_cpus
from mapek.bpf.names import MAP_TYPES
from mapek.errors import FeatureError, ObjectError

BPF_ANY: Final = 0
BPF_NOEXIST: Final = 1
BPF_EXIST: Final = 2
BPF_F_MMAPABLE: Final = 1 << 10

Array = npt.NDArray[Any]
_ELEMENT: Final = struct.Struct("=IIQQQ")


class Map:
    """Any map: an owned fd and its geometry. Closing twice is fine; so is `with`."""

    per_cpu: ClassVar[bool] = False

    def __init__(self, fd: int, name: str = "") -> None:
        """Take over `fd`. Raises ObjectError when it is not a map's."""
        self.fd = fd
        data = syscall.info(fd, 80)
        number, self.id, self.key_size, self.value_size, self.max_entries, self.flags = struct.unpack_from(
            "=6I", data
        )
        self.type = MAP_TYPES[number] if number < len(MAP_TYPES) else f"type {number}"
        self.name = name or bytes(data[24:40]).split(b"\0")[0].decode()
        self.cpus = possible_cpus() if self.per_cpu else 1
        # The kernel copies this many bytes a value: a smaller buffer would be memory corruption.
        self._stride = (self.value_size + 7 & ~7) if self.per_cpu else self.value_size
        self._value_bytes = self._stride * self.cpus
        self._key_buffer = ctypes.create_string_buffer(max(self.key_size, 1))
        self._value_buffer = ctypes.create_string_buffer(max(self._value_bytes, 8))
        self._reader: BatchReader | None = None
        self._attr = bytearray(32)
        self._attr_keep = (ctypes.c_char * 32).from_buffer(self._attr)
        self._attr_address = ctypes.addressof(self._attr_keep)
        self._key_address = ctypes.addressof(self._key_buffer)
        self._value_address = ctypes.addressof(self._value_buffer)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} id={self.id} fd={self.fd}>"

    def _element(self, command: int, key: bytes, flags: int = 0) -> int:
        if len(key) != self.key_size:
            raise ValueError(f"map {self.name}: a key of {len(key)} bytes, not {self.key_size}")
        if self.fd < 0:
            raise ValueError(f"map {self.name} is closed")
        ctypes.memmove(self._key_address, key, self.key_size)
        _ELEMENT.pack_into(self._attr, 0, self.fd, 0, self._key_address, self._value_address, flags)
        # The kernel refuses whatever a command does not know, and a deletion knows no value.
        size = 16 if command == syscall.MAP_DELETE_ELEM else 32
        return syscall.bpf_at(command, self._attr_address, size)

    def lookup(self, key: bytes) -> bytes | None:
        """The value of `key` (all CPUs' values, each padded to 8 bytes, for a per-CPU map), or None."""
        result = self._element(syscall.MAP_LOOKUP_ELEM, key)
        if result == -errno.ENOENT:
            return None
        if result < 0:
            raise syscall.explain(-result, "look up in map", self.name)
        return bytes(memoryview(self._value_buffer)[: self._value_bytes])

    def update(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
        """Set the value of `key`. Raises KeyError if `flags` forbid it (BPF_NOEXIST, BPF_EXIST) or the map
        is full."""
        if len(value) != self._value_bytes:
            raise ValueError(f"map {self.name}: a value of {len(value)} bytes, not {self._value_bytes}")
        ctypes.memmove(self._value_address, value, self._value_bytes)
        result = self._element(syscall.MAP_UPDATE_ELEM, key, flags)
        if result in (-errno.EEXIST, -errno.ENOENT, -errno.E2BIG, -errno.ENOSPC):
            raise KeyError(f"map {self.name}: {os.strerror(-result)}")
        if result < 0:
            raise syscall.explain(-result, "update map", self.name)

    def delete(self, key: bytes) -> bool:
        """Remove `key`; False when it was not there."""
        result = self._element(syscall.MAP_DELETE_ELEM, key)
        if result == -errno.ENOENT:
            return False
        if result < 0:
            raise syscall.explain(-result, "delete from map", self.name)
        return True

    def keys(self) -> list[bytes]:
        """All keys by walking the map, at most twice max_entries of them should it change meanwhile."""
        found: list[bytes] = []
        following = ctypes.create_string_buffer(max(self.key_size, 1))
        seen: set[bytes] = set()
        first = True
        for _ in range(2 * self.max_entries + 1):
            address = 0 if first else self._key_address
            packed = struct.pack("=IIQQQ", self.fd, 0, address, ctypes.addressof(following), 0)
            result = syscall.bpf_raw(syscall.MAP_GET_NEXT_KEY, packed)
            if result == -errno.ENOENT:
                break
            if result < 0:
                raise syscall.explain(-result, "walk map", self.name)
            key = following.raw[: self.key_size]
            if key not in seen:
                seen.add(key)
                found.append(key)
            ctypes.memmove(self._key_address, key, self.key_size)
            first = False
        return found

    def items(
        self, key_dtype: npt.DTypeLike | None = None, value_dtype: npt.DTypeLike | None = None
    ) -> tuple[Array, Array]:
        """All entries, by batch where the kernel can: (keys, values), row i of one belongs to row i of the
        other.

        Without dtypes rows are bytes: keys uint8 (n, key_size), values uint8 (n, value_size), per CPU (n,
        cpus, value_size). A dtype views each key or value as items of it; one that fills it exactly drops
        the last axis.
        """
        keys, values = self._read()
        values = values[:, :, : self.value_size] if self.per_cpu else values[:, 0, : self.value_size]
        # Copies: the buffers belong to the next read.
        return _typed(keys.copy(), key_dtype), _typed(values.copy(), value_dtype)

    def _read(self) -> tuple[Bytes, Bytes]:
        """All entries as bytes: keys (n, key_size), values (n, cpus, padded size); valid until the next
        read."""
        if self._reader is None:
            self._reader = BatchReader(self.name, self.max_entries, self.key_size, self._value_bytes)
        reader = self._reader
        n = reader.read(self.fd)
        if n < 0:
            return self._read_singly()
        keys = reader.keys[: n * self.key_size].reshape(n, self.key_size)
        return keys, reader.values[: n * self._value_bytes].reshape(n, self.cpus, self._stride)

    def _read_singly(self) -> tuple[Bytes, Bytes]:
        found = [(key, value) for key in self.keys() if (value := self.lookup(key)) is not None]
        keys = np.frombuffer(b"".join(key for key, _ in found), np.uint8)
        values = np.frombuffer(b"".join(value for _, value in found), np.uint8)
        return keys.reshape(-1, self.key_size), values.reshape(-1, self.cpus, self._stride)

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Pin the map on a bpffs, so that it outlives this process. Raises AttachError when the path is
        taken."""
        syscall.pin(self.fd, path)

    def close(self) -> None:
        """Give the fd back; the kernel keeps the map while a program or pin uses it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _typed(rows: npt.NDArray[np.uint8], dtype: npt.DTypeLike | None) -> Array:
    if dtype is None:
        return rows
    wanted = np.dtype(dtype)
    size = rows.shape[-1]
    if size % wanted.itemsize:
        raise ValueError(f"{size} bytes are not whole items of {wanted}")
    # Only a padded per-CPU value is not contiguous in its last axis' items; a copy is the price of odd sizes
    # alone.
    viewed: Array = np.ascontiguousarray(rows).view(wanted)
    return viewed[..., 0] if size == wanted.itemsize else viewed


class HashMap(Map):
    """hash and lru_hash."""


class ArrayMap(Map):
    """array; with BPF_F_MMAPABLE its memory can be viewed without any system call."""

    _memory: mmap.mmap | None = None

    def view(self, dtype: npt.DTypeLike = np.uint64) -> Array:
        """The map's own memory as an array of `dtype`, shape (entries, items) or (entries,) if one item
        fills a value.

        Reads and writes go to the kernel's memory at once, without order or locks between items. The array
        keeps the memory mapped even after `close`. Raises FeatureError when the map has not BPF_F_MMAPABLE
        (kernel 5.5).
        """
        if not self.flags & BPF_F_MMAPABLE:
            raise FeatureError(
                "view map", self.name, "it is not mmapable", "define it with BPF_F_MMAPABLE (kernel 5.5)"
            )
        stride = self.value_size + 7 & ~7
        length = stride * self.max_entries
        page = mmap.PAGESIZE
        if self._memory is None:
            protection = mmap.PROT_READ if self.flags & 1 << 7 else mmap.PROT_READ | mmap.PROT_WRITE
            self._memory = mmap.mmap(self.fd, length + page - 1 & ~(page - 1), mmap.MAP_SHARED, protection)
        rows = np.frombuffer(self._memory, np.uint8, length).reshape(self.max_entries, stride)
        wanted = np.dtype(dtype)
        if self.value_size % wanted.itemsize:
            raise ValueError(f"map {self.name}: {self.value_size} bytes are not whole items of {wanted}")
        typed: Array = (
            rows.view(wanted) if stride % wanted.itemsize == 0 else rows[:, : self.value_size].view(wanted)
        )
        typed = typed[:, : self.value_size // wanted.itemsize]
        return typed[:, 0] if self.value_size == wanted.itemsize else typed


class _PerCpu(Map):
    per_cpu = True

    def summed(self, dtype: npt.DTypeLike = np.uint64) -> tuple[Array, Array]:
        """(keys, sums): values viewed as `dtype` and added up over CPUs, shape (n, items); keys as `items`
        gives them."""
        keys, values = self._read()
        wanted = np.dtype(dtype)
        if self.value_size == self._stride and self.value_size % wanted.itemsize == 0:
            typed: Array = values.view(wanted)
        else:
            typed = _typed(values[:, :, : self.value_size], wanted)
            typed = typed[:, :, np.newaxis] if typed.ndim == 2 else typed
        # einsum is 3-15 times faster here than sum(axis=1).
        return keys.copy(), np.einsum("ijk->ik", typed)


class PerCpuArrayMap(_PerCpu):
    """percpu_array; batch reads need kernel 5.13 and fall back to single lookups."""


class PerCpuHashMap(_PerCpu):
    """percpu_hash and lru_percpu_hash."""


class LpmTrieMap(Map):
    """lpm_trie: a key is a u32 prefix length in native byte order and the address bytes."""

    def prefix(self, network: bytes, length: int) -> bytes:
        """The key of `network`/`length`; address bytes in network order, padded to the key's size."""
        room = self.key_size - 4
        if not 0 <= length <= room * 8 or len(network) > room:
            raise ValueError(f"map {self.name}: no room for a prefix of {length} bits")
        return struct.pack("=I", length) + network.ljust(room, b"\0")


class ProgArrayMap(Map):
    """prog_array: slots for tail calls. The kernel empties it when its last fd or pin goes."""

    def set(self, index: int, program_fd: int) -> None:
        """Put a program into a slot; the old one, if any, is replaced atomically."""
        self.update(struct.pack("=I", index), struct.pack("=I", program_fd))

    def program_id(self, index: int) -> int | None:
        """The id of the program in a slot, or None."""
        value = self.lookup(struct.pack("=I", index))
        return None if value is None else int(struct.unpack("=I", value)[0])

    def remove(self, index: int) -> bool:
        """Empty a slot; False when it was."""
        return self.delete(struct.pack("=I", index))


class RingBufMap(Map):
    """ringbuf: read it with `mapek.bpf.RingBuffer`."""


_KINDS: Final[dict[str, type[Map]]] = {
    "hash": HashMap, "lru_hash": HashMap, "array": ArrayMap, "percpu_array": PerCpuArrayMap,
    "percpu_hash": PerCpuHashMap, "lru_percpu_hash": PerCpuHashMap, "lpm_trie": LpmTrieMap, "prog_array":
    ProgArrayMap, "ringbuf": RingBufMap,
}  # fmt: skip


def wrap(fd: int, name: str = "") -> Map:
    """The fitting Map around `fd`, which it takes over (and closes if it is no map: ObjectError)."""
    try:
        if (kind := syscall.kind(fd)) != "map":
            raise ObjectError("open map", name or fd, f"it is a {kind}", "check what is pinned there")
        number = struct.unpack_from("=I", syscall.info(fd, 80))[0]
        kind = MAP_TYPES[number] if number < len(MAP_TYPES) else ""
        return _KINDS.get(kind, Map)(fd, name)
    except BaseException:
        os.close(fd)
        raise


def create_map(kind: str, key_size: int, value_size: int, max_entries: int, *, flags: int = 0) -> Map:
    """A new map of that type, owned by nobody but the result. Sizes in bytes.

    Raises ValueError for an unknown kind, FeatureError for one that the kernel lacks, PrivilegeError.
    """
    if kind not in _KINDS:
        raise ValueError(f"map type {kind!r} is none of {', '.join(_KINDS)}")
    attr = struct.pack("=5I", MAP_TYPES.index(kind), key_size, value_size, max_entries, flags) + bytes(24)
    needs = f"maps of type {kind} with these sizes and flags {flags:#x}"
    result = syscall.bpf_raw(syscall.MAP_CREATE, attr)
    if result < 0:
        raise syscall.explain(-result, "create map", kind, wanted=("CAP_BPF",), needs=needs)
    return wrap(result)


def open_map(path: str | os.PathLike[str]) -> Map:
    """The map pinned at `path`. Raises FileNotFoundError, ObjectError."""
    return wrap(syscall.get_pinned(path))
