"""Loading: what goes wrong has one line that says what matters, and leaves nothing."""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mapek.bpf import LoadedObject, ObjectSpec, RingBuffer, create_map, load, load_async, object_path, probe
from mapek.bpf.features import FEATURES, Answer
from mapek.errors import FeatureError, ObjectError, PrivilegeError, VerifierError
from tests.support import machine

ROOT = Path(__file__).parents[3]
EMPTY = ObjectSpec.read(object_path("empty"))
COUNTER = ObjectSpec.read(object_path("xdp_counter"))
RETURN_PASS = struct.pack("=BBhi", 0xB4, 0, 0, 2)


def with_instruction(*instruction: int) -> ObjectSpec:
    """The empty program with its `r0 = XDP_PASS` replaced."""
    assert EMPTY.raw.count(RETURN_PASS) == 1
    return ObjectSpec.parse(EMPTY.raw.replace(RETURN_PASS, struct.pack("=BBhi", *instruction)), "bad.o")


@pytest.mark.parametrize(
    ("instruction", "kind", "says"),
    [
        ((0xBF, 0x32, 0, 0), VerifierError, "R3 !read_ok"),
        ((0x61, 0x10, 4096, 0), VerifierError, "invalid bpf_context access off=4096 size=4"),
        ((0x85, 0, 0, 1), VerifierError, "R1 type=ctx expected=map_ptr"),
    ],
)
def test_the_verifiers_lines(instruction: tuple[int, ...], kind: type[Exception], says: str):
    with pytest.raises(kind, match=says) as caught:
        load(with_instruction(*instruction))
    text = str(caught.value)
    assert "\n" not in text
    assert "program empty" in text
    if isinstance(caught.value, VerifierError):
        assert "processed" in caught.value.log


def test_a_program_for_newer_kernels_says_which():
    spec = ObjectSpec.read(object_path("link_watch"))
    if machine.has("bpf_timer"):
        with load(spec, programs=["stamp"]) as loaded:
            assert list(loaded.programs) == ["stamp"]
    else:
        with pytest.raises(FeatureError, match=r"program stamp.*it needs kernel 5\.1[35]"):
            load(spec, programs=["stamp"])


@pytest.mark.parametrize(
    ("instruction", "says"),
    [
        ((0x05, 0, -1, 0), "function empty: 1 instructions from 1 on cannot be reached"),
        ((0x05, 0, 9, 0), "function empty: instruction 0.*leaves it"),
        ((0x85, 0, 0, 99999), "program empty: helper 99999 is not allowed in xdp"),
        ((0x85, 0, 0, 109), "program empty: helper send_signal is not allowed in xdp: it kills processes"),
    ],
)
def test_what_validation_refuses_no_kernel_sees(instruction: tuple[int, ...], says: str):
    with pytest.raises(ObjectError, match=f"validate bad.o: {says}"):
        load(with_instruction(*instruction))


def test_nothing_is_left_after_a_failure():
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(VerifierError):
            load(with_instruction(0xBF, 0x32, 0, 0))
    assert set(os.listdir("/proc/self/fd")) == before


def test_libbpf_says_nothing_on_stderr(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(VerifierError):
        load(with_instruction(0xBF, 0x32, 0, 0))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"programs": ["nothing"]}, "no program 'nothing'; it has xdp_counter"),
        ({"rodata": {"sample": 1}}, "no constant 'sample'; it has .*sample_every"),
        ({"max_entries": {"nothing": 1}}, "no map 'nothing'"),
        ({"reuse": {"nothing": 0}}, "no map 'nothing'"),
        ({"skip_maps": ["nothing"]}, "no map 'nothing'"),
        ({"rodata": {"slot": 1 << 32}}, "does not fit 4 bytes"),
        ({"rodata": {"slot": -1}}, "does not fit 4 bytes"),
        ({"rodata": {"slot": b"\0"}}, "1 bytes do not fit 4"),
        ({"max_entries": {"counters": 0}}, "counters"),
        ({"skip_maps": ["counters"]}, "counters|load"),
    ],
)
def test_bad_options(options: dict[str, Any], says: str):
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises((ObjectError, VerifierError), match=says) as caught:
        load(COUNTER, **options)
    assert "\n" not in str(caught.value)
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("kind", "value_size", "says"),
    [
        ("percpu_array", 8, "value bytes 8, not 16"),
        ("array", 16, "type array, not percpu_array"),
    ],
)
def test_a_map_of_another_shape_is_not_reused(kind: str, value_size: int, says: str):
    with create_map(kind, 4, value_size, 24) as wrong:
        for given in (wrong, wrong.fd):
            with pytest.raises(ObjectError, match=says):
                load(COUNTER, reuse={"counters": given})


@pytest.mark.kernel
def test_constants_reach_the_program():
    with load(COUNTER, rodata={"slot": 3, "sample_every": b"\x08\0\0\0"}) as loaded:
        spec = COUNTER.variables
        data = loaded.maps[".rodata"].items()[1][0].tobytes()
        assert struct.unpack_from("=I", data, spec["slot"].offset) == (3,)
        assert data[spec["sample_every"].offset :][:4] == b"\x08\0\0\0"


def test_only_the_chosen_programs_are_loaded():
    with load(COUNTER, programs=set()) as loaded:
        assert loaded.programs == {}
        assert "counters" in loaded.maps


def test_a_map_can_be_left_out_with_the_programs_that_use_it():
    with load(COUNTER, programs=[], skip_maps=["samples"], max_entries={"counters": 7}) as loaded:
        assert "samples" not in loaded.maps
        assert loaded.maps["counters"].max_entries == 7


