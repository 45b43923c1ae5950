"""Maps: batch reads against single lookups and against bpftool, and each kind as what it is."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mapek.bpf import (
    ArrayMap,
    LoadedObject,
    LpmTrieMap,
    Map,
    ObjectSpec,
    PerCpuArrayMap,
    PerCpuHashMap,
    ProgArrayMap,
    create_map,
    load,
    object_path,
    open_map,
)
from mapek.bpf.batch import BatchReader
from mapek.bpf.cpus import possible_cpus
from mapek.errors import FeatureError, ObjectError

NO_PREALLOC = 1
BPFTOOL = shutil.which("bpftool", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or "bpftool"


def u32(value: int) -> bytes:
    return struct.pack("=I", value)


def per_cpu(first: int, width: int) -> bytes:
    """A value for each possible CPU: `width` bytes, padded to 8."""
    return b"".join(
        bytes([(first + cpu) % 256]) * width + bytes(-width % 8) for cpu in range(possible_cpus())
    )


@pytest.mark.parametrize("entries", [1, 3, 64, 5000])
@pytest.mark.parametrize("width", [4, 8, 16, 20])
@pytest.mark.parametrize("kind", ["array", "percpu_array", "hash", "percpu_hash", "lru_hash"])
@pytest.mark.kernel
def test_batch_reads_equal_lookups(kind: str, width: int, entries: int):
    draw = random.Random(7)
    with create_map(kind, 4, width, entries) as m:
        chosen = range(entries) if "array" in kind else draw.sample(range(1 << 31), entries * 3 // 4 or 1)
        for i, key in enumerate(list(chosen)[:400]):
            m.update(u32(key), per_cpu(i, width) if m.per_cpu else bytes([i % 256]) * width)
        keys, values = m.items("u4")
        assert len(keys) == len(values)
        assert values.shape[1:] == ((m.cpus, width) if m.per_cpu else (width,))
        read = dict(zip(keys.tolist(), values, strict=True))
        walked = m.keys()
        assert sorted(read) == sorted(struct.unpack("=I", one)[0] for one in walked)
        for one in walked[:: max(1, len(walked) // 50)]:
            expected = m.lookup(one)
            assert expected is not None
            stride = width + -width % 8 if m.per_cpu else width
            got = read[struct.unpack("=I", one)[0]].reshape(m.cpus, width)
            assert [bytes(row) for row in got] == [
                expected[c * stride : c * stride + width] for c in range(m.cpus)
            ]


@pytest.mark.needs("bpftool")
@pytest.mark.parametrize("kind", ["array", "hash", "percpu_array", "percpu_hash"])
@pytest.mark.kernel
def test_bpftool_reads_the_same(kind: str):
    with create_map(kind, 4, 8, 40) as m:
        for i in range(30):
            m.update(u32(i), per_cpu(i, 8) if m.per_cpu else struct.pack("=Q", i * 1_000_003))
        command = [BPFTOOL, "-j", "map", "dump", "id", str(m.id)]
        told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

        def raw(listed: list[str]) -> bytes:
            return bytes(int(byte, 16) for byte in listed)

        def value(entry: dict[str, list[str]], cpus: list[dict[str, list[str]]]) -> list[bytes]:
            return [raw(cpu["value"]) for cpu in cpus or [entry]]

        keys, values = m.items()
        ours = {
            bytes(k): [bytes(row) for row in v.reshape(m.cpus, 8)] for k, v in zip(keys, values, strict=True)
        }
        assert {raw(entry["key"]): value(entry, entry.get("values", [])) for entry in told} == ours


@pytest.mark.parametrize("kind", ["percpu_array", "percpu_hash"])
@pytest.mark.kernel
def test_sums_over_cpus(kind: str):
    with create_map(kind, 4, 16, 4) as m:
        assert isinstance(m, PerCpuArrayMap | PerCpuHashMap)
        cpus = possible_cpus()
        m.update(u32(2), b"".join(struct.pack("=QQ", cpu + 1, 1 << 40) for cpu in range(cpus)))
        keys, sums = m.summed()
        row = keys.view("u4")[:, 0].tolist().index(2)
        assert sums[row].tolist() == [cpus * (cpus + 1) // 2, cpus << 40]
        assert sums.dtype == np.uint64


def test_a_growing_hash_never_holds_the_reader():
    with create_map("hash", 4, 8, 10_000, flags=NO_PREALLOC) as m:
        assert m.items()[0].shape == (0, 4)
        for i in range(3000):
            m.update(u32(i), bytes(8))
        keys, _ = m.items("u4")
        assert sorted(keys.tolist()) == list(range(3000))
        for i in range(0, 3000, 2):
            assert m.delete(u32(i))
        assert sorted(m.items("u4")[0].tolist()) == list(range(1, 3000, 2))


def test_update_flags_and_full_maps():
    with create_map("hash", 4, 4, 2) as m:
        m.update(u32(1), u32(10), flags=1)
        with pytest.raises(KeyError):
            m.update(u32(1), u32(11), flags=1)
        with pytest.raises(KeyError):
            m.update(u32(2), u32(11), flags=2)
        m.update(u32(2), u32(20))
        with pytest.raises(KeyError):
            m.update(u32(3), u32(30))
        assert m.lookup(u32(1)) == u32(10)
        assert m.lookup(u32(3)) is None
        assert m.delete(u32(1)) is True
        assert m.delete(u32(1)) is False


def test_sizes_are_checked_before_the_kernel_writes():
    with create_map("percpu_array", 4, 4, 2) as m:
        with pytest.raises(ValueError, match=f"a value of 4 bytes, not {8 * possible_cpus()}"):
            m.update(u32(0), u32(1))
        with pytest.raises(ValueError, match="a key of 2 bytes, not 4"):
            m.lookup(b"\0\0")
        with pytest.raises(ValueError, match="whole items"):
            m.items(None, "u8")
    with pytest.raises(ValueError, match="is closed"):
        m.lookup(u32(0))
    m.close()


@pytest.mark.kernel
def test_mmapped_array_reads_and_writes_the_kernels_memory():
    with create_map("array", 4, 24, 5, flags=1 << 10) as m:
        assert isinstance(m, ArrayMap)
        view = m.view("u8")
        assert view.shape == (5, 3)
        m.update(u32(3), struct.pack("=QQQ", 7, 8, 9))
        assert view[3].tolist() == [7, 8, 9]
        view[4, 1] = 77
        assert m.lookup(u32(4)) == struct.pack("=QQQ", 0, 77, 0)
    assert view[3, 0] == 7  # still mapped
    with create_map("array", 4, 12, 3, flags=1 << 10) as m:
        assert isinstance(m, ArrayMap)
        m.update(u32(2), struct.pack("=III", 1, 2, 3))
        assert m.view("u4").tolist() == [[0, 0, 0], [0, 0, 0], [1, 2, 3]]
        m.update(u32(1), struct.pack("=III", 4, 5, 6))
        assert m.view(np.dtype([("a", "u4"), ("b", "u4"), ("c", "u4")]))["c"].tolist() == [0, 6, 3]
    with create_map("array", 4, 8, 2) as plain:
        assert isinstance(plain, ArrayMap)
        with pytest.raises(FeatureError, match="BPF_F_MMAPABLE"):
            plain.view()


@pytest.mark.kernel
def test_lpm_trie_finds_the_longest_prefix():
    with create_map("lpm_trie", 4 + 16, 4, 10, flags=NO_PREALLOC) as m:
        assert isinstance(m, LpmTrieMap)
        m.update(m.prefix(b"\xfd\x00", 16), u32(1))
        m.update(m.prefix(b"\xfd\x00\x00\x01", 32), u32(2))
        assert m.lookup(m.prefix(b"\xfd\x00\x00\x01" + bytes(11) + b"\x09", 128)) == u32(2)
        assert m.lookup(m.prefix(b"\xfd\x00\x00\x02", 128)) == u32(1)
        assert m.lookup(m.prefix(b"\xfe\x80", 128)) is None
        assert len(m.items()[0]) == 2
        with pytest.raises(ValueError, match="no room"):
            m.prefix(bytes(17), 8)


@pytest.mark.kernel
def test_program_array(empty: LoadedObject, counter: LoadedObject):
    chain = counter.maps["chain"]
    assert isinstance(chain, ProgArrayMap)
    assert chain.program_id(3) is None
    chain.set(3, empty.programs["empty"].fd)
    assert chain.program_id(3) == empty.programs["empty"].id
    assert chain.remove(3) is True
    assert chain.remove(3) is False


@pytest.mark.needs("bpffs")
def test_pinned_maps_are_found_again(tmp_path: Path):
    path = f"/sys/fs/bpf/mapek-test-{os.getpid()}"
    with create_map("hash", 4, 4, 8) as m:
        m.update(u32(1), u32(2))
        m.pin(path)
        try:
            ident = m.id
            m.close()
            with open_map(path) as again:
                assert again.id == ident
                assert again.lookup(u32(1)) == u32(2)
        finally:
            os.unlink(path)
    with pytest.raises(FileNotFoundError):
        open_map(path)


def test_a_program_is_no_map(empty: LoadedObject):
    from mapek.bpf.maps import wrap

    with pytest.raises(ObjectError, match="it is a prog"):
        wrap(os.dup(empty.programs["empty"].fd))
    with pytest.raises(ValueError, match="sockmap"):
        create_map("sockmap", 4, 4, 4)


def test_reused_maps_are_shared():
    spec = ObjectSpec.read(object_path("xdp_counter"))
    with load(spec) as one, load(spec, reuse={"counters": one.maps["counters"]}) as two:
        assert two.maps["counters"].id == one.maps["counters"].id
        one.programs["xdp_counter"].test_run(bytes(64))
        two.programs["xdp_counter"].test_run(bytes(64))
        shared = one.maps["counters"]
        assert isinstance(shared, PerCpuArrayMap)
        assert shared.summed()[1].sum(axis=0).tolist() == [2, 128]


def test_every_kind_says_what_it_is(counter: LoadedObject):
    kinds: dict[str, type[Map]] = {name: type(m) for name, m in counter.maps.items()}
    assert {name: kind.__name__ for name, kind in kinds.items()} == {
        "counters": "PerCpuArrayMap", "chain": "ProgArrayMap", "samples": "RingBufMap",
        "sampling": "PerCpuArrayMap", ".rodata": "ArrayMap",
    }  # fmt: skip
    assert "counters" in repr(counter.maps["counters"])


@pytest.mark.parametrize("kind", ["array", "percpu_array", "hash", "percpu_hash"])
def test_a_kernel_without_batches_reads_the_same(kind: str, monkeypatch: pytest.MonkeyPatch):
    with create_map(kind, 4, 12, 20) as m:
        for i in range(20):
            m.update(u32(i), per_cpu(i, 12) if m.per_cpu else bytes([i] * 12))
        batch = m.items("u4")
        monkeypatch.setattr(BatchReader, "read", lambda *_: -1)
        single = m.items("u4")
    order, other = np.argsort(batch[0]), np.argsort(single[0])
    assert np.array_equal(batch[0][order], single[0][other])
    assert np.array_equal(batch[1][order], single[1][other])


@pytest.mark.parametrize("kind", ["percpu_array", "percpu_hash"])
def test_sums_of_odd_sizes(kind: str):
    with create_map(kind, 4, 12, 3) as m:
        assert isinstance(m, PerCpuArrayMap | PerCpuHashMap)
        m.update(u32(1), struct.pack("=IIIxxxx", 1, 2, 3) * possible_cpus())
        keys, sums = m.summed("u4")
        row = keys.view("u4")[:, 0].tolist().index(1)
        assert sums[row].tolist() == [n * possible_cpus() for n in (1, 2, 3)]
    with create_map(kind, 4, 4, 3) as m:
        assert isinstance(m, PerCpuArrayMap | PerCpuHashMap)
        m.update(u32(1), struct.pack("=Ixxxx", 5) * possible_cpus())
        keys, sums = m.summed("u4")
        assert sums.sum() == 5 * possible_cpus()


def test_a_read_does_not_overwrite_the_one_before():
    with create_map("percpu_array", 4, 8, 2) as m:
        assert isinstance(m, PerCpuArrayMap)
        keys, values = m.items("u4", "u8")
        sums = m.summed()[1]
        m.update(u32(1), struct.pack("=Q", 9) * possible_cpus())
        m.items()
        m.summed()
        assert keys.tolist() == [0, 1]
        assert values.sum() == sums.sum() == 0
