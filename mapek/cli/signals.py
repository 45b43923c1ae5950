"""A command that runs until a signal: the first one cancels its work in order, a second ends the process."""

from __future__ import annotations

from collections.abc import Coroutine


async def until_signal(work: Coroutine[None, None, int]) -> int:
    """Run `work` and return its exit code; 130 after Ctrl-C, 0 after SIGTERM or SIGHUP."""
    import asyncio
    import signal

    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    caught: list[int] = []
    watched = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def stop(number: int) -> None:
        # what a second signal leaves of a lab, `mapek lab clean` finds
        caught.append(number)
        for one in watched:
            loop.remove_signal_handler(one)
        task.cancel()

    for number in watched:
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not caught:
            raise
        return 130 if caught[0] == signal.SIGINT else 0
