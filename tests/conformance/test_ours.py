"""Every plugin of ours passes the suites, over what it is for and over what it never heard of."""

import subprocess
import sys

import pytest

from mapek.analyzers.path_health import PathHealth
from mapek.analyzers.robust_z import RobustZ
from mapek.analyzers.threshold import Threshold
from mapek.model import Event, Frame, Step, Symptom
from mapek.policies.link_failover import LinkFailover
from mapek.simulations.radio import Loss
from mapek.simulations.virtual_mesh import VirtualMesh, VirtualRoutes, two_links
from mapek.testing import check_analyzer, check_policy, check_touchpoint


async def lived():
    """What a node saw and found while its paths died, lost and came back."""
    seen = []
    topology = two_links()
    mesh = VirtualMesh(topology, [PathHealth({})], [LinkFailover({})], tap=lambda _, one: seen.append(one))
    async with mesh as node:
        await node.run(3.0)
        node.fail("b/l0")
        await node.run(2.0)
        node.heal("b/l0")
        node.lose("b/l1", Loss(0.2))
        await node.run(10.0)
        node.fail("b/l0")
        node.fail("b/l1")
        await node.run(5.0)
        node.heal("b/l1")
        await node.run(5.0)
    return topology, [one for one in seen if isinstance(one, (Frame, Event))], seen


ANALYZERS = {
    "path_health": lambda: PathHealth({}),
    "threshold": lambda: Threshold({"sensor": "link_watch", "metric": "answer_age", "above": 0.1}),
    "threshold of a stranger": lambda: Threshold({"sensor": "conformance", "metric": "received", "above": 1}),
    "robust_z": lambda: RobustZ(
        {"sensor": "conformance", "window": 20, "warm_up": 5, "calibration": 20, "false_alarms_per_day": 1e4}
    ),
}


@pytest.mark.parametrize("which", ANALYZERS)
async def test_analyzers(which):
    topology, inputs, _ = await lived()
    check_analyzer(ANALYZERS[which], inputs, topology, finds=which in ("path_health", "threshold"))


async def test_link_failover():
    topology, inputs, seen = await lived()
    symptoms = [one for one in seen if isinstance(one, Symptom)]
    assert {"path_dead", "peer_gone"} <= {one.kind for one in symptoms}
    check_policy(lambda: LinkFailover({}), symptoms, inputs, topology, plans=True)


async def test_virtual_routes():
    await check_touchpoint(VirtualRoutes, step=Step("netlink", "use_path", {"peer": "b", "path": "b/l0"}))


IN_A_NAMESPACE = """
import asyncio, sys
from mapek.model import Step
from mapek.testing import check_touchpoint, some_topology
from pyroute2 import IPRoute

with IPRoute() as route:
    route.link("set", ifname="lo", state="up")
    for k in range(2):
        route.link("add", ifname=f"l{k}", kind="veth", peer={"ifname": f"r{k}"})
        for name in (f"l{k}", f"r{k}"):
            route.link("set", ifname=name, state="up")
        index = route.link_lookup(ifname=f"l{k}")[0]
        route.addr("add", index=index, address=f"10.0.{k}.1", prefixlen=24)
    route.addr("add", index=1, address="10.1.0.1", prefixlen=32)
    route.addr("add", index=1, address="fd00::1", prefixlen=128)

def make():
    if sys.argv[1] == "netlink":
        from mapek.sensors.netlink import Netlink
        return Netlink({})
    if sys.argv[1] == "link_watch":
        from mapek.sensors.link_watch import LinkWatch
        return LinkWatch({"pin": "no", "wait": True})
    from mapek.sensors.xdp_counter import XdpCounter
    return XdpCounter({"interfaces": ["l0", "l1"]})

step = Step("netlink", "use_path", {"peer": "b", "path": "b/l0"}) if sys.argv[1] == "netlink" else None
asyncio.run(check_touchpoint(make, some_topology(), step=step))
"""


@pytest.mark.netns
@pytest.mark.parametrize("which", ["netlink", "link_watch", "xdp_counter"])
def test_touchpoints_on_the_kernel(which):
    command = [
        "unshare",
        "--net",
        sys.executable,
        "-W",
        "error::ResourceWarning",
        "-c",
        IN_A_NAMESPACE,
        which,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr[-3000:]