def test_the_other_byte_order_is_refused():
    other = "bpfeb" if sys.byteorder == "little" else "bpfel"
    spec = ObjectSpec.read(object_path("empty").with_name(f"empty.{other}.o"))
    with pytest.raises(ObjectError, match="-endian, this machine"):
        load(spec)


def test_programs_know_themselves(counter: LoadedObject):
    program = counter.programs["xdp_counter"]
    assert (program.name, program.type) == ("xdp_counter", "xdp")
    assert len(program.tag) == 16
    assert sorted(program.map_ids()) == sorted(m.id for n, m in counter.maps.items())
    assert f"id={program.id}" in repr(program)
    result = program.test_run(bytes(64), repeat=1000)
    assert (result.retval, result.data) == (2, bytes(64))
    assert 0 < result.duration_ns < 10_000


async def test_load_async_and_its_context():
    async with await load_async(COUNTER) as loaded:
        fd = loaded.programs["xdp_counter"].fd
        assert fd >= 0
    assert loaded.programs["xdp_counter"].fd == -1
    loaded.close()
    tasks = [asyncio.create_task(load_async(COUNTER)) for _ in range(4)]
    for each in await asyncio.gather(*tasks):
        each.close()


@pytest.mark.kernel
async def test_ring_buffer_on_the_loop():
    with load(COUNTER, rodata={"sample_every": 1}) as loaded:
        got: list[bytes] = []
        three = asyncio.Event()

        def take(record: bytes) -> None:
            got.append(record)
            if len(got) == 3:
                three.set()

        with RingBuffer(loaded.maps["samples"], take) as ring:
            ring.start()
            loaded.programs["xdp_counter"].test_run(bytes(64), repeat=3)
            assert got == []
            async with asyncio.timeout(5):
                await three.wait()
            ring.stop()
            loaded.programs["xdp_counter"].test_run(bytes(64), repeat=2)
            assert ring.consume() == 2
        ring.close()
        assert ring.consume() == 0


async def test_a_failing_callback_loses_no_record_and_is_told():
    loop = asyncio.get_running_loop()
    told: list[str] = []
    loop.set_exception_handler(lambda _, context: told.append(str(context["exception"])))
    with load(COUNTER, rodata={"sample_every": 1}) as loaded:
        seen = 0
        done = asyncio.Event()

        def fail(_: bytes) -> None:
            nonlocal seen
            seen += 1
            if seen == 10:
                done.set()
            raise RuntimeError(f"record {seen}")

        with RingBuffer(loaded.maps["samples"], fail, slice_size=4) as ring:
            ring.start()
            loaded.programs["xdp_counter"].test_run(bytes(64), repeat=10)
            async with asyncio.timeout(5):
                await done.wait()
            # Three slices of at most four, each with its first failure.
            assert told == ["record 1", "record 5", "record 9"]
            loaded.programs["xdp_counter"].test_run(bytes(64), repeat=1)
            with pytest.raises(RuntimeError, match="record 11"):
                ring.consume()


def test_only_ring_buffers_are_read_as_such(counter: LoadedObject):
    with pytest.raises(ObjectError, match="percpu_array"):
        RingBuffer(counter.maps["counters"], print)


@pytest.mark.kernel
def test_probes_answer_on_this_kernel():
    answers = {name: probe(name) for name in FEATURES}
    assert Answer.UNKNOWN not in answers.values()
    assert (answers["btf"] is Answer.YES) == machine.has("btf")
    for name, (since, _) in FEATURES.items():
        version = tuple(int(n) for n in since.split()[1].split("."))
        if machine.kernel() >= version and " with " not in since:
            assert answers[name] is Answer.YES, name


UNPRIVILEGED = """
import sys
from mapek.bpf import ObjectSpec, load, object_path, attach_xdp, create_map, probe
from mapek.errors import MapekError
for what in (lambda: load(ObjectSpec.read(object_path("xdp_counter"))),):
    try:
        what()
        print("loaded")
    except MapekError as error:
        print(type(error).__name__, error)
print(probe("bpf_timer"), probe("tcx"))
"""


@pytest.mark.parametrize(
    ("held", "missing"),
    [
        ((), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]),
        (("net_admin",), ["CAP_BPF", "CAP_PERFMON"]),
        (("net_admin", "bpf"), ["CAP_PERFMON"]),
        (("net_admin", "bpf", "perfmon"), []),
    ],
)
def test_a_missing_capability_is_named(held: tuple[str, ...], missing: list[str]):
    caps = ",".join(["-all", *(f"+{name}" for name in held)])
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", f"--inh-caps={caps}"]
    command += [f"--ambient-caps={caps}", f"--bounding-set={caps}", sys.executable, "-c", UNPRIVILEGED]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, probes = done.stdout.splitlines()
    if missing:
        assert first.startswith(f"{PrivilegeError.__name__} load")
        assert f": {' and '.join(missing)} missing; " in first
    else:
        assert first == "loaded"
    known = " ".join("yes" if machine.has(name) else "no" for name in ("bpf_timer", "tcx"))
    assert probes == ("unknown unknown" if "bpf" not in held else known)


LOCKED = """
import resource
from mapek.bpf import create_map
from mapek.errors import MapekError
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
try:
    create_map("hash", 4, 4, 100_000)
    print("made")
except MapekError as error:
    print(error)
"""


@pytest.mark.host
@pytest.mark.kernel
def test_a_limit_of_locked_memory_is_named_where_the_kernel_has_one():
    command = ["setpriv", "--bounding-set=-sys_resource", sys.executable, "-c", LOCKED]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if machine.kernel() >= (5, 11):
        assert done.stdout == "made\n"
    else:
        assert "not permitted although no capability is missing; raise RLIMIT_MEMLOCK" in done.stdout
