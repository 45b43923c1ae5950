"""Recordings: every input of a loop in order of arrival and every decision as it was made, in an MCAP file.

`log_time` is the loop's stamp, `publish_time` the kernel's, `sequence` counts, so that a reader sees what
an overloaded recorder left out. Messages are canonical JSON: larger than a binary form, but any MCAP tool
shows them, and a replay compares decisions byte for byte. Secrets are not recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path as FilePath
from typing import BinaryIO, Final

from mapek.errors import RecordingError
from mapek.knowledge.encoding import decode, encode, encode_plain, parse
from mapek.model import Event, Frame, Incident, Inquiry, Plan, Schema, Suspicion, Symptom
from mapek.simulations.container import Channel, Message, Metadata, Sink, Writer
from mapek.simulations.container_reader import Damage, Reader
from mapek.simulations.frames import decode_frame, decode_schema, encode_frame, encode_schema
from mapek.simulations.recording_about import About, plain_topology, redacted, topology_of, versions

__all__ = ["About", "Decision", "Entry", "Recordable", "RecordingReader", "RecordingWriter", "versions"]

Decision = Inquiry | Suspicion | Symptom | Plan | Incident
Recordable = Frame | Event | Decision

FORM: Final = "1"
"""Of the messages; a reader refuses another one."""

_ABOUT: Final = "mapek"
_END: Final = "mapek.end"
_TOPICS: Final[Mapping[type, str]] = {
    Event: "/inputs/events",
    Inquiry: "/decisions/inquiries",
    Suspicion: "/decisions/suspicions",
    Symptom: "/decisions/symptoms",
    Plan: "/decisions/plans",
    Incident: "/decisions/incidents",
}
_KINDS: Final = {topic: kind for kind, topic in _TOPICS.items()}
_FRAMES: Final = "/inputs/frames/"


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened: `item` at the loop's time `now_ns`, as the bytes `data`."""

    now_ns: int
    item: Recordable
    data: bytes

    @property
    def is_decision(self) -> bool:
        """True for what the loop decided, False for what it was told."""
        return not isinstance(self.item, (Frame, Event))


class RecordingWriter:
    """Writes a recording to `file`, which stays the caller's; it is a tap for a loop in virtual time.

    It encodes at once, 10 to 20 µs an item, which virtual time does not mind; a live loop uses
    `mapek.simulations.recorder.Recorder`.
    """

    def __init__(self, file: Sink, about: About) -> None:
        self._writer = Writer(file, f"mapek {about.versions.get('mapek', '')}".strip())
        self._channels = {
            kind: Channel(topic, kind.__name__, _json_schema(kind)) for kind, topic in _TOPICS.items()
        }
        self._frames: dict[Schema, Channel] = {}
        self._sequence = 0
        self._writer.metadata(
            Metadata(
                _ABOUT,
                {
                    "form": FORM,
                    "topology": encode_plain(plain_topology(about.topology)).decode(),
                    "config": encode_plain(redacted(about.config)).decode(),
                    "versions": encode_plain(about.versions).decode(),
                    "seed": str(about.seed),
                },
            )
        )

    def __call__(self, now_ns: int, item: Recordable) -> None:
        """Append `item`; TypeError for a value that the model does not allow, else what the file raises."""
        if isinstance(item, Frame):
            channel, data, publish_ns = self._frame_channel(item.schema), encode_frame(item), item.time_ns
        else:
            channel, data = self._channels[type(item)], encode(item)
            publish_ns = item.time_ns if isinstance(item, (Event, Suspicion)) else now_ns
        self._writer.message(Message(channel, self._sequence, now_ns, max(publish_ns, 0), data))
        self._sequence += 1

    def missed(self, count: int = 1) -> None:
        """Leave a gap that readers see: `count` items could not be recorded."""
        self._sequence += count

    def flush(self) -> None:
        """Hand everything so far to the file."""
        self._writer.flush()

    def finish(self) -> None:
        """Write the rest and the index. The recording is readable without, up to the last flush."""
        self._writer.metadata(Metadata(_END, {"items": str(self._sequence)}))
        self._writer.finish()

    def _frame_channel(self, schema: Schema) -> Channel:
        channel = self._frames.get(schema)
        if channel is None:
            metadata = {"schema": encode_schema(schema)}
            channel = Channel(_FRAMES + schema.sensor, "Frame", _json_schema(Frame), metadata)
            self._frames[schema] = channel
        return channel


