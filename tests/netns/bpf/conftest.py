"""A network namespace with a veth pair per test, and loaded objects."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapek.bpf import LoadedObject, ObjectSpec, load, object_path
from tests.netns.bpf.wires import Wire
from tests.support import veth

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/netns/bpf" in str(item.path):
            item.add_marker(pytest.mark.netns)


@pytest.fixture
def wire() -> Iterator[Wire]:
    """The calling thread sits in a fresh namespace while the test runs; without IPv6 it is silent by
    itself."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    assert _libc.unshare(_CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    try:
        with open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w", encoding="ascii") as file:
            file.write("1")
        veth.pair("near", "far")
        yield Wire(socket.if_nametoindex("near"), socket.if_nametoindex("far"))
        if "near" in (name for _, name in socket.if_nameindex()):
            veth.delete("near")
    finally:
        assert _libc.setns(home, _CLONE_NEWNET) == 0
        os.close(home)


@pytest.fixture
def empty() -> Iterator[LoadedObject]:
    with load(ObjectSpec.read(object_path("empty"))) as loaded:
        yield loaded


@pytest.fixture
def counter() -> Iterator[LoadedObject]:
    with load(ObjectSpec.read(object_path("xdp_counter"))) as loaded:
        yield loaded


@pytest.fixture
def pins() -> Iterator[Path]:
    """A directory on the bpffs that is not there yet."""
    path = Path(f"/sys/fs/bpf/mapek-test-{os.getpid()}-d")
    yield path
    shutil.rmtree(path, ignore_errors=True)
