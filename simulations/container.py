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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol

from mapek.errors import RecordingError

MAGIC: Final = b"\x89MCAP0\r\n"
CHUNK: Final = 64 << 10
LARGEST: Final = 32 << 20
"""No record and no chunk is larger; a file that says so is damaged."""
CHANNELS: Final = 4096
"""Channels and schemas of one file at most."""

_HEADER, _FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _MESSAGE_INDEX, _CHUNK_INDEX = range(1, 9)
_STATISTICS, _METADATA, _DATA_END = 0x0B, 0x0C, 0x0F

_NO_SPAN = (1 << 64, 0)
_RECORD = struct.Struct("<BQ")
_MESSAGE_HEAD = struct.Struct("<HIQQ")
_CHUNK_HEAD = struct.Struct("<QQQI")


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
    return _RECORD.pack(opcode, len(content)) + content


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
        self._put(MAGIC + _record(_HEADER, _text("") + _text(library)))

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._at += len(data)

    def metadata(self, metadata: Metadata) -> None:
        """Write `metadata` after what was written so far."""
        self.flush()
        self._metadata += 1
        self._put(_record(_METADATA, _text(metadata.name) + _table(metadata.values)))

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
        described = _record(_SCHEMA, schema) + _record(_CHANNEL, about + _table(channel.metadata or {}))
        self._described.append(described)
        self._chunk += described
        return number

    def message(self, message: Message) -> None:
        """Append `message`; on disk with its chunk. Messages of one channel share the Channel object."""
        number = self._id(message.channel)
        log_ns, publish_ns = _u64(message.log_ns), _u64(message.publish_ns)
        self._index.setdefault(number, []).append((log_ns, len(self._chunk)))
        head = _MESSAGE_HEAD.pack(number, message.sequence & 0xFFFFFFFF, log_ns, publish_ns)
        self._chunk += _RECORD.pack(_MESSAGE, len(head) + len(message.data)) + head + message.data
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
            _CHUNK,
            _CHUNK_HEAD.pack(first, last, len(records), zlib.crc32(records))
            + _text("")
            + struct.pack("<Q", len(records))
            + records,
        )
        offsets, indexes, at = b"", b"", self._at + len(chunk)
        for number, entries in self._index.items():
            offsets += struct.pack("<HQ", number, at + len(indexes))
            packed = b"".join(struct.pack("<QQ", *entry) for entry in entries)
            indexes += _record(_MESSAGE_INDEX, struct.pack("<H", number) + _text(packed))
        sizes = struct.pack("<Q", len(indexes)) + _text("") + struct.pack("<QQ", len(records), len(records))
        where = struct.pack("<QQQQ", first, last, self._at, len(chunk))
        self._chunk_indexes.append(_record(_CHUNK_INDEX, where + _text(offsets) + sizes))
        begun = self._span if len(self._chunk_indexes) > 1 else (first, last)
        self._span = (min(begun[0], first), max(begun[1], last))
        self._begin_chunk()
        self._put(chunk + indexes)

    def finish(self) -> None:
        """Write what is left and the summary that lets tools jump; a file without one is readable too."""
        self.flush()
        self._put(_record(_DATA_END, struct.pack("<I", 0)))
        counts = b"".join(struct.pack("<HQ", *count) for count in sorted(self._counts.items()))
        channels = len(self._ids)
        totals = struct.pack(
            "<QHIIIIQQ", sum(self._counts.values()), channels, channels, 0, self._metadata,
            len(self._chunk_indexes), *self._span,
        )  # fmt: skip
        statistics = _record(_STATISTICS, totals + _text(counts))
        summary = b"".join(self._described) + statistics + b"".join(self._chunk_indexes)
        footer = struct.pack("<QQ", self._at, 0)
        checked = zlib.crc32(summary + _RECORD.pack(_FOOTER, len(footer) + 4) + footer)
        self._put(summary + _record(_FOOTER, footer + struct.pack("<I", checked)) + MAGIC)


class Damage(Exception):
    """From here on the file makes no sense."""


