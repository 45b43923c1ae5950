"""The server over real sockets: its answers, its limits, and what it does with hostile callers."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from contextlib import suppress
from typing import Any

import pytest

from mapek.config import ServiceConfig
from mapek.errors import ConfigError, TemporaryError
from mapek.service.http import HEAD_LIMIT, Response, Server
from mapek.service.kernel import Kernel
from mapek.service.serve import Service
from tests.unit.service.conftest import Sensor, View

KERNEL = Kernel("6.1.0", "1.1", "", ("CAP_BPF",), {"tcx": "no (kernel 6.6)"})


def _service(view: View, host: str = "127.0.0.1", port: int = 0) -> Service:
    return Service(view, ServiceConfig(host, port), node="a", examine=lambda: KERNEL)


async def _talk(port: int, request: bytes, host: str = "127.0.0.1") -> tuple[str, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request)
        head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    status, *lines = head.decode().split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body


async def _get(port: int, path: str, host: str = "127.0.0.1") -> tuple[str, dict[str, str], bytes]:
    return await _talk(port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), host)


async def test_metrics(view: View) -> None:
    async with _service(view) as service:
        status, headers, body = await _get(service.port, "/metrics?x=1")
    assert status == "HTTP/1.1 200 OK"
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert int(headers["Content-Length"]) == len(body)
    assert b'mapek_link_watch_sent_packets_total{path="b/l0"}' in body


async def _health(service: Service) -> tuple[str, dict[str, Any]]:
    # The kernel is examined in a thread; until it is, the document says so.
    while True:
        status, headers, body = await _get(service.port, "/health")
        assert headers["Content-Type"] == "application/json"
        document = json.loads(body)
        if document["ebpf_loader"]["ok"] is not None:
            return status, document
        await asyncio.sleep(0)


async def test_health(view: View) -> None:
    async with _service(view) as service:
        status, document = await _health(service)
    assert status == "HTTP/1.1 200 OK"
    assert document["status"] == "degraded"
    assert document["node"] == "a"
    assert document["ebpf_loader"] == {"ok": True, "libbpf": "1.1", "trouble": ""}
    assert document["kernel"]["features"] == {"tcx": "no (kernel 6.6)"}
    watch = document["sensors"]["link_watch"]
    assert watch["attached"] == [{"target": "l0", "mode": "native"}, {"target": "l1", "mode": "generic"}]
    assert (watch["up"], watch["degraded"], watch["counts"]) == (True, ["no bpf_timer"], {"ring_drops": 4})
    assert document["loop"]["incidents"]["recovered"] == 1


async def test_health_when_all_is_well() -> None:
    async with _service(View({"s": Sensor()})) as service:
        status, document = await _health(service)
    assert (status, document["status"]) == ("HTTP/1.1 200 OK", "ok")


async def test_a_sensor_that_fails_when_it_is_read_is_not_well() -> None:
    async with _service(View({"s": Sensor(failure="ValueError: x"), "t": Sensor()})) as service:
        status, document = await _health(service)
    assert (status, document["status"]) == ("HTTP/1.1 200 OK", "degraded")
    assert document["sensors"]["s"]["failure"] == "ValueError: x"


async def test_health_when_the_loop_cannot_work(view: View) -> None:
    view.trouble = "no sensor works: open link_watch: no interface l0"
    async with _service(view) as service:
        status, document = await _health(service)
    assert status == "HTTP/1.1 503 Service Unavailable"
    assert document["status"] == "failing"
    assert document["loop"]["trouble"] == view.trouble


async def test_head_has_no_body(view: View) -> None:
    async with _service(view) as service:
        status, headers, body = await _talk(service.port, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert status == "HTTP/1.1 200 OK"
    assert int(headers["Content-Length"]) > 0
    assert body == b""


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"GET /metrics/ HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405 Method Not Allowed"),
        (b"GET\r\n\r\n", "400 Bad Request"),
        (b"GET http://x/metrics HTTP/1.1\r\n\r\n", "400 Bad Request"),
        (b"GET /metrics HTTP/2\r\n\r\n", "400 Bad Request"),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", "400 Bad Request"),
        (b"GET /\xff\xfe HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"GET /" + b"a" * (HEAD_LIMIT + 10) + b" HTTP/1.1\r\n\r\n", "431 Request Header Fields Too Large"),
    ],
)
async def test_what_is_refused(view: View, request_: bytes, status: str) -> None:
    async with _service(view) as service:
        said, headers, _ = await _talk(service.port, request_)
        assert said == f"HTTP/1.1 {status}"
        assert headers["Connection"] == "close"
        assert (await _get(service.port, "/metrics"))[0] == "HTTP/1.1 200 OK"


async def test_ipv6(view: View) -> None:
    async with _service(view, "::1") as service:
        assert (await _get(service.port, "/metrics", "::1"))[0] == "HTTP/1.1 200 OK"


async def test_off_opens_nothing(view: View) -> None:
    async with _service(view, "") as service:
        assert service.port == 0


async def test_a_port_in_use(view: View) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TemporaryError) as caught:
            await _service(view, port=port).__aenter__()
    assert str(caught.value) == (
        f"listen on 127.0.0.1:{port}: the port is in use; "
        "end the program that holds it or set [service] listen"
    )


async def test_an_address_of_somebody_else(view: View) -> None:
    with pytest.raises(ConfigError) as caught:
        await _service(view, "192.0.2.1").__aenter__()
    assert str(caught.value) == (
        "listen on 192.0.2.1:0: no interface here has this address; set [service] listen to one of its own"
    )


async def _text(text: bytes):
    yield text


async def test_too_many_are_told_so_and_do_not_keep_others_out() -> None:
    server = Server({"/": lambda: Response(_text(b"hello"), "text/plain")}, connections=2)
    await server.open("127.0.0.1", 0)
    try:
        idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
        status, _, _ = await _get(server.port, "/")
        assert status == "HTTP/1.1 503 Service Unavailable"
        for reader, writer in idle:
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            assert (await reader.read()).endswith(b"hello")
            writer.close()
            await writer.wait_closed()
    finally:
        await server.close()


async def test_who_says_nothing_is_hung_up_on() -> None:
    server = Server({}, timeout=0.05)
    await server.open("127.0.0.1", 0)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HT")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
    finally:
        await server.close()


async def test_who_does_not_read_is_hung_up_on() -> None:
    # More than the kernel's buffers hold, so that drain() has to wait for the reader.
    server = Server({"/": lambda: Response(_text(b"x" * 64_000_000), "text/plain")}, timeout=0.2)
    await server.open("127.0.0.1", 0)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 16)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        got = 0
        with suppress(ConnectionError):
            while piece := await asyncio.wait_for(reader.read(1 << 17), 5):
                got += len(piece)
                await asyncio.sleep(0.001)
        assert 0 < got < 64_000_000
        writer.close()
    finally:
        await server.close()


async def _broken():
    yield b"begun"
    raise RuntimeError("broken half-way")


def _raise() -> Response:
    raise RuntimeError("broken at once")


async def test_a_failing_handler_is_a_500_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    server = Server({"/a": lambda: Response(_broken(), "text/plain"), "/b": _raise})
    await server.open("127.0.0.1", 0)
    try:
        with caplog.at_level(logging.ERROR, "mapek.service"):
            for path in ("/a", "/a", "/b", "/b"):
                status, _, body = await _get(server.port, path)
                assert status == "HTTP/1.1 500 Internal Server Error"
                assert b"begun" not in body
    finally:
        await server.close()
    assert len(caplog.records) == 2


async def test_closing_ends_what_is_open_and_may_come_twice() -> None:
    server = Server({})
    await server.open("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await server.close()
    await server.close()
    assert await reader.read() == b""
    assert server.port == 0
    writer.close()


async def test_a_scrape_leaves_room_for_the_loop(view: View) -> None:
    from prometheus_client import CollectorRegistry

    from mapek.service.collector import LoopCollector, exposition

    registry = CollectorRegistry()
    registry.register(LoopCollector(view, "1"))
    steps = 0

    async def count() -> None:
        nonlocal steps
        while True:
            steps += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(count())
    pieces = [piece async for piece in exposition(registry)]
    other.cancel()
    assert steps >= len(pieces) > 10
