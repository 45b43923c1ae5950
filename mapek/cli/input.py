"""Lines from a descriptor without a thread that would keep the process from ending.

The descriptor stays blocking, because a terminal's is shared with stdout and with the shell: it is read only
when the kernel says that there is something. What cannot be waited for (a file, /dev/null) is read at once.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

_LONGEST: Final = 4096
_AT_ONCE: Final = 1 << 16


class LinesIn:
    """Puts each line into `lines`, and None when there are no more. Belongs to the running event loop."""

    def __init__(self, fd: int) -> None:
        self.lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._fd, self._rest = fd, b""
        self._loop = asyncio.get_running_loop()
        try:
            self._loop.add_reader(fd, self._read)
            self._watched = True
        except OSError:
            # EPERM: it cannot be waited for. EBADF: it was closed, which reading finds out.
            self._watched = False
            while self._read():
                pass

    def close(self) -> None:
        """Read no more; closing twice is fine."""
        if self._watched:
            self._watched = False
            self._loop.remove_reader(self._fd)

    def _read(self) -> bool:
        try:
            data = os.read(self._fd, _AT_ONCE)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        *whole, self._rest = (self._rest + data).split(b"\n")
        if not data or len(self._rest) > _LONGEST:
            # No line of ours is that long: whoever sends that is not talking to us.
            whole, self._rest = [*whole, *filter(None, [self._rest[:_LONGEST]])], b""
            data = b""
        for line in whole:
            self.lines.put_nowait(line.decode(errors="replace"))
        if not data:
            self.close()
            self.lines.put_nowait(None)
        return bool(data)
