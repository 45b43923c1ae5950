"""A recording gives back what was recorded, is an MCAP file to others, and may be cut, bent or hostile."""

import io
import re
import resource
import struct
import subprocess
import sys
from contextlib import suppress
from ipaddress import ip_address, ip_network

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapek.errors import RecordingError
from mapek.knowledge import Path, Peer, Topology
from mapek.knowledge.encoding import encode
from mapek.model import (
    Entity,
    Event,
    Frame,
    Incident,
    Inquiry,
    Metric,
    Plan,
    Schema,
    Step,
    Suspicion,
    Symptom,
)
from mapek.simulations import container, container_reader
from mapek.simulations.frames import decode_frame, decode_schema, encode_frame, encode_schema
from mapek.simulations.recorder import Recorder
from mapek.simulations.recording import About, RecordingReader, RecordingWriter

PATH = Entity("path", "b/wlan0")
SCHEMA = Schema(
    "link_watch",
    "path",
    (Metric("sent_total", "probes", "Probes.", labels=(("family", "ipv4"),)),),
    (Metric("age", "seconds"),),
    (Metric("rtt", "seconds", bounds=(0.001, float("inf")), sum="sent"),),
)
TOPOLOGY = Topology(
    "a",
    [ip_address("10.0.0.1")],
    [
        Peer(
            "b",
            (ip_address("10.0.0.2"), ip_address("fd00::2")),
            (ip_network("10.1.0.0/16"),),
            (Path("b", "wlan0", ip_address("fe80::2"), None, 1), Path("b", "eth1", ip_address("10.9.0.2"))),
            b"the key of all keys",
        )
    ],
)
ABOUT = About(TOPOLOGY, {"x": {"key": "hush", "y": [1, 2.5, True]}}, {"mapek": "0.1.0"}, 7)


def frame(time_ns, value=1, age=0.5):
    return Frame(
        time_ns,
        SCHEMA,
        (PATH,),
        np.array([[value]], np.uint64),
        np.array([[age]]),
        np.array([True]),
        (np.array([[1, 2, 3]], np.uint64),),
    )


def items(n=1):
    inquiry = Inquiry("i:1", PATH, "probe_paths", 500_000, {"count": 8})
    some = [
        frame(10, 2**64 - 1, float("nan")),
        Event(11, PATH, "path.silent", {"onset_ns": 3, "x": (1.5, "a")}),
        Suspicion(11, PATH, "silence"),
        inquiry,
        Symptom(PATH, "path_dead", 1.0, 20, 3),
        Plan("p", PATH, (Step("t", "a", undo=Step("t", "b")),), inquiry, 5),
        Incident(1, PATH, "path_dead", "detected", 3, 20),
        frame(30, 5, float("-inf")),
    ]
    return [(100 + at, item) for at, item in enumerate(some * n)]


def recorded(entries, about=ABOUT):
    file = io.BytesIO()
    writer = RecordingWriter(file, about)
    for now_ns, item in entries:
        writer(now_ns, item)
    writer.finish()
    return file.getvalue()


def data_of(item):
    return encode_frame(item) if isinstance(item, Frame) else encode(item)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.mcap"


def read(path, data):
    path.write_bytes(data)
    reader = RecordingReader(path)
    return reader, list(reader)


def test_what_was_recorded_comes_back(path):
    reader, entries = read(path, recorded(items()))
    assert [(one.now_ns, type(one.item), one.data) for one in entries] == [
        (now_ns, type(item), data_of(item)) for now_ns, item in items()
    ]
    assert [data_of(one.item) for one in entries] == [one.data for one in entries]
    assert (reader.damage, reader.missing, reader.unknown) == ("", 0, 0)
    assert [one.is_decision for one in entries] == [0, 0, 1, 1, 1, 1, 1, 0]


def test_the_header_has_everything_but_secrets(path):
    data = recorded([])
    assert b"hush" not in data
    assert b"the key of all" not in data
    about = read(path, data)[0].about
    assert about.config == {"x": {"key": "(not recorded)", "y": [1, 2.5, True]}}
    assert (about.versions, about.seed) == ({"mapek": "0.1.0"}, 7)
    assert about.topology.paths() == TOPOLOGY.paths()
    assert about.topology.peers["b"].prefixes == TOPOLOGY.peers["b"].prefixes
    assert about.topology.addresses == TOPOLOGY.addresses


