"""A node's own asyncio program with the loop inside it: mesh_node.py FILE.toml [SECONDS]

The loop takes no signal, no root logger and no global registry, so the program stays the one in charge. This
one prints what happens, serves /metrics and /health, and ends after SECONDS (default: never).
"""

from __future__ import annotations

import asyncio
import sys

from mapek import ConfigError, Event, Incident, Loop, MapekError, Symptom, build, load_config
from mapek.loop import Published
from mapek.service import serve, view_of


def tell(published: Published) -> None:
    """Print the verdicts and how each incident goes; called after the action is under way."""
    if isinstance(published, Symptom):
        print(f"{published.entity}: {published.kind}{' is over' if published.cleared else ''}", flush=True)
    elif isinstance(published, Incident):
        line = f"incident {published.id} {published.state} {published.reason}".rstrip()
        if published.state == "recovered" and published.policy != "none":
            line += f", MTTR {(published.recovered_ns - published.onset_ns) / 1e6:.2f} ms"
        print(line, flush=True)
    elif isinstance(published, Event) and published.kind == "plan.failed":
        print(f"not done: {published.fields['why']}", flush=True)


async def own_work(loop: Loop) -> None:
    """Whatever this program is for; here it notes when a peer's traffic takes another path."""
    known: dict[str, object] = {}
    while True:
        for name in loop.knowledge.topology.peers:
            path = loop.knowledge.facts.get(f"active_path/{name}")
            if path != known.get(name):
                known[name] = path
                print(f"{name} is reached over {path}", flush=True)
        await asyncio.sleep(0.2)


async def main(file: str, seconds: float | None) -> None:
    """Run until `seconds` are over, or for ever."""
    config = load_config(file)
    async with build(config) as loop, serve(view_of(loop), config.service, node=config.node.name) as service:
        loop.subscribe(tell)
        for error in loop.failed_at_start.values():
            print(f"tried again from now on: {error}", flush=True)
        print(f"{config.node.name} runs, /metrics on port {service.port or 'none'}", flush=True)
        try:
            async with asyncio.timeout(seconds):
                await own_work(loop)
        except TimeoutError:
            print("stopped", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} FILE.toml [SECONDS]")
    try:
        asyncio.run(main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else None))
    except KeyboardInterrupt:
        sys.exit(130)
    except MapekError as error:
        print(error, file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
