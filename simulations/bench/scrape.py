"""Scrape /metrics once a second, as Prometheus does: `scrape PORT SECONDS`, at the end one JSON line."""

from __future__ import annotations

import asyncio
import json
import sys
import time


async def scrape(port: int) -> int:
    """Bytes of one answer; raises OSError when nobody or no metrics answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = await reader.read(-1)
    finally:
        writer.close()
        await writer.wait_closed()
    if not answer.startswith(b"HTTP/1.1 200") and not answer.startswith(b"HTTP/1.0 200"):
        raise OSError(f"no metrics: {answer[:40]!r}")
    return len(answer)


async def main(port: int, seconds: float) -> None:
    """Scrape at whole seconds from the start."""
    size, took, start = 0, list[float](), time.monotonic()
    for turn in range(max(1, int(seconds))):
        await asyncio.sleep(max(0.0, start + turn - time.monotonic()))
        begun = time.monotonic()
        size = await scrape(port)
        took.append((time.monotonic() - begun) * 1e3)
    found = {"scrapes": len(took), "bytes": size, "took_ms": sorted(took)[len(took) // 2]}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
