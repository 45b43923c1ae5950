"""A very small HTTP/1.1 server: GET and HEAD of fixed paths, one request a connection, everything bounded.

Scrapers and health checks need no more, and a framework costs 10 MB and more. Whoever is slow, long-winded or
one of too many is answered shortly and closed, so a stranger cannot hold memory or descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from mapek.errors import ConfigError, MapekError, TemporaryError

log = logging.getLogger("mapek.service")

HEAD_LIMIT: Final = 8192
CONNECTIONS: Final = 16
TIMEOUT_S: Final = 5.0

_BACKLOG: Final = 32
_LONGEST_LINGER: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Response:
    """An answer; `body` comes in pieces, between which the event loop does other work."""

    body: AsyncIterator[bytes]
    content_type: str
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[], Response]


async def _text(line: str) -> AsyncIterator[bytes]:
    yield f"{line}\n".encode()


def _plain(status: HTTPStatus, line: str, **headers: str) -> Response:
    return Response(_text(line), "text/plain; charset=utf-8", status, headers)


class Server:
    """Answers `handlers` by path on one address.

    Args:
        handlers: path to handler; a handler is called on the event loop and must not block it.
        connections: how many are served at once; one more is answered 503.
        timeout: seconds for a whole exchange.
    """

    def __init__(
        self, handlers: Mapping[str, Handler], *, connections: int = CONNECTIONS, timeout: float = TIMEOUT_S
    ) -> None:
        self._handlers = dict(handlers)
        self._connections, self._timeout = connections, timeout
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._said: set[str] = set()

    @property
    def port(self) -> int:
        """The port that it listens on; 0 while it does not."""
        if self._server is None or not self._server.sockets:
            return 0
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def open(self, host: str, port: int) -> None:
        """Listen. Raises TemporaryError when the port is in use, ConfigError when the address is not ours."""
        try:
            self._server = await asyncio.start_server(
                self._accept, host, port, limit=HEAD_LIMIT, backlog=_BACKLOG
            )
        except OSError as cause:
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            code = cause.errno
            if code == errno.EADDRINUSE:
                raise TemporaryError(
                    "listen on",
                    where,
                    "the port is in use",
                    "end the program that holds it or set [service] listen",
                ) from cause
            if code in (errno.EADDRNOTAVAIL, errno.EINVAL, errno.EAFNOSUPPORT):
                raise ConfigError(
                    "listen on",
                    where,
                    "no interface here has this address",
                    "set [service] listen to one of its own",
                ) from cause
            if code == errno.EACCES:
                raise ConfigError(
                    "listen on", where, "ports below 1024 need CAP_NET_BIND_SERVICE", "choose a higher port"
                ) from cause
            raise TemporaryError(
                "listen on", where, cause.strerror or str(cause), "see [service] listen"
            ) from cause

    async def close(self) -> None:
        """Stop listening and end what is being answered; closing twice is fine."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if server is not None:
            await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                if len(self._tasks) > self._connections:
                    # Not a byte of it is read: the answer has to be cheaper than the question.
                    response, body = _plain(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections"), True
                else:
                    response, body = await self._answer(reader)
                response, pieces = await self._gather(response)
                await _write(writer, response, pieces, body)
                await _linger(reader, writer)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            pass  # the other side is slow or gone; it will see that we hung up
        except Exception as error:
            self._note(error)
        finally:
            # abort() where close() would go on sending to somebody who does not read.
            transport = writer.transport
            transport.close() if transport.get_write_buffer_size() == 0 else transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[Response, bool]:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {HEAD_LIMIT} bytes"), True
        parts = head.split(b"\r\n", 1)[0].split(b" ")
        if len(parts) != 3 or not parts[2].startswith(b"HTTP/1.") or not parts[1].startswith(b"/"):
            return _plain(HTTPStatus.BAD_REQUEST, "not an HTTP/1 request"), True
        method, target = parts[0], parts[1].partition(b"?")[0].decode("ascii", "replace")
        body = method != b"HEAD"
        if method not in (b"GET", b"HEAD"):
            return _plain(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD only", Allow="GET, HEAD"), True
        handler = self._handlers.get(target)
        if handler is None:
            return _plain(HTTPStatus.NOT_FOUND, f"there is {' and '.join(sorted(self._handlers))}"), body
        try:
            return handler(), body
        except Exception as error:
            self._note(error)
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR, "failed; the log says why"), body

    async def _gather(self, response: Response) -> tuple[Response, list[bytes]]:
        # Whole before it is sent: a failure half-way can still be answered properly, and the length is known.
        try:
            return response, [piece async for piece in response.body]
        except Exception as error:
            self._note(error)
            failed = _plain(HTTPStatus.INTERNAL_SERVER_ERROR, "failed; the log says why")
            return failed, [piece async for piece in failed.body]

    def _note(self, error: Exception) -> None:
        message = str(error) if isinstance(error, MapekError) else f"{type(error).__name__}: {error}"
        if message not in self._said and len(self._said) < 100:
            self._said.add(message)
            log.error("answer a request: %s", message, exc_info=error)


async def _write(writer: asyncio.StreamWriter, response: Response, pieces: list[bytes], body: bool) -> None:
    headers = {
        "Content-Type": response.content_type,
        "Content-Length": str(sum(map(len, pieces))),
        "Cache-Control": "no-store",
        "Connection": "close",
        **response.headers,
    }
    head = f"HTTP/1.1 {response.status.value} {response.status.phrase}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"{head}\r\n".encode("latin-1", "replace"))
    if body:
        writer.writelines(pieces)
    await writer.drain()


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # Closing over unread input makes the kernel send RST, which can destroy the answer on its way.
    with contextlib.suppress(OSError):
        writer.write_eof()
    left = _LONGEST_LINGER
    while left > 0 and (piece := await reader.read(4096)):
        left -= len(piece)
