"""Reads MCAP files as if they were hostile: every size is checked before it is believed.

A file is read up to the first thing that makes no sense, and what that was is said; what came before is good,
since each chunk has its checksum.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO

from mapek.errors import RecordingError
from mapek.simulations.container import (
    CHANNELS,
    CHUNK_HEAD,
    LARGEST,
    MAGIC,
    MESSAGE_HEAD,
    RECORD,
    Channel,
    Message,
    Metadata,
    Op,
)


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
                if opcode == Op.DATA_END:
                    return
                if opcode == Op.METADATA:
                    cursor = _Bytes(content)
                    yield Metadata(cursor.text(), cursor.table())
                elif opcode == Op.CHUNK:
                    yield from self._records(_unpack(content))
                elif (message := self._single(opcode, content)) is not None:
                    yield message
                at += RECORD.size + len(content)
        except Damage as damage:
            self.damage = f"{damage}, at byte {at}"

    def _next(self) -> tuple[int, bytes]:
        head = self._file.read(RECORD.size)
        if len(head) < RECORD.size:
            raise Damage("the file ends early")
        opcode, length = RECORD.unpack(head)
        if length > LARGEST:
            raise Damage(f"a record claims {length} bytes")
        content = self._file.read(length)
        if len(content) < length:
            raise Damage("the file ends early")
        return opcode, content

    def _records(self, data: bytes) -> Iterator[Message]:
        cursor = _Bytes(data)
        while cursor.at < len(data):
            opcode, length = RECORD.unpack(cursor.take(RECORD.size))
            if (message := self._single(opcode, cursor.take(length))) is not None:
                yield message

    def _single(self, opcode: int, content: bytes) -> Message | None:
        if opcode == Op.MESSAGE:
            if len(content) < MESSAGE_HEAD.size:
                raise Damage("a message is too short")
            number, sequence, log_ns, publish_ns = MESSAGE_HEAD.unpack_from(content)
            channel = self._channels.get(number)
            if channel is None:
                raise Damage(f"a message of the unknown channel {number}")
            return Message(channel, sequence, log_ns, publish_ns, content[MESSAGE_HEAD.size :])
        cursor = _Bytes(content)
        if opcode == Op.SCHEMA:
            number, name, _ = cursor.number(2), cursor.text(), cursor.text()
            self._schemas[number] = (name, cursor.blob())
        elif opcode == Op.CHANNEL:
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
    _, _, size, checksum = CHUNK_HEAD.unpack(cursor.take(CHUNK_HEAD.size))
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