def test_others_read_it_as_mcap():
    mcap = pytest.importorskip("mcap.reader")
    data = recorded(items(300))
    reader = mcap.make_reader(io.BytesIO(data))  # jumps by the index, checks checksums
    found = [(message.log_time, message.data) for _, _, message in reader.iter_messages(log_time_order=False)]
    assert found == [(now_ns, data_of(item)) for now_ns, item in items(300)]
    summary = reader.get_summary()
    assert summary.statistics.message_count == 8 * 300
    assert summary.statistics.chunk_count == len(summary.chunk_indexes) > 3
    stream = pytest.importorskip("mcap.stream_reader").StreamReader(io.BytesIO(data), validate_crcs=True)
    assert sum(type(record).__name__ == "Message" for record in stream.records) == 8 * 300


@pytest.mark.parametrize("compression", ["ZSTD", "NONE"])
def test_we_read_mcap_of_others(path, compression):
    mcap = pytest.importorskip("mcap.writer")
    path.write_bytes(recorded(items(50)))
    reader = RecordingReader(path)
    again = io.BytesIO()
    writer = mcap.Writer(again, compression=mcap.CompressionType[compression], chunk_size=10_000)
    writer.start()
    ids = {}
    with path.open("rb") as file:
        for one in container_reader.Reader(file):
            if isinstance(one, container.Metadata):
                writer.add_metadata(one.name, dict(one.values))
                continue
            if id(one.channel) not in ids:
                schema = writer.register_schema(one.channel.schema_name, "jsonschema", one.channel.schema)
                metadata = dict(one.channel.metadata)
                ids[id(one.channel)] = writer.register_channel(one.channel.topic, "json", schema, metadata)
            writer.add_message(ids[id(one.channel)], one.log_ns, one.data, one.publish_ns, one.sequence)
    writer.finish()
    before, (other, after) = list(reader), read(path, again.getvalue())
    assert [(one.now_ns, one.data) for one in after] == [(one.now_ns, one.data) for one in before]
    assert other.damage == ""


def test_a_cut_file_is_read_up_to_the_damage(path):
    data, whole = recorded(items(400)), 8 * 400
    counts = []
    for end in range(2000, len(data), len(data) // 37):
        reader, entries = read(path, data[:end])
        counts.append(len(entries))
        assert [one.data for one in entries] == [data_of(item) for _, item in items(400)[: len(entries)]]
        assert len(entries) == whole or "ends early" in reader.damage
    assert counts == sorted(counts)
    assert len(set(counts)) > 4


def test_flush_is_as_far_as_a_crash_can_reach_back(path):
    file = io.BytesIO()
    writer = RecordingWriter(file, ABOUT)
    for now_ns, item in items():
        writer(now_ns, item)
    assert len(read(path, file.getvalue())[1]) == 0
    writer.flush()
    reader, entries = read(path, file.getvalue())
    assert len(entries) == 8
    assert "ends early" in reader.damage


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed_or_without_effect(tmp_path_factory, at, bit):
    data = bytearray(recorded(items(3)))
    at %= len(data)
    data[at] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "flipped.mcap"
    path.write_bytes(data)
    try:
        reader = RecordingReader(path)
        entries = list(reader)
    except RecordingError:
        return
    expected = [data_of(item) for _, item in items(3)]
    assert [one.data for one in entries] == expected[: len(entries)]
    assert len(entries) == len(expected) or reader.damage or reader.missing


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400), keep=st.integers(0, 3000))
def test_noise_is_damage_or_an_error_of_ours(tmp_path_factory, data, keep):
    path = tmp_path_factory.getbasetemp() / "noise.mcap"
    path.write_bytes(recorded(items())[:keep] + data)
    with suppress(RecordingError):
        assert len(list(RecordingReader(path))) <= 8


def chunk(compression, data, size):
    head = struct.pack("<QQQI", 0, 0, size, 0) + struct.pack("<I", len(compression)) + compression
    content = head + struct.pack("<Q", len(data)) + data
    return struct.pack("<BQ", 6, len(content)) + content


