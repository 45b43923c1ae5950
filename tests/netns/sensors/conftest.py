"""Loaded programs, and namespaces of a test's own."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from mapek.bpf import ObjectSpec, load, object_path
from tests.netns.sensors.keeping import remove_pins
from tests.netns.sensors.programs import PAIRS, Bench
from tests.netns.sensors.wires import Space, Wire, run
from tests.support import veth


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/netns/sensors" in str(item.path):
            item.add_marker(pytest.mark.netns)


@pytest.fixture(scope="session")
def spec() -> ObjectSpec:
    return ObjectSpec.read(object_path("link_watch"))


@pytest.fixture
def bench(spec: ObjectSpec) -> Iterator[Callable[..., Bench]]:
    """Makes a bench of a program and a family; all are closed after the test."""
    with ExitStack() as life:

        def make(program: str, family: str = "IPv4") -> Bench:
            loaded = life.enter_context(load(spec, programs={program}))
            return Bench(loaded, program, *PAIRS[family])

        yield make


@pytest.fixture
def space() -> Iterator[Space]:
    """The calling thread sits in a fresh namespace while the test runs."""
    made = Space.new()
    try:
        with made.entered():
            yield made
    finally:
        made.close()


@pytest.fixture
def quiet(wire: Wire) -> Iterator[Wire]:
    """One on which nobody speaks by itself; what agents keep in its namespace is removed at the end."""
    for name in ("near", "far"):
        run(f"sysctl -qw net.ipv6.conf.{name}.disable_ipv6=1")
    try:
        yield wire
    finally:
        remove_pins()


@pytest.fixture
def wire(space: Space) -> Iterator[Wire]:
    veth.pair("near", "far")
    yield Wire(socket.if_nametoindex("near"), socket.if_nametoindex("far"))
    veth.delete("near")
