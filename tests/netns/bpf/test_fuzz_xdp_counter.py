"""xdp_counter on malformed frames, beside a decoder that was written from the standards."""

from __future__ import annotations

import errno
import socket

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mapek.bpf import LoadedObject, attach_xdp
from tests.netns.bpf.fuzz import FRAMES, SEED, XDP_PASS, Frames, Runner, first_wrong, unchanged
from tests.netns.bpf.wires import Wire, counters
from tests.support.decode_packet import IPV4, IPV6, decode

TAGS_FOLLOWED = 2
EXTENSIONS_FOLLOWED = 4
_PROTOCOLS = {(IPV4, 6): 0, (IPV4, 17): 1, (IPV4, 1): 2, (IPV6, 6): 0, (IPV6, 17): 1, (IPV6, 58): 2}


def slot(frame: bytes) -> int:
    """Where the frame has to be counted: (family * 4 + protocol) * 2 + tagged."""
    found = decode(frame)
    tagged = bool(found.tags)
    if len(found.tags) > TAGS_FOLLOWED or found.ethertype not in (IPV4, IPV6):
        return (2 * 4 + 3) * 2 + tagged
    family = 0 if found.ethertype == IPV4 else 1
    protocol = 3
    if found.protocol is not None and found.extensions <= EXTENSIONS_FOLLOWED:
        protocol = _PROTOCOLS.get((found.ethertype, found.protocol), 3)
    return (family * 4 + protocol) * 2 + tagged


def expected(frames: list[bytes]) -> npt.NDArray[np.uint64]:
    table = np.zeros((24, 2), dtype=np.uint64)
    for frame in frames:
        table[slot(frame)] += np.array((1, len(frame)), dtype=np.uint64)
    return table


def test_malformed_frames_are_counted_once_where_they_belong(counter: LoadedObject):
    run = Runner(counter.programs["xdp_counter"].fd)
    source = Frames(SEED)
    before = counters(counter).astype(np.uint64)
    covered: set[int] = set()
    left = FRAMES
    while left:
        frames = list(source.take(min(left, 10_000)))
        left -= len(frames)
        unchanged(run, frames, XDP_PASS)
        now = counters(counter)
        moved = now - before
        table = expected(frames)
        covered |= set(np.flatnonzero(table[:, 0]).tolist())

        def alone(frame: bytes) -> bool:
            earlier = counters(counter)
            run(frame)
            return not np.array_equal(counters(counter) - earlier, expected([frame]))

        assert np.array_equal(moved, table), first_wrong(frames, alone)
        before = now
    # all that it tells apart has been there: no protocol is only ever seen by luck
    assert covered == set(range(16)) | {22, 23}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tags=st.lists(st.sampled_from([0x8100, 0x88A8]), max_size=4),
    kind=st.sampled_from([IPV4, IPV6]),
    body=st.binary(max_size=200),
)
def test_any_bytes_behind_any_tags(counter: LoadedObject, tags: list[int], kind: int, body: bytes):
    frame = bytes(12) + b"".join(tag.to_bytes(2) + b"\0\1" for tag in tags) + kind.to_bytes(2) + body
    before = counters(counter)
    assert Runner(counter.programs["xdp_counter"].fd)(frame) == (XDP_PASS, frame)
    assert np.array_equal(counters(counter) - before, expected([frame]))


def test_frames_below_an_ethernet_header_reach_no_program(counter: LoadedObject, wire: Wire):
    """The kernel takes none: not for a test run, and not from a socket."""
    run = Runner(counter.programs["xdp_counter"].fd)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.bind(("far", 0))
        for length in range(14):
            with pytest.raises(OSError, match=r".") as caught:
                run(bytes(length))
            assert caught.value.errno == errno.EINVAL
            with pytest.raises(OSError, match=r".") as caught:
                out.send(bytes(length))
            assert caught.value.errno in (errno.EINVAL, errno.ENOBUFS)


def test_malformed_frames_of_every_length_on_a_wire(counter: LoadedObject, wire: Wire):
    """Real frames through a veth: the same counts, and the kernel counts as many."""
    source = Frames(SEED + 1)
    frames = [frame[:length].ljust(length, b"\x5a") for length in range(14, 300) for frame in source.take(4)]
    with attach_xdp(counter.programs["xdp_counter"], wire.near):
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
            out.bind(("far", 0))
            for frame in frames:
                out.send(frame)
        got = counters(counter)
    assert np.array_equal(got, expected(frames))
