"""What is opened in many steps and undone in the opposite order: on leaving, and when one of the steps fails."""

from __future__ import annotations

from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self


class Life:
    """An async context manager. `_open` does the steps, and puts on `_life` what undoes each."""

    def __init__(self) -> None:
        self._life = AsyncExitStack()

    async def _open(self) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._life.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._life.aclose()