def zstd_bomb(size):
    zstandard = pytest.importorskip("zstandard")
    compressor = zstandard.ZstdCompressor().compressobj()
    return b"".join(compressor.compress(bytes(1 << 20)) for _ in range(size >> 20)) + compressor.flush()


HOSTILE = {
    "a record of 2^60 bytes": lambda: (struct.pack("<BQ", 5, 1 << 60), "claims 1152921504606846976 bytes"),
    "a chunk of 2^60 bytes": lambda: (chunk(b"", b"x", 1 << 60), "claims"),
    "a bomb that lies": lambda: (chunk(b"zstd", zstd_bomb(400 << 20), 100), "does not match"),
    "a bomb that boasts": lambda: (chunk(b"zstd", zstd_bomb(400 << 20), 400 << 20), "claims"),
    "a frame of 16 GB": lambda: (
        chunk(b"zstd", bytes.fromhex("28b52ffde00000000004000000010000"), 100),
        "decompressed|does not match",
    ),
    "lz4": lambda: (chunk(b"lz4", b"x", 1), "compressed as 'lz4'"),
    "no channel": lambda: (
        struct.pack("<BQ", 5, 22) + struct.pack("<HIQQ", 99, 0, 0, 0),
        "unknown channel 99",
    ),
    "no end": lambda: (b"", "ends early"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_tail_takes_neither_memory_nor_the_process(path, case):
    tail, why = HOSTILE[case]()
    good = recorded(items())
    end = good.index(struct.pack("<BQ", 0x0F, 4))
    path.write_bytes(good[:end] + tail)
    code = f"""if True:
        import pathlib, resource
        from mapek.simulations.recording import RecordingReader
        import zstandard
        resource.setrlimit(resource.RLIMIT_DATA, ({300 << 20}, {300 << 20}))
        reader = RecordingReader(pathlib.Path({str(path)!r}))
        print(len(list(reader)), reader.damage)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, _, damage = done.stdout.strip().partition(" ")
    assert count == "8"
    assert re.search(why, damage)
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] != 300 << 20


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it is not an MCAP file"),
        (b"#!/bin/sh\n" * 100, "it is not an MCAP file"),
        (container.MAGIC, "ends early"),
    ],
)
def test_what_is_no_recording_is_refused_in_one_line(path, data, why):
    path.write_bytes(data)
    with pytest.raises(RecordingError, match=why) as caught:
        RecordingReader(path)
    assert "\n" not in str(caught.value)


def test_foreign_mcap_and_other_forms_are_refused(path, monkeypatch):
    file = io.BytesIO()
    writer = container.Writer(file, "other")
    writer.metadata(container.Metadata("other", {}))
    path.write_bytes(file.getvalue())
    with pytest.raises(RecordingError, match="not of mapek"):
        RecordingReader(path)
    monkeypatch.setattr("mapek.simulations.recording.FORM", "2")
    data = recorded([])
    monkeypatch.undo()
    path.write_bytes(data)
    with pytest.raises(RecordingError, match="its form is '2'"):
        RecordingReader(path)
    with pytest.raises(RecordingError, match="No such file"):
        RecordingReader(path.parent / "none")


def test_a_gap_that_the_recorder_left_is_counted(path):
    file = io.BytesIO()
    writer = RecordingWriter(file, ABOUT)
    for at, (now_ns, item) in enumerate(items()):
        if at == 3:
            writer.missed(5)
        writer(now_ns, item)
    writer.missed(2)
    writer.finish()
    reader, entries = read(path, file.getvalue())
    assert len(entries) == 8
    assert reader.missing == 7


def test_unknown_topics_are_counted_and_passed_over(path):
    file = io.BytesIO()
    writer = RecordingWriter(file, ABOUT)
    writer(1, items()[1][1])
    channel = container.Channel("/decisions/omens", "Omen")
    writer._writer.message(container.Message(channel, 1, 2, 2, b"{}"))
    writer.missed(1)
    writer(3, items()[1][1])
    writer.finish()
    reader, entries = read(path, file.getvalue())
    assert (len(entries), reader.unknown, reader.missing) == (2, 1, 0)


numbers = st.integers(0, 2**64 - 1)


@given(
    rows=st.lists(
        st.tuples(numbers, st.floats(), st.booleans(), st.tuples(numbers, numbers, numbers)), max_size=5
    ),
    time_ns=st.integers(0, 2**63 - 1),
)
def test_frames_round_trip(rows, time_ns):
    n = len(rows)
    one = Frame(
        time_ns,
        SCHEMA,
        tuple(Entity("path", f"p{at}", at) for at in range(n)),
        np.array([[row[0]] for row in rows], np.uint64).reshape(n, 1),
        np.array([[row[1]] for row in rows], np.float64).reshape(n, 1),
        np.array([row[2] for row in rows], np.bool_),
        (np.array([row[3] for row in rows], np.uint64).reshape(n, 3),),
    )
    schema = decode_schema(encode_schema(SCHEMA))
    assert schema == SCHEMA
    two = decode_frame(schema, encode_frame(one))
    assert (two.time_ns, two.entities) == (one.time_ns, one.entities)
    for a, b in zip((one.counters, one.gauges, one.valid, *one.histograms),
                    (two.counters, two.gauges, two.valid, *two.histograms), strict=True):  # fmt: skip
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert encode_frame(two) == encode_frame(one)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"counters":[[1]]', b'"counters":[[-1]]'),
        (b'"counters":[[1]]', b'"counters":[[1,2]]'),
        (b'"counters":[[1]]', b'"counters":[[1.5]]'),
        (b'"counters":[[1]]', b'"counters":[[18446744073709551616]]'),
        (b'"counters":[[1]]', b'"counters":[]'),
        (b'"gauges":[[0.5]]', b'"gauges":[["x"]]'),
        (b'"gauges":[[0.5]]', b'"gauges":[[0.5,1]]'),
        (b'"gauges":[[0.5]]', b'"gauges":[[1' + b"0" * 400 + b"]]"),
        (b'"valid":[true]', b'"valid":[1]'),
        (b'"time_ns":9', b'"time_ns":true'),
        (b'"histograms":[[[1,2,3]]]', b'"histograms":[]'),
        (b'["path","b/wlan0",0]', b'["ghost","b/wlan0",0]'),
    ],
)
def test_a_bent_frame_is_refused(old, new):
    good = encode_frame(frame(9))
    assert old in good
    with pytest.raises(ValueError, match=r"."):
        decode_frame(SCHEMA, good.replace(old, new))


async def test_the_recorder_keeps_everything_in_order(path):
    async with Recorder(path, ABOUT) as recorder:
        for now_ns, item in items(100):
            recorder.tap(now_ns, item)
    reader = RecordingReader(path)
    assert [one.data for one in reader] == [data_of(item) for _, item in items(100)]
    assert (reader.damage, reader.missing, recorder.recorded, recorder.dropped) == ("", 0, 800, 0)


async def test_an_overloaded_recorder_says_where_the_gap_is(path, monkeypatch):
    monkeypatch.setattr("mapek.simulations.recorder.QUEUE", 10)
    import asyncio

    async with Recorder(path, ABOUT) as recorder:
        for now_ns, item in items(2):
            recorder.tap(now_ns, item)
        while recorder._waiting:
            recorder._work()
            await asyncio.sleep(0)
        recorder.tap(*items()[1])
        for now_ns, item in items(3):
            recorder.tap(now_ns, item)
    reader = RecordingReader(path)
    entries = list(reader)
    assert entries[10].data == data_of(items()[1][1])
    assert reader.missing == recorder.dropped == 16 + 1 + 24 - len(entries)
    assert recorder.dropped > 10


async def test_a_full_disk_ends_the_recording_and_not_the_loop(caplog):
    from pathlib import Path as FilePath

    async with Recorder(FilePath("/dev/full"), ABOUT) as recorder:
        recorder.tap(*items()[0])
    assert "No space left on device" in recorder.trouble


async def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(RecordingError, match=r"record to .*Is a directory"):
        async with Recorder(tmp_path, ABOUT):
            pass


def test_the_checksum_of_a_chunk_is_checked(path):
    data = bytearray(recorded(items()))
    at = data.index(b"path.silent")
    data[at : at + 11] = b"path.filent"
    reader, entries = read(path, bytes(data))
    assert entries == []
    assert "does not match its checksum" in reader.damage
