"""Run inside a deprived namespace: what doctor says, and what a running agent says, as one JSON object on stdout.

`python deprived.py CONFIG PORT`: doctor first, then the agent, whose /health and /metrics are fetched once it is ready.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request

MAPEK = (sys.executable, "-m", "mapek")


def main() -> None:
    config, port = sys.argv[1:]
    doctor = subprocess.run(
        [*MAPEK, "doctor", "--json", "-c", config], capture_output=True, text=True, check=False
    )
    agent = subprocess.Popen(
        [*MAPEK, "run", "--json", "-c", config], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert agent.stdout is not None
    first = json.loads(agent.stdout.readline() or "{}")
    health, metrics = {}, ""
    if first.get("type") == "ready":
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30) as answer:
            health = json.load(answer)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            metrics = answer.read().decode()
        agent.send_signal(signal.SIGTERM)
    _, errors = agent.communicate(timeout=30)
    print(
        json.dumps(
            {
                "doctor": json.loads(doctor.stdout),
                "exit": doctor.returncode,
                "first": first,
                "health": health,
                "metrics": metrics,
                "errors": doctor.stderr + errors,
            }
        )
    )


if __name__ == "__main__":
    main()
