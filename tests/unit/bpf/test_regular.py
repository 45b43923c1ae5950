"""A fifo, a device or an endless file in the place of one that is read: a reason at once, and no hanging."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mapek.bpf import ObjectSpec, object_path, rules, signatures
from mapek.bpf.regular import read_regular
from mapek.bpf.relocate import KernelBtf
from mapek.bpf.validate import validate
from mapek.errors import MapekError

READERS: dict[str, Callable[[Path], object]] = {
    "object": ObjectSpec.read,
    "signature": signatures.read_signature,
    "key": signatures.read_key,
    "rules": rules.read,
    "digests": rules.read_digests,
    "BTF": lambda path: KernelBtf.read(str(path)),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_regular_file_is_refused_at_once(reader: str, tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(MapekError, match=f"{path}: (not a regular file|Is a directory)"):
            READERS[reader](path)


@pytest.mark.timeout(20)
def test_a_fifo_beside_an_object_is_no_signature(tmp_path: Path):
    path = tmp_path / "empty.o"
    path.write_bytes(object_path("empty").read_bytes())
    os.mkfifo(tmp_path / "empty.o.sig")
    report = validate(ObjectSpec.read(path), rules.Rules(keys=(bytes(32),)))
    assert "it has no signature" in report.findings[0].why
    assert "not a regular file" in report.findings[0].why


def test_as_much_as_is_allowed_and_no_more(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"12345678")
    assert read_regular(tmp_path / "file", 8) == b"12345678"
    with pytest.raises(ValueError, match="it has more than 7 bytes"):
        read_regular(tmp_path / "file", 7)
