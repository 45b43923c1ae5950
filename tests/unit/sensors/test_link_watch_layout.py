"""The numpy dtypes and struct formats of link_watch against the BTF of the objects, field by field."""

from __future__ import annotations

import re
import struct
from dataclasses import fields as fields_of
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapek.bpf import ObjectSpec, object_path
from mapek.sensors import link_watch_layout as layout
from mapek.sensors.stamp import PROBE_SIZE, session_key, template
from tests.support.stamp import payload


def spec(order):
    name = object_path("link_watch").name
    here = "bpfel" if "bpfel" in name else "bpfeb"
    return ObjectSpec.read(object_path("link_watch").with_name(name.replace(here, order)))


@pytest.fixture(scope="module", params=["bpfel", "bpfeb"])
def btf(request):
    found = spec(request.param).btf
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("path_config", layout.CONFIG), ("path_state", layout.STATE), ("slot", layout.SLOT)],
)
def test_dtypes(btf, name, dtype):
    assert btf.struct_size(name) == dtype.itemsize
    assert btf.struct_offsets(name) == {field: dtype.fields[field][1] for field in dtype.names}


HEADER = (object_path("link_watch").parent / "link_watch.h").read_text()


def constants(pattern):
    """(name, value) of what the header defines by a line of that pattern."""
    return {name: int(value) for name, value in re.findall(pattern, HEADER)}


def members(kind, name):
    (body,) = re.findall(rf"^{kind} {name} {{\n(.*?)\n}};", HEADER, re.M | re.S)
    return re.findall(r"(\w+)(?: = \d+)?[,;]", re.sub(r"/\*.*?\*/", "", body))


def test_alarms_have_the_members_of_struct_event():
    # a ring buffer's records have no BTF; test_silence.py holds real ones against this
    assert members("struct", "event") == [field.name for field in fields_of(layout.Alarm)]
    assert layout.alarm(struct.pack("=QQIIII", 1, 2, 3, 4, 5, 6)) == layout.Alarm(1, 2, 3, 4, 5, 6)


def test_constants():
    defined = constants(r"#define (\w+) (\d+)")
    assert (defined["WINDOW"], defined["RTT_BUCKETS"], defined["STAMP_PORT"]) == (
        layout.WINDOW, layout.RTT_BUCKETS, layout.PORT
    )  # fmt: skip
    flags = constants(r"PATH_(\w+) = (\d+),")
    assert flags == {
        name: getattr(layout, name)
        for name in ("IN_USE", "WATCH", "GAPS", "ANSWERS", "ADMIN_DOWN", "PLAIN", "STATEFUL")
    }
    assert constants(r"MARK_(\w+) = (\d+)") == {"SILENT": layout.MARK_SILENT, "MISSING": layout.MARK_MISSING}
    kinds = [name.removeprefix("EVENT_") for name in members("enum", "event_kind")]
    assert [getattr(layout, name) for name in kinds] == list(range(1, len(kinds) + 1))
    assert (layout.STATE.names or ())[: len(layout.COUNTERS)] == layout.COUNTERS


@pytest.mark.parametrize("order", ["bpfel", "bpfeb"])
def test_maps(order):
    maps = spec(order).maps
    assert maps["configs"].value_size == layout.CONFIG.itemsize
    assert maps["paths"].value_size == layout.STATE.itemsize
    assert maps["peers"].key_size == len(layout.peer_key(1, ip_address("::1"), ip_address("::2"))) == 36


@given(st.binary(max_size=80).filter(lambda record: len(record) != 32))
def test_records_of_another_size_are_refused(record):
    with pytest.raises(struct.error):
        layout.alarm(record)


def test_addresses():
    assert layout.packed(ip_address("10.0.0.2")) == ip_address("::ffff:10.0.0.2").packed
    assert layout.packed(ip_address("fe80::2%eth7")) == ip_address("fe80::2").packed
    key = layout.peer_key(7, ip_address("10.0.0.2"), ip_address("fe80::1"))
    assert key == struct.pack("=I", 7) + ip_address("::ffff:10.0.0.2").packed + ip_address("fe80::1").packed


@given(st.integers(0, 65534))
def test_the_template_is_an_unsigned_probe_of_its_path(path):
    assert template(path) == payload(None, error_estimate=0, tlv_flags=0, ssid=path + 1)
    assert len(template(path)) == PROBE_SIZE


def test_keys_differ_by_direction_and_by_path_and_agree_at_both_ends():
    secret = bytes(range(32))
    pairs = [
        ("10.0.0.1", "10.0.0.2"),
        ("10.0.0.2", "10.0.0.1"),
        ("fe80::1", "fe80::2"),
        ("10.0.1.1", "10.0.1.2"),
    ]
    keys = [session_key(secret, ip_address(one), ip_address(other)) for one, other in pairs]
    assert len(set(keys)) == len(pairs)
    assert session_key(secret, ip_address("10.0.0.1"), ip_address("10.0.0.2")) == keys[0]
    assert session_key(bytes(32), ip_address("10.0.0.1"), ip_address("10.0.0.2")) != keys[0]
    assert all(0 <= word < 1 << 64 for key in keys for word in key)
