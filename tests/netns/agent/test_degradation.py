"""What is taken away turns off or swaps one sensor, never the agent; doctor, /health and /metrics say it in the same
words.

Each row runs `doctor` and then the agent with every sensor, in namespaces of mounts and of the network of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import machine

PORT = 9464
WIRE = """
ip link set lo up
ip link add near type veth peer name far
ip link set near up
ip link set far up
ip address add 10.77.0.1/24 dev near
ip address add 10.255.77.1/32 dev lo
"""
CONFIG = """
[node]
name = "a"
addresses = ["10.255.77.1"]
[service]
listen = "127.0.0.1:{port}"
[[peer]]
name = "b"
addresses = ["10.255.77.2"]
key_file = "b.key"
[[peer.path]]
interface = "near"
address = "10.77.0.2"
[sensors.xdp_counter]
interfaces = ["near", "absent"]
[sensors.mesh_filter]
[sensors.batadv]
[sensors.batman_adv]
[sensors.tc_classifier]
[sensors.syscall_latency]
[sensors.net_events]
[sensors.psi]
[sensors.interface]
"""
BPF = {"link_watch", "xdp_counter", "mesh_filter", "batadv", "tc_classifier", "syscall_latency", "net_events"}
ROUTES = {"netlink", "batman_adv"}
TRACING = {"syscall_latency", "net_events"}
NO_BTF = "mount -t tmpfs none /sys/kernel/btf"
NO_TRACEFS = """
for at in /sys/kernel/tracing /sys/kernel/debug/tracing /sys/kernel/debug; do umount -l $at 2>&- || true; done
"""
NO_LIBBPF = """
for at in $(ldconfig -p | sed -n 's/.*libbpf.so.1.*=> //p'); do mount --bind /dev/null $(readlink -f $at); done
"""


@dataclass(frozen=True)
class Row:
    """What is taken away, by shell commands as root or by capabilities dropped; which sensors stop for it, and which
    run in a lesser variant."""

    name: str
    setup: str = ""
    drop: tuple[str, ...] = ()
    stops: frozenset[str] = frozenset()
    swaps: frozenset[str] = frozenset()


ROWS = (
    Row("nothing"),
    Row("CAP_BPF", drop=("bpf", "sys_admin"), stops=frozenset(BPF)),
    Row("CAP_PERFMON", drop=("perfmon", "sys_admin"), stops=frozenset(BPF)),
    Row("CAP_NET_ADMIN", drop=("net_admin",), stops=frozenset(BPF - TRACING | ROUTES)),
    Row("CAP_SYS_ADMIN", drop=("sys_admin",)),
    Row("CAP_NET_RAW", drop=("net_raw",)),
    Row("CAP_DAC_READ_SEARCH", drop=("dac_read_search", "dac_override")),
    Row("CAP_SYS_NICE and CAP_IPC_LOCK", drop=("sys_nice", "ipc_lock", "sys_resource")),
    Row("bpffs", "mount -t tmpfs none /sys/fs/bpf", swaps=frozenset({"link_watch"})),
    Row("tracefs", NO_TRACEFS),
    Row("BTF", NO_BTF, swaps=frozenset({"syscall_latency", "net_events"})),
    Row("BTF and tracefs", NO_BTF + NO_TRACEFS, stops=frozenset({"net_events"}), swaps=frozenset({"syscall_latency"})),
    Row("libbpf", NO_LIBBPF, stops=frozenset(BPF)),
    Row("PSI", "mount -t tmpfs none /proc/pressure", stops=frozenset({"psi"})),
)  # fmt: skip


def deprived(row: Row, folder: Path) -> dict[str, Any]:
    """What doctor and an agent say there."""
    (folder / "b.key").write_text("ab" * 32)
    (folder / "b.key").chmod(0o600)
    (folder / "node.toml").write_text(CONFIG.format(port=PORT))
    here = Path(__file__).with_name("deprived.py")
    drop = f"setpriv --bounding-set {','.join(f'-{one}' for one in row.drop)} --" if row.drop else ""
    script = (
        "set -e\nmount -t bpf bpf /sys/fs/bpf 2>&- || true\n"
        f"mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing\n{WIRE}{row.setup}\n"
        f"exec {drop} {sys.executable} {here} {folder}/node.toml {PORT}"
    )
    done = subprocess.run(
        ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", script],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(180)
@pytest.mark.needs("psi")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name.replace(" ", "_"))
def test_one_sensor_and_not_the_agent(row: Row, tmp_path: Path):
    found = deprived(row, tmp_path)
    assert "Traceback" not in found["errors"]
    assert found["first"].get("type") == "ready", found["errors"]
    doctor, health = found["doctor"]["sensors"], found["health"]["sensors"]
    shortfalls: dict[str, list[str]] = {name: [] for name in health}
    up: dict[str, bool] = {}
    for family in text_string_to_metric_families(found["metrics"]):
        for sample in family.samples:
            if sample.name == "mapek_sensor_shortfall":
                shortfalls[sample.labels["sensor"]].append(sample.labels["why"])
            elif sample.name == "mapek_sensor_up":
                up[sample.labels["sensor"]] = bool(sample.value)
    works = {name: one["up"] for name, one in health.items()}
    assert works == up == {name: one["ok"] for name, one in doctor.items()}
    stops = row.stops if machine.has("batman_adv") else row.stops | {"batman_adv"}
    assert {name for name, one in works.items() if not one} == stops
    assert found["exit"] == (1 if stops else 0)
    words = {name: one["missing"] or one["degraded"] for name, one in doctor.items()}
    assert words == {name: one["degraded"] for name, one in health.items()} == shortfalls
    assert {name for name, one in words.items() if one} >= stops | row.swaps
    assert all(one["do"] for one in doctor.values() if one["missing"])
