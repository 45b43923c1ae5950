"""The reference that the kernel's programs are held against, held against the published vectors itself."""

from __future__ import annotations

import struct

import pytest

from tests.support.stamp import SIZE, checksum, frame, parse, payload, siphash24

# Appendix A of the paper, and vectors_sip64 of its reference implementation: key and data are 00 01 02 ...
KEY = struct.unpack("<QQ", bytes(range(16)))
VECTORS = {
    0: "310e0edd47db6f72", 1: "fd67dc93c539f874", 2: "5a4fa9d909806c0d", 7: "37d1018bf50002ab",
    8: "6224939a79f5f593", 9: "b0e4a90bdf82009e", 15: "e545be4961ca29a1", 16: "db9bc2577fcc2a3f",
    63: "724506eb4c328a95",
}  # fmt: skip


@pytest.mark.parametrize("length", VECTORS)
def test_siphash(length):
    assert struct.pack("<Q", siphash24(KEY, bytes(range(length)))).hex() == VECTORS[length]


def test_checksum():
    # RFC 1071, 3
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2


@pytest.mark.parametrize(("one", "other"), [("10.0.0.1", "10.0.0.2"), ("fe80::1", "fe80::2")])
def test_frames_come_back(one, other):
    sent = frame(one, other, payload((1, 2), seq=5, epoch=9))
    found = parse(sent)
    assert found.sound
    assert (str(found.source), str(found.dest), found.ports) == (one, other, (45000, 862))
    assert len(found.data) == SIZE == 72
    assert found.signed_with((1, 2))
    assert not found.signed_with((2, 1))
    assert (found.fields["seq"], found.fields["epoch"]) == (5, 9)
    assert not parse(sent[:-1] + bytes([sent[-1] ^ 1])).sound
