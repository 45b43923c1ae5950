"""What the loop decides and is told, as canonical JSON, and back from files that may be hostile.

One value has exactly one encoding (sorted keys, no spaces, shortest floats), so that decisions of a live
run and of its replay can be compared byte for byte. Tuples are arrays, entities `[kind, name, generation]`,
and a float that JSON lacks is `{"float": "nan"}`: readable everywhere, at five times the bytes of a
binary form, which decisions are too few to care about.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import TypeVar, get_args

from mapek.model import (
    Applied,
    Entity,
    EntityKind,
    Event,
    Fields,
    Incident,
    IncidentState,
    Inquiry,
    Plan,
    Scalar,
    Step,
    Suspicion,
    Symptom,
    Value,
)

T = TypeVar("T")
Coded = Event | Inquiry | Suspicion | Symptom | Plan | Step | Incident | Applied

_NAMES: dict[type, tuple[str, ...]] = {}
_DEPTH = 8
"""An undo within an undo within ...: no plan needs more, and a parser must not recurse for ever."""


def encode(value: Coded) -> bytes:
    """The one encoding of `value`, which does not hold its type: `decode` must be told.

    Raises:
        TypeError: a field holds what `mapek.model` does not allow.
    """
    return encode_plain(value)


def encode_plain(value: object) -> bytes:
    """Canonical JSON of anything made of model types, mappings, sequences and scalars."""
    text = json.dumps(
        plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8", "surrogatepass")


def plain(value: object) -> object:
    """`value` as what JSON knows: dicts, lists, strings, numbers, booleans, None."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, Entity):
        return [value.kind, value.name, value.generation]
    if is_dataclass(value) and not isinstance(value, type):
        names = _NAMES.get(type(value))
        if names is None:
            names = _NAMES[type(value)] = tuple(one.name for one in fields(value))
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    if (item := getattr(value, "item", None)) is not None and getattr(value, "shape", None) == ():
        return plain(item())  # a numpy scalar is what analyzers compute, and means the same
    raise TypeError(f"{type(value).__name__} is not a value of mapek.model")


def decode(kind: type[T], data: bytes) -> T:
    """A value of `kind` from its encoding.

    Raises:
        ValueError: `data` is not one; the message says what is wrong with it.
    """
    return from_plain(kind, parse(data))


def parse(data: bytes) -> object:
    """JSON as plain objects; ValueError for anything else, however deep or odd."""
    try:
        return json.loads(data.decode("utf-8", "surrogatepass"), parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def from_plain(kind: type[T], value: object) -> T:
    """A value of `kind` from what `plain` made of one; ValueError if it is none."""
    reader = _READERS.get(kind)
    if reader is None:
        raise TypeError(f"{kind.__name__} has no decoder")
    found = reader(value, 0)
    if not isinstance(found, kind):
        raise TypeError(f"the decoder of {kind.__name__} made a {type(found).__name__}")
    return found


Reader = Callable[[object, int], object]


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _int(value: object, depth: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{_short(value)} is not a whole number")
    return value


def _float(value: object, depth: int) -> float:
    if isinstance(value, dict):
        return _odd_float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{_short(value)} is not a number")
    return value


def _odd_float(value: dict[str, object]) -> float:
    text = value.get("float")
    if len(value) != 1 or text not in ("nan", "inf", "-inf"):
        raise ValueError(f"{_short(value)} is not a number")
    return float(str(text))


def _str(value: object, depth: int) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_short(value)} is not a string")
    return value


def _bool(value: object, depth: int) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{_short(value)} is not true or false")
    return value


def _one_of(allowed: tuple[str, ...]) -> Reader:
    def read(value: object, depth: int) -> str:
        if value not in allowed:
            raise ValueError(f"{_short(value)} is none of {', '.join(allowed)}")
        return str(value)

    return read


def _entity(value: object, depth: int) -> Entity:
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError(f"{_short(value)} is not an entity")
    kind: EntityKind = _kind(value[0], depth)  # type: ignore[assignment]  # _one_of checked it
    return Entity(kind, _str(value[1], depth), _int(value[2], depth))


def _scalar(value: object) -> Scalar:
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return _odd_float(value)
    raise ValueError(f"{_short(value)} is not a plain value")


def _value(value: object) -> Value:
    return tuple(_scalar(one) for one in value) if isinstance(value, list) else _scalar(value)


def _fields(value: object, depth: int) -> Fields:
    if not isinstance(value, dict):
        raise ValueError(f"{_short(value)} is not a table of fields")
    return {key: _value(one) for key, one in value.items()}


def _maybe(reader: Reader) -> Reader:
    return lambda value, depth: None if value is None else reader(value, depth)


def _many(reader: Reader) -> Reader:
    def read(value: object, depth: int) -> tuple[object, ...]:
        if not isinstance(value, list):
            raise ValueError(f"{_short(value)} is not a list")
        return tuple(reader(one, depth) for one in value)

    return read


def _record(kind: type, readers: Mapping[str, Reader]) -> Reader:
    def read(value: object, depth: int) -> object:
        if depth > _DEPTH:
            raise ValueError("nested too deeply")
        if not isinstance(value, dict) or value.keys() != readers.keys():
            raise ValueError(f"{_short(value)} is not {kind.__name__}({', '.join(readers)})")
        return kind(**{name: reader(value[name], depth + 1) for name, reader in readers.items()})

    _READERS[kind] = read
    return read


def _short(value: object) -> str:
    text = (
        repr(value) if isinstance(value, (str, int, float, bool, type(None))) else f"a {type(value).__name__}"
    )
    return text if len(text) <= 60 else text[:57] + "..."


_READERS: dict[type, Reader] = {}
_kind = _one_of(get_args(EntityKind))


def _step(value: object, depth: int) -> object:
    return _READERS[Step](value, depth)


_record(Event, {"time_ns": _int, "entity": _entity, "kind": _str, "fields": _fields})
_inquiry = _record(
    Inquiry, {"id": _str, "entity": _entity, "kind": _str, "within_ns": _int, "fields": _fields}
)
_record(Suspicion, {"time_ns": _int, "entity": _entity, "kind": _str, "cleared": _bool})
_record(
    Symptom,
    {"entity": _entity, "kind": _str, "score": _float, "detected_ns": _int, "onset_ns": _int}
    | {"onset_error_ns": _int, "evidence": _fields, "cleared": _bool},
)
_record(Step, {"touchpoint": _str, "action": _str, "fields": _fields, "undo": _maybe(_step)})
_record(
    Plan,
    {"policy": _str, "entity": _entity, "steps": _many(_step), "expect": _maybe(_inquiry), "settle_ns": _int}
    | {"touches": _many(_entity), "reason": _str, "urgent": _bool},
)
_record(Applied, {"acked_ns": _int, "changed": _bool, "detail": _str})
_record(
    Incident,
    {"id": _int, "entity": _entity, "kind": _str, "state": _one_of(get_args(IncidentState)), "onset_ns": _int}
    | {"detected_ns": _int, "planned_ns": _int, "acted_ns": _int, "recovered_ns": _int}
    | {"policy": _str, "reason": _str},
)
