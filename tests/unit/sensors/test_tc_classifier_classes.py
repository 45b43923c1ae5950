"""tc_classifier's classes: text in, sets out; sets in, the table's bits out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapek.bpf import ObjectSpec, object_path
from mapek.errors import ConfigError
from mapek.sensors.tc_classifier import SCHEMA, TcClassifier, schema_of
from mapek.sensors.tc_classifier_classes import TrafficClass, parse_classes
from mapek.sensors.tc_classifier_table import (
    COUNTERS_BYTES,
    MOST,
    RANGES,
    SLOT_OTHER,
    TABLE,
    build,
    place_of,
)  # fmt: skip

ANY32 = 2**32 - 1

ROWS = [
    ("protocol=udp", {"protocols": {17}}),
    ("protocol=tcp,132,0x2f", {"protocols": {6, 132, 47}}),
    ("port=53", {"ports": ((53, 53),)}),
    ("port=0,53,1000-1999,65535", {"ports": ((0, 0), (53, 53), (1000, 1999), (65535, 65535))}),
    ("source_port=7 destination_port=8-8", {"source_ports": ((7, 7),), "destination_ports": ((8, 8),)}),
    ("dscp=ef", {"dscp": {46}}),
    ("dscp=be,af41,cs7,63", {"dscp": {0, 34, 56, 63}}),
    ("mark=1", {"marks": ((1, ANY32),)}),
    ("mark=0x10/0xf0,0/1", {"marks": ((16, 240), (0, 1))}),
    ("port=1 verdict=drop", {"ports": ((1, 1),), "drop": True}),
    ("port=1 verdict=observe", {"ports": ((1, 1),)}),
    ("  protocol=udp\tdscp=0 ", {"protocols": {17}, "dscp": {0}}),
]


@pytest.mark.parametrize(("text", "wanted"), ROWS, ids=[text for text, _ in ROWS])
def test_texts(text: str, wanted: dict[str, object]):
    sets = {key: frozenset(value) if isinstance(value, set) else value for key, value in wanted.items()}
    assert parse_classes({"a": text}) == (TrafficClass("a", **sets),)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a", "", "asks for nothing"),
        ("a", "verdict=drop", "asks for nothing"),
        ("a", "port", 'has port ""'),
        ("a", "port=", 'has port ""'),
        ("a", "port=1,", 'has port ""'),
        ("a", "port=65536", "a number from 0 to 65535"),
        ("a", "port=-1", 'has port ""'),
        ("a", "port=9-8", "lower end"),
        ("a", "port=1_0", 'has port "1_0"'),
        ("a", "port=٣", "has port"),
        ("a", "port=007", "has port"),
        ("a", "protocol=256", "a name or a number from 0 to 255"),
        ("a", "protocol=udpp", 'did you mean "udp"?'),
        ("a", "dscp=64", "0 to 63"),
        ("a", "mark=4294967296", "0 to 4294967295"),
        ("a", "mark=3/2", "leaves out bits"),
        ("a", "ports=1", 'did you mean "port"?'),
        ("a", "port=1 port=2", 'has "port" twice'),
        ("a", "port=1 verdict=deny", "it is observe or drop"),
        ("a", 7, "is not a short string"),
        ("a", "port=1 " * 200, "is not a short string"),
        ("other", "port=1", "no name for a class"),
        ("removed", "port=1", "no name for a class"),
        ("a b", "port=1", "no name for a class"),
        ("", "port=1", "no name for a class"),
        ("x" * 64, "port=1", "no name for a class"),
    ],
)
def test_refused_with_one_line(name: str, text: object, words: str):
    with pytest.raises(ConfigError) as raised:
        parse_classes({name: text})
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=8), st.text(max_size=40), max_size=4))
def test_any_table_is_taken_or_refused(table: dict[str, str]):
    said = ""
    try:
        names = [one.name for one in parse_classes(table)]
    except ConfigError as error:
        said, names = str(error), list(table)
    assert names == list(table)
    assert "\n" not in said


def test_at_most_64_classes():
    table = {f"c{n}": "port=1" for n in range(MOST + 1)}
    with pytest.raises(ConfigError, match="at most 64"):
        parse_classes(table)
    assert len(parse_classes(dict(list(table.items())[:-1]))) == MOST


def test_bits_by_hand():
    classes = parse_classes({"a": "protocol=udp dscp=ef", "b": "port=10-20", "c": "mark=4/4 verdict=drop"})
    row = build(classes, {"a": 5, "b": 6, "c": 7})[0]
    assert row["protocol"][17] == 0b111
    assert row["protocol"][6] == row["protocol"][256] == 0b110
    assert row["dscp"][46] == 0b111
    assert row["dscp"][0] == row["dscp"][64] == 0b110
    assert (row["portless"], row["any_mark"], row["drop"], row["marks_used"]) == (0b101, 0b011, 0b100, 1)
    assert tuple(row["marks"][0]) == (4, 4, 0b100)
    assert [int(row["ports"][row["range"][port]]["either"]) for port in (0, 9, 10, 20, 21, 65535)] == [
        0b101, 0b101, 0b111, 0b111, 0b101, 0b101,
    ]  # fmt: skip
    assert [int(row["slot"][place_of(bit)]) for bit in range(3)] == [5, 6, 7]


def test_every_bit_has_its_own_place():
    assert {place_of(bit) for bit in range(64)} == set(range(64))


def test_too_many_ranges_of_ports():
    """64 classes of two ranges are too many only where their overlaps tell more than 256 apart."""
    apart = parse_classes({f"c{n}": f"port={n * 100}-{n * 100 + 50}" for n in range(64)})
    build(apart, {one.name: 0 for one in apart})
    many = parse_classes(
        {
            f"c{n}": ",".join(
                f"{key}={n * 500 + 100 * at}-{n * 500 + 100 * at + 160}" for at, key in ((0, "source_port"),)
            )
            + f" destination_port={n * 500 + 50}-{n * 500 + 300} port={n * 500 + 120}-{n * 500 + 400}"
            for n in range(64)
        }
    )
    with pytest.raises(ConfigError, match=f"at most {RANGES}"):
        build(many, {one.name: 0 for one in many})


def test_sizes_are_the_objects():
    """The table's own size is not in the object's BTF; a C assertion has it, and the kernel refuses another one."""
    btf = ObjectSpec.read(object_path("tc_classifier")).btf
    assert btf.struct_size("class_counters") == COUNTERS_BYTES
    header = (object_path("tc_classifier").parent / "tc_classifier.h").read_text()
    assert f"sizeof(struct class_table) == {TABLE.itemsize}," in header
    assert f"offsetof(struct class_table, slot) == {TABLE.fields['slot'][1]}," in header
    assert SLOT_OTHER == 2 * MOST


def test_columns():
    assert TcClassifier({}).schema() == SCHEMA
    names = {dict(metric.labels)["class"] for metric in schema_of(parse_classes({"a": "port=1"})).counters}
    assert names == {"a", "other", "removed"}
