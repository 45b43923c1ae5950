"""Notices a plugin that reads a clock or draws a random number, however it imported the function."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_CLOCKS: Final = {
    name: getattr(time, name)
    for name in (
        "time time_ns monotonic monotonic_ns perf_counter perf_counter_ns process_time process_time_ns "
        "thread_time thread_time_ns clock_gettime clock_gettime_ns sleep localtime gmtime"
    ).split()
}
_MODULES: Final = ("random", "_random", "numpy.random", "secrets")


@contextmanager
def pure(what: str) -> Iterator[None]:
    """Raise AssertionError on leaving if anything called meanwhile read a clock or drew a random number."""
    seen: list[str] = []
    forbidden = set(map(id, _CLOCKS.values()))

    def watch(frame: FrameType, event: str, called: object) -> None:
        if event != "c_call":
            return
        owner = getattr(called, "__self__", None)
        module = str(getattr(called, "__module__", None) or type(owner).__module__)
        name = str(getattr(called, "__name__", called))
        clock = id(called) in forbidden or (name in ("now", "utcnow", "today") and "datetime" in repr(owner))
        chance = name == "urandom" or any(module == one or module.startswith(f"{one}.") for one in _MODULES)
        if clock or chance:
            where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            seen.append(f"{name} at {where}")

    before, collecting = sys.getprofile(), gc.isenabled()
    # Callbacks of the collector belong to whoever set them (hypothesis times them), not to the plugin.
    gc.disable()
    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(before)
        if collecting:
            gc.enable()
    assert not seen, f"{what} must see no clock and no chance but its inputs, and called {seen[0]}"