class RecordingReader:
    """The entries of a recording, in order; iterate as often as you like.

    Args:
        path: the file.

    Attributes:
        about: what was recorded, read at once.
        damage: after an iteration: why it ended before the end of the file; empty if it did not.
        missing: after an iteration: items that the recorder left out.
        unknown: after an iteration: messages of topics that this mapek does not know.

    Raises:
        RecordingError: it cannot be opened, is no recording, or of another form.
    """

    def __init__(self, path: FilePath) -> None:
        self.path = path
        self.damage = ""
        self.missing = self.unknown = 0
        with self._open() as file:
            reader = Reader(file)
            first = next(iter(reader), None)
            if not isinstance(first, Metadata) or first.name != _ABOUT:
                why = reader.damage or "it is an MCAP file, but not of mapek"
                raise RecordingError("read", path, why, "name a file that mapek recorded")
        self.about = self._about(first)

    def _open(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise RecordingError(
                "read", self.path, error.strerror or str(error), "name a recording"
            ) from error

    def _about(self, metadata: Metadata) -> About:
        values = metadata.values
        if values.get("form") != FORM:
            why = f"its form is {values.get('form', 'unknown')!r}, this mapek reads {FORM!r}"
            raise RecordingError("read", self.path, why, "use the mapek that recorded it")
        try:
            config, known = parse(values["config"].encode()), parse(values["versions"].encode())
            if not isinstance(config, dict) or not isinstance(known, dict):
                raise ValueError("its configuration is no table")
            return About(
                topology_of(parse(values["topology"].encode())),
                config,
                {str(name): str(value) for name, value in known.items()},
                int(values["seed"]),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise RecordingError(
                "read", self.path, f"its header is damaged ({error})", "record anew"
            ) from error

    def __iter__(self) -> Iterator[Entry]:
        self.damage, self.missing, self.unknown = "", 0, 0
        expected = 0
        schemas: dict[str, Schema] = {}
        with self._open() as file:
            reader = Reader(file)
            for message in reader:
                if isinstance(message, Metadata):
                    if message.name == _END and (items := message.values.get("items", "")).isdecimal():
                        self.missing += max(0, int(items[:20]) - expected)
                    continue
                self.missing += (message.sequence - expected) & 0xFFFFFFFF
                expected += 1 + ((message.sequence - expected) & 0xFFFFFFFF)
                try:
                    entry = _entry(message, schemas)
                except (ValueError, Damage) as error:
                    self.damage = f"message {message.sequence} of {message.channel.topic} is damaged: {error}"
                    return
                if entry is None:
                    self.unknown += 1
                else:
                    yield entry
            self.damage = reader.damage


def _entry(message: Message, schemas: dict[str, Schema]) -> Entry | None:
    topic = message.channel.topic
    kind = _KINDS.get(topic)
    if kind is not None:
        return Entry(message.log_ns, decode(kind, message.data), message.data)
    if not topic.startswith(_FRAMES):
        return None
    text = (message.channel.metadata or {}).get("schema", "")
    if text not in schemas:
        schemas[text] = decode_schema(text)
    return Entry(message.log_ns, decode_frame(schemas[text], message.data), message.data)


def _json_schema(kind: type) -> bytes:
    words = {"int": "integer", "str": "string", "bool": "boolean", "float": "number", "Fields": "object"}
    words |= {"Entity": "array", "EntityKind": "string", "IncidentState": "string"}
    properties = {
        one.name: {"type": words[str(one.type)]} if str(one.type) in words else {}
        for one in fields(kind)
        if not (kind is Frame and one.name == "schema")
    }
    return encode_plain({"title": kind.__name__, "type": "object", "properties": properties})
