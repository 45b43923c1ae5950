"""MCAP files (https://mcap.dev/spec), written so that a crash costs little and read as if hostile.

The public `mcap` library reads what this writes and the other way round, but was not fit for a node: it
flushes a chunk only when it is full, so a crash loses what matters most; it trusts the sizes in a file (a
zstd frame of 16 bytes makes it ask for 16 GB, an lz4 one of 9 MB for 2 GB); and with its compressors it takes
31 MB of disk and 4 MB of memory. This writes plain chunks, each with a checksum, when they are full and when
`flush` is called. It reads plain chunks, and zstd where `zstandard` is installed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

from mapek.errors import RecordingError

MAGIC: Final = b"\x89MCAP0\r\n"
CHUNK: Final = 64 << 10
LARGEST: Final = 32 << 20
"""No record and no chunk is larger; a file that says so is damaged."""
CHANNELS: Final = 4096
"""Channels and schemas of one file at most."""


class Op(IntEnum):
    """Kinds of records."""

    HEADER = 1
    FOOTER = 2
    SCHEMA = 3
    CHANNEL = 4
    MESSAGE = 5
    CHUNK = 6
    MESSAGE_INDEX = 7
    CHUNK_INDEX = 8
    STATISTICS = 0x0B
    METADATA = 0x0C
    DATA_END = 0x0F


_NO_SPAN = (1 << 64, 0)
RECORD = struct.Struct("<BQ")
MESSAGE_HEAD = struct.Struct("<HIQQ")
CHUNK_HEAD = struct.Struct("<QQQI")


@dataclass(frozen=True, slots=True)
class Channel:
    """What messages of one kind have in common; `schema` is JSON Schema, empty for none."""

    topic: str
    schema_name: str
    schema: bytes = b""
    metadata: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One message; times in ns."""

    channel: Channel
    sequence: int
    log_ns: int
    publish_ns: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Metadata:
    """Strings about the whole file."""

    name: str
    values: Mapping[str, str]


def _text(value: str | bytes) -> bytes:
    data = value.encode("utf-8", "replace") if isinstance(value, str) else value
    return struct.pack("<I", len(data)) + data


def _table(values: Mapping[str, str]) -> bytes:
    return _text(b"".join(_text(key) + _text(value) for key, value in sorted(values.items())))


def _u64(value: int) -> int:
    return min(max(value, 0), (1 << 64) - 1)


def _record(opcode: int, content: bytes) -> bytes:
    return RECORD.pack(opcode, len(content)) + content


class Sink(Protocol):
    """What a writer needs of a file."""

    def write(self, data: bytes, /) -> object:
        """Take all of `data`."""
        ...


class Writer:
    """Writes an MCAP file to `file`, which stays the caller's. Not thread-safe.

    Raises what `file.write` raises.
    """

    def __init__(self, file: Sink, library: str) -> None:
        self._file = file
        self._at = 0
        self._ids: dict[int, tuple[int, Channel]] = {}
        self._described: list[bytes] = []
        self._counts: dict[int, int] = {}
        self._chunk_indexes: list[bytes] = []
        self._span = (0, 0)
        self._chunk_span = _NO_SPAN
        self._metadata = 0
        self._begin_chunk()
        self._put(MAGIC + _record(Op.HEADER, _text("") + _text(library)))

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._at += len(data)

    def metadata(self, metadata: Metadata) -> None:
        """Write `metadata` after what was written so far."""
        self.flush()
        self._metadata += 1
        self._put(_record(Op.METADATA, _text(metadata.name) + _table(metadata.values)))

    def _id(self, channel: Channel) -> int:
        known = self._ids.get(id(channel))
        if known:
            return known[0]
        number = len(self._ids) + 1
        if number > CHANNELS:
            raise RecordingError(
                "record", channel.topic, f"more than {CHANNELS} channels", "record fewer sensors"
            )
        self._ids[id(channel)] = (number, channel)  # the reference keeps the id from being used again
        schema = (
            struct.pack("<H", number)
            + _text(channel.schema_name)
            + _text("jsonschema")
            + _text(channel.schema)
        )
        about = struct.pack("<HH", number, number) + _text(channel.topic) + _text("json")
        described = _record(Op.SCHEMA, schema) + _record(Op.CHANNEL, about + _table(channel.metadata or {}))
        self._described.append(described)
        self._chunk += described
        return number

    def message(self, message: Message) -> None:
        """Append `message`; on disk with its chunk. Messages of one channel share the Channel object."""
        number = self._id(message.channel)
        log_ns, publish_ns = _u64(message.log_ns), _u64(message.publish_ns)
        self._index.setdefault(number, []).append((log_ns, len(self._chunk)))
        head = MESSAGE_HEAD.pack(number, message.sequence & 0xFFFFFFFF, log_ns, publish_ns)
        self._chunk += RECORD.pack(Op.MESSAGE, len(head) + len(message.data)) + head + message.data
        self._counts[number] = self._counts.get(number, 0) + 1
        self._chunk_span = (min(self._chunk_span[0], log_ns), max(self._chunk_span[1], log_ns))
        if len(self._chunk) >= CHUNK:
            self.flush()

    def _begin_chunk(self) -> None:
        self._chunk = bytearray()
        self._index: dict[int, list[tuple[int, int]]] = {}
        self._chunk_span = _NO_SPAN

    def flush(self) -> None:
        """Write the chunk that is being gathered, so that a crash loses nothing before it."""
        if not self._index:
            return
        records, (first, last) = bytes(self._chunk), self._chunk_span
        chunk = _record(
            Op.CHUNK,
            CHUNK_HEAD.pack(first, last, len(records), zlib.crc32(records))
            + _text("")
            + struct.pack("<Q", len(records))
            + records,
        )
        offsets, indexes, at = b"", b"", self._at + len(chunk)
        for number, entries in self._index.items():
            offsets += struct.pack("<HQ", number, at + len(indexes))
            packed = b"".join(struct.pack("<QQ", *entry) for entry in entries)
            indexes += _record(Op.MESSAGE_INDEX, struct.pack("<H", number) + _text(packed))
        sizes = struct.pack("<Q", len(indexes)) + _text("") + struct.pack("<QQ", len(records), len(records))
        where = struct.pack("<QQQQ", first, last, self._at, len(chunk))
        self._chunk_indexes.append(_record(Op.CHUNK_INDEX, where + _text(offsets) + sizes))
        begun = self._span if len(self._chunk_indexes) > 1 else (first, last)
        self._span = (min(begun[0], first), max(begun[1], last))
        self._begin_chunk()
        self._put(chunk + indexes)

    def finish(self) -> None:
        """Write what is left and the summary that lets tools jump; a file without one is readable too."""
        self.flush()
        self._put(_record(Op.DATA_END, struct.pack("<I", 0)))
        counts = b"".join(struct.pack("<HQ", *count) for count in sorted(self._counts.items()))
        channels = len(self._ids)
        totals = struct.pack(
            "<QHIIIIQQ", sum(self._counts.values()), channels, channels, 0, self._metadata,
            len(self._chunk_indexes), *self._span,
        )  # fmt: skip
        statistics = _record(Op.STATISTICS, totals + _text(counts))
        summary = b"".join(self._described) + statistics + b"".join(self._chunk_indexes)
        footer = struct.pack("<QQ", self._at, 0)
        checked = zlib.crc32(summary + RECORD.pack(Op.FOOTER, len(footer) + 4) + footer)
        self._put(summary + _record(Op.FOOTER, footer + struct.pack("<I", checked)) + MAGIC)
