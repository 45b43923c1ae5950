"""Runs one blocking kernel call in a fresh thread, in the caller's network namespace.

Attach, detach and update wait 8-16 ms for an RCU grace period, so they must not run on the event loop. A
fresh thread and not the default executor: it inherits the namespace of the thread that starts it, while a
pooled one keeps the namespace it was born in. It costs 50-100 microseconds, which is nothing beside the call.

`threading.Thread.start` waits until the thread runs, which on a busy machine takes milliseconds and more, and the
loop would wait with it: so the thread is started by what lies below.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakSet

if TYPE_CHECKING:
    from mapek.bpf.program import Program

T = TypeVar("T")

under_way: Final[WeakSet[asyncio.Future[Any]]] = WeakSet()
"""Calls whose result is not delivered yet; `threading.enumerate` does not know their threads."""


async def in_thread(call: Callable[[], T], discard: Callable[[T], None] | None = None) -> T:
    """The result of `call()`, run in a thread of its own; exceptions come through.

    If the awaiting task is cancelled meanwhile, the call still ends by itself and its result goes to
    `discard` (usually its close), so that nothing stays attached without an owner.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            if error is None and discard is not None:
                # Closing may block as much as opening.
                threading.Thread(target=discard, args=(result,), name="mapek-bpf-discard").start()
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]
        under_way.discard(future)

    def run() -> None:
        result, failure = None, None
        try:
            result = call()
        except BaseException as error:
            failure = error
        undo = discard if failure is None else None
        if future.cancelled():
            # Undone here and not by the loop, which may end before it comes to it.
            if undo is not None:
                undo(result)  # type: ignore[arg-type]
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(under_way.discard, future)
            return
        try:
            loop.call_soon_threadsafe(deliver, result, failure)
        except RuntimeError:
            # The loop was closed under us: nobody can take the result any more.
            if undo is not None:
                undo(result)  # type: ignore[arg-type]
            under_way.discard(future)

    under_way.add(future)
    _thread.start_new_thread(run, ())
    try:
        return await future
    except asyncio.CancelledError:
        # cancelled between the delivery and our waking up: the result is here, and nobody will take it
        if discard is not None and future.done() and not future.cancelled() and future.exception() is None:
            threading.Thread(target=discard, args=(future.result(),), name="mapek-bpf-discard").start()
        raise


async def in_thread_with(
    program: Program, call: Callable[[Program], T], discard: Callable[[T], None] | None = None
) -> T:
    """`in_thread` for a call that uses `program`, by a descriptor of its own.

    Whoever is cancelled closes what he has while the thread still runs, and the number may be another program's then.
    """
    mine = program.copy()

    def run() -> T:
        try:
            return call(mine)
        finally:
            mine.close()

    return await in_thread(run, discard)
