"""net_events' decoders: samples, format files of several kernels, and the kernel's BTF, bytes in and values out."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapek.bpf import ObjectSpec, object_path
from mapek.errors import ConfigError
from mapek.sensors import net_events_layout as layout
from mapek.sensors.net_events import SCHEMA, NetEvents
from mapek.sensors.net_events_names import Field, enum_of_btf, fields, reasons_of_btf, reasons_of_format

FORMATS = Path(__file__).parent / "formats"
"""As tracefs had them: KERNEL-EVENT.txt."""
V4 = bytes([192, 0, 2, 1]) + bytes(12)
V6 = bytes([0xFD]) + bytes(14) + b"\x07"


def record(*values: object) -> bytes:
    return layout.SAMPLE.pack(*values)


SAMPLES = [
    (
        "retransmit",
        record(5, 0, 0, 0, 45000, 80, 0, 6, 1, 0, V4, V4),
        {"family": "ipv4", "protocol": "tcp", "state": "established", "source": "192.0.2.1", "source_port": 45000,
         "destination": "192.0.2.1", "destination_port": 80},
    ),
    (
        "reset_received",
        record(5, 3, 0, 0, 1, 2, 1, 6, 2, 0, V6, V6),
        {"family": "ipv6", "protocol": "tcp", "state": "syn_sent", "source": "fd00::7", "source_port": 1,
         "destination": "fd00::7", "destination_port": 2},
    ),
    (
        "drop",
        record(5, 4, 3, 9, 0, 0, 2, 0, 0, 0x0806, bytes(16), bytes(16)),
        {"family": "other", "reason": "no_socket", "ethertype": 0x0806, "ifindex": 9},
    ),
    (
        "drop",
        record(5, 4, 77, 0, 0, 0, 0, 47, 0, 0x0800, V4, V4),
        {"family": "ipv4", "reason": "77", "ethertype": 0x0800, "protocol": "47", "source": "192.0.2.1",
         "destination": "192.0.2.1"},
    ),
    ("reset_sent", record(5, 2, 0, 0, 0, 0, 0, 6, 99, 0, bytes(16), V4),
     {"family": "ipv4", "protocol": "tcp", "state": "99", "source": "0.0.0.0", "destination": "192.0.2.1"}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "data", "wanted"), SAMPLES, ids=[str(n) for n in range(len(SAMPLES))])
def test_samples(kind: str, data: bytes, wanted: dict[str, object]):
    one = layout.sample(data)
    assert (one.time_ns, one.kind) == (5, kind)
    assert one.fields({3: "no_socket"}) == wanted


@pytest.mark.parametrize("data", [b"", bytes(63), bytes(65)])
def test_a_sample_of_another_size(data: bytes):
    with pytest.raises(struct.error):
        layout.sample(data)


@pytest.mark.parametrize(
    "data", [record(5, 5, 0, 0, 0, 0, 0, 0, 0, 0, V4, V4), record(5, 0, 0, 0, 0, 0, 3, 0, 0, 0, V4, V4)]
)
def test_a_sample_of_unknown_codes(data: bytes):
    with pytest.raises(IndexError):
        layout.sample(data)


@pytest.mark.parametrize("name", ["net_events", "net_events_tp"])
@pytest.mark.parametrize("order", ["bpfel", "bpfeb"])
def test_structs_are_the_objects(name: str, order: str):
    path = object_path(name)
    found = ObjectSpec.read(path.with_name(f"{name}.{order}.o"))
    assert found.maps["counts"].value_size == layout.COUNTS.itemsize
    assert found.btf.struct_offsets("net_counts") == {
        n: layout.COUNTS.fields[n][1] for n in layout.COUNTS.names
    }
    # What only a pointer to is used is not in the object's BTF; a C assertion has its size.
    header = (path.parent / "net_events.h").read_text()
    assert f"sizeof(struct net_sample) == {layout.SAMPLE.size}," in header
    if name == "net_events":
        assert found.maps["traffic"].value_size == 8 * len(layout.TRAFFIC)
    else:
        assert found.variables["formats"].size == layout.FORMAT.size * len(layout.TCP_EVENTS)


# -- format files ------------------------------------------------------------------------------------------------


def form(kernel: str, event: str) -> str:
    return (FORMATS / f"{kernel}-{event}.txt").read_text("utf-8")


KERNELS = sorted({path.name.partition("-")[0] for path in FORMATS.glob("*.txt")})


def test_there_are_recorded_formats():
    assert {"5.10", "6.1", "6.12", "6.18"} <= set(KERNELS)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "event", ["tcp_retransmit_skb", "tcp_send_reset", "tcp_receive_reset", "tcp_retransmit_synack"]
)
def test_formats_of_tcp(kernel: str, event: str):
    """Every kernel tells addresses and ports, each where its own text has them."""
    text = form(kernel, event)
    found = dict(
        zip(
            ("family", "state", "sport", "dport", "saddr", "daddr", "saddr_v6", "daddr_v6", "size", "pad"),
            layout.FORMAT.unpack(layout.tcp_format(fields(text))),
            strict=True,
        )
    )
    assert found["size"] in (4, 28)
    for name in (
        ("saddr", "daddr")
        if found["size"] == 28
        else ("saddr", "daddr", "sport", "dport", "saddr_v6", "daddr_v6")
    ):
        line = next(line for line in text.splitlines() if f" {name}[" in line or f" {name};" in line)
        assert f"offset:{found[name]};" in line
    told = any("family;" in line for line in text.splitlines() if "field:" in line)
    assert (found["family"] >= 0) == told
    assert told == (kernel != "5.10" and found["size"] == 4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_reasons_of_formats(kernel: str):
    text = form(kernel, "kfree_skb")
    reasons = reasons_of_format(text)
    if kernel == "5.10":
        assert reasons == {}
        assert "reason" not in fields(text)
    else:
        # they are numbered anew from release to release, which is why they are read
        assert "no_socket" in reasons.values()
        assert "unspecified" in reasons.values()
        assert len(reasons) >= 60
        assert all(name == name.lower() for name in reasons.values())
        assert fields(text)["reason"].size == 4


@settings(deadline=None)
@given(st.text())
def test_any_text_is_a_format(text: str):
    for one in fields(text).values():
        assert 0 <= one.offset < 1 << 15
    reasons_of_format("__print_symbolic(REC->reason" + text)
    assert len(layout.tcp_format(fields(text))) == layout.FORMAT.size


@settings(deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,12}", fullmatch=True).filter(lambda name: name != "int"),
        st.tuples(st.integers(0, 999), st.integers(0, 99)),
        max_size=5,
    ),
    st.sampled_from(
        ["int {}", "const void * {}", "__u8 {}[16]", "unsigned short {}", "__data_loc char[] {}"]
    ),
)
def test_fields_are_found_as_written(wanted: dict[str, tuple[int, int]], kind: str):
    text = "format:\n" + "".join(
        f"\tfield:{kind.format(name)};\toffset:{offset};\tsize:{size};\tsigned:0;\n"
        for name, (offset, size) in wanted.items()
    )
    assert fields(text) == {name: Field(*place) for name, place in wanted.items()}


# -- BTF ---------------------------------------------------------------------------------------------------------


def btf(name: str, values: dict[str, int], before: bytes = b"") -> bytes:
    """A blob with one enum, after type data that looks like anything."""
    mark = "<" if sys.byteorder == "little" else ">"
    strings, places = b"\0", {}
    for one in (name, *values):
        places[one] = len(strings)
        strings += one.encode() + b"\0"
    types = before + struct.pack(f"{mark}III", places[name], 6 << 24 | len(values), 4)
    types += b"".join(struct.pack(f"{mark}Ii", places[one], value) for one, value in values.items())
    header = struct.pack(f"{mark}HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return header + types + strings


REASONS = {
    "SKB_NOT_DROPPED_YET": 0, "SKB_CONSUMED": 1, "SKB_DROP_REASON_NOT_SPECIFIED": 2, "SKB_DROP_REASON_NO_SOCKET": 3,
    "SKB_DROP_REASON_MAX": 4, "SKB_DROP_REASON_SUBSYS_MASK": -65536,
}  # fmt: skip


@pytest.mark.parametrize(
    "before", [b"", bytes(12), struct.pack("=III", 1, 6 << 24 | 9, 4), struct.pack("=I", 1) * 50]
)
def test_reasons_of_btf(before: bytes):
    assert reasons_of_btf(btf("skb_drop_reason", REASONS, before)) == {2: "unspecified", 3: "no_socket"}


def test_btf_without_the_enum():
    assert reasons_of_btf(btf("other", REASONS)) == {}


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_btf_is_answered(noise: bytes, cut: int):
    assert isinstance(enum_of_btf(noise, "a"), dict)
    whole = btf("skb_drop_reason", REASONS)
    damaged = whole[:cut] + noise + whole[cut + len(noise) :]
    assert isinstance(reasons_of_btf(damaged), dict)
    assert isinstance(reasons_of_btf(whole[:cut]), dict)


@pytest.mark.needs("btf")
def test_the_running_kernels_btf_and_bpftool_agree():
    import json
    import subprocess

    data = Path("/sys/kernel/btf/vmlinux").read_bytes()
    told = subprocess.run(
        ["/usr/sbin/bpftool", "-j", "btf", "dump", "file", "/sys/kernel/btf/vmlinux"],
        capture_output=True,
        check=True,
    ).stdout
    enum = next(
        one for one in json.loads(told)["types"] if one["kind"] == "ENUM" and one["name"] == "skb_drop_reason"
    )
    wanted = {one["name"]: one["val"] for one in enum["values"]}
    found = enum_of_btf(data, "skb_drop_reason")
    assert {name: value & 0xFFFFFFFF for value, name in found.items()} == {
        name: value & 0xFFFFFFFF for name, value in wanted.items()
    }


# -- options -----------------------------------------------------------------------------------------------------


def test_columns():
    assert NetEvents({}).schema() == SCHEMA
    names = [metric.name for metric in SCHEMA.counters if dict(metric.labels).get("link") == "other"]
    assert names == ["received", "received", "sent", "sent"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples_per_s": 1e-12}, "set it to 0 for none"),
        ({"samples_per_s": 1e-300}, "set it to 0 for none"),
        ({"samples_per_s": -1}, "samples_per_s"),
        ({"packets": True, "all_namespaces": True}, "leave out packets or all_namespaces"),
    ],
)
def test_what_cannot_be_meant(options: dict[str, object], said: str):
    with pytest.raises(ConfigError, match=said):
        NetEvents(options)


def test_what_can_be_meant():
    for rate in (0, 0.001, 10_000):
        NetEvents({"samples_per_s": rate})
    sensor = NetEvents({"variant": "tracepoint"})
    # For doctor, which tells without opening it what is missing.
    assert sensor.wanted_variant == "tracepoint"
    assert "tracefs" in next(one for one in sensor.variants if one.name == "tracepoint").needs