class _Bytes:
    """A cursor over the content of one record."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, length: int) -> bytes:
        found = self.data[self.at : self.at + length]
        if len(found) != length:
            raise Damage("a record is shorter than it says")
        self.at += length
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def blob(self) -> bytes:
        return self.take(self.number(4))

    def text(self) -> str:
        try:
            return self.blob().decode("utf-8")
        except UnicodeDecodeError as error:
            raise Damage("a string is not UTF-8") from error

    def table(self) -> dict[str, str]:
        inner, values = _Bytes(self.blob()), {}
        while inner.at < len(inner.data):
            key = inner.text()
            values[key] = inner.text()
        return values


class Reader:
    """Messages and metadata of an MCAP file, in the order of the file.

    Attributes:
        damage: why reading ended before the end of the file, one line; empty when it did not.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._schemas: dict[int, tuple[str, bytes]] = {}
        self._channels: dict[int, Channel] = {}
        self.damage = ""

    def __iter__(self) -> Iterator[Message | Metadata]:
        """Raises RecordingError if it is no MCAP file; ends early, and says so, where it makes no sense."""
        if self._file.read(len(MAGIC)) != MAGIC:
            raise RecordingError("read", getattr(self._file, "name", "recording"), "it is not an MCAP file")
        at = len(MAGIC)
        try:
            while True:
                opcode, content = self._next()
                if opcode == _DATA_END:
                    return
                if opcode == _METADATA:
                    cursor = _Bytes(content)
                    yield Metadata(cursor.text(), cursor.table())
                elif opcode == _CHUNK:
                    yield from self._records(_unpack(content))
                elif (message := self._single(opcode, content)) is not None:
                    yield message
                at += _RECORD.size + len(content)
        except Damage as damage:
            self.damage = f"{damage}, at byte {at}"

    def _next(self) -> tuple[int, bytes]:
        head = self._file.read(_RECORD.size)
        if len(head) < _RECORD.size:
            raise Damage("the file ends early")
        opcode, length = _RECORD.unpack(head)
        if length > LARGEST:
            raise Damage(f"a record claims {length} bytes")
        content = self._file.read(length)
        if len(content) < length:
            raise Damage("the file ends early")
        return opcode, content

    def _records(self, data: bytes) -> Iterator[Message]:
        cursor = _Bytes(data)
        while cursor.at < len(data):
            opcode, length = _RECORD.unpack(cursor.take(_RECORD.size))
            if (message := self._single(opcode, cursor.take(length))) is not None:
                yield message

    def _single(self, opcode: int, content: bytes) -> Message | None:
        if opcode == _MESSAGE:
            if len(content) < _MESSAGE_HEAD.size:
                raise Damage("a message is too short")
            number, sequence, log_ns, publish_ns = _MESSAGE_HEAD.unpack_from(content)
            channel = self._channels.get(number)
            if channel is None:
                raise Damage(f"a message of the unknown channel {number}")
            return Message(channel, sequence, log_ns, publish_ns, content[_MESSAGE_HEAD.size :])
        cursor = _Bytes(content)
        if opcode == _SCHEMA:
            number, name, _ = cursor.number(2), cursor.text(), cursor.text()
            self._schemas[number] = (name, cursor.blob())
        elif opcode == _CHANNEL:
            number, schema = cursor.number(2), cursor.number(2)
            topic, encoding, metadata = cursor.text(), cursor.text(), cursor.table()
            if encoding != "json":
                raise Damage(f"channel {topic!r} is encoded as {encoding!r}, not json")
            if number not in self._channels:  # repeated ones are the same, by the specification
                self._channels[number] = Channel(topic, *self._schemas.get(schema, ("", b"")), metadata)
        if len(self._channels) > CHANNELS or len(self._schemas) > CHANNELS:
            raise Damage(f"more than {CHANNELS} channels")
        return None


def _unpack(content: bytes) -> bytes:
    """The records of a chunk, checked."""
    cursor = _Bytes(content)
    _, _, size, checksum = _CHUNK_HEAD.unpack(cursor.take(_CHUNK_HEAD.size))
    compression = cursor.text()
    records = cursor.take(cursor.number(8))
    if size > LARGEST:
        raise Damage(f"a chunk claims {size} bytes")
    if compression == "zstd":
        records = _zstd(records, size)
    elif compression:
        raise Damage(f"a chunk is compressed as {compression!r}; recompress the file with zstd or none")
    if len(records) != size or (checksum and zlib.crc32(records) != checksum):
        raise Damage("a chunk does not match its checksum")
    return records


def _zstd(data: bytes, size: int) -> bytes:
    try:
        import zstandard
    except ImportError as error:
        why = "its chunks are compressed"
        raise RecordingError(
            "read", "recording", why, "install mapek[replay], which brings zstandard"
        ) from error
    try:
        # A reader, not decompress(): that one believes the size that the frame claims.
        with zstandard.ZstdDecompressor(max_window_size=LARGEST).stream_reader(data) as stream:
            return stream.read(size + 1)
    except zstandard.ZstdError as error:
        raise Damage(f"a chunk cannot be decompressed ({error})") from error
