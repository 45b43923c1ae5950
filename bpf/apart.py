"""Runs a call in a thread of its own while the caller waits: for what a thread cannot undo, or must not have.

Such are another network namespace, fewer capabilities, an event loop that does not run here. A call that the event
loop should not wait for takes `mapek.bpf.worker`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def apart(name: str, call: Callable[[], T]) -> T:
    """The result of `call()`, run in a thread called `name`; exceptions come through."""
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name=name)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]
