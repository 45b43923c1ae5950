"""Puts the pieces together: a server with `/metrics` and `/health` over one loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mapek.bpf.worker import in_thread
from mapek.config.settings import ServiceConfig
from mapek.service.health import health
from mapek.service.http import Response, Server
from mapek.service.kernel import Kernel, examine
from mapek.service.state import LoopView

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from mapek.service.privileges import Privileges


class Service:
    """`async with serve(view, config, node="a") as service:`; `service.port` is what it listens on, or 0.

    Opening raises TemporaryError when the port is in use and ConfigError when the address is not ours.
    """

    def __init__(
        self,
        view: LoopView,
        config: ServiceConfig,
        *,
        node: str,
        privileges: Privileges | None = None,
        examine: Callable[[], Kernel] = examine,
    ) -> None:
        self._view, self._config, self._node = view, config, node
        self._examine, self._privileges = examine, privileges
        self._kernel: Kernel | None = None
        self._registry: CollectorRegistry | None = None
        self._examination: asyncio.Task[None] | None = None
        self._server = Server({"/metrics": self._metrics, "/health": self._health})
        self._version = ""

    @property
    def port(self) -> int:
        """Where it listens; 0 when the configuration turns it off."""
        return self._server.port

    async def __aenter__(self) -> Self:
        if not self._config.host:
            return self
        from prometheus_client import CollectorRegistry

        from mapek import __version__
        from mapek.service.collector import LoopCollector

        self._version = __version__
        # Our own registry: the process may be somebody else's program with metrics of its own.
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(LoopCollector(self._view, self._version))
        await self._server.open(self._config.host, self._config.port)
        self._examination = asyncio.get_running_loop().create_task(self._look())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._examination is not None:
            self._examination.cancel()
            await asyncio.gather(self._examination, return_exceptions=True)
            self._examination = None
        await self._server.close()

    async def _look(self) -> None:
        # Not in a pool, whose threads live on with the capabilities that we have now.
        self._kernel = await in_thread(self._examine)

    def _metrics(self) -> Response:
        from mapek.service.collector import CONTENT_TYPE, exposition

        assert self._registry is not None
        return Response(exposition(self._registry), CONTENT_TYPE)

    def _health(self) -> Response:
        document = health(
            self._view, self._kernel, node=self._node, version=self._version, privileges=self._privileges
        )
        failing = document["status"] == "failing"
        status = HTTPStatus.SERVICE_UNAVAILABLE if failing else HTTPStatus.OK
        return Response(_json(document), "application/json", status)


async def _json(document: object) -> AsyncIterator[bytes]:
    yield json.dumps(document, indent=2).encode() + b"\n"


def serve(
    view: LoopView, config: ServiceConfig, *, node: str, privileges: Privileges | None = None
) -> Service:
    """The service over `view`, to be entered with `async with`; `/health` tells of `privileges` too."""
    return Service(view, config, node=node, privileges=privileges)
