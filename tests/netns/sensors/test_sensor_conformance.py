"""Every sensor of ours passes the suite of `mapek.testing`, on the kernel; one that has no case here fails it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import socket
import struct
import subprocess
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from mapek.bpf import features
from mapek.bpf.force import force_off
from mapek.contracts import Touchpoint
from mapek.model import Step
from mapek.sensors.interface import Interface
from mapek.sensors.mesh_filter import MeshFilter
from mapek.testing import (
    Crowd,
    VethLinks,
    check_detached,
    check_full,
    check_interface,
    check_touchpoint,
    check_unprivileged,
    check_without,
)
from tests.netns.sensors.wires import run
from tests.support import machine

_PYPROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"
SENSORS: Mapping[str, str] = tomllib.loads(_PYPROJECT.read_text())["project"]["entry-points"]["mapek.sensors"]
_CLONE_NEWNS = 0x20000
CROWDED = Path(__file__).with_name("crowded.toml")


@dataclass(frozen=True)
class Case:
    """How the suite is to run over one sensor; `roomy` says why a sensor without a crowd can have none."""

    options: Mapping[str, object] = field(default_factory=dict)
    step: Step | None = None
    links: bool = True
    keeps: bool = True
    lacks: Mapping[str, Callable[[], None]] = field(default_factory=dict)
    crowd: Crowd | None = None
    roomy: str = ""
    module: str = ""
    """A feature of tests/support/machine.py without which it must refuse to open."""
    broken: Mapping[str, str] = field(default_factory=dict)
    """Parts of the suite that it does not pass yet, and why; strict, so that the entry goes with the fault."""


def hide_pressure() -> None:
    """An empty folder in the place of /proc/pressure, in a mount namespace of this process's own."""
    assert ctypes.CDLL(None).unshare(_CLONE_NEWNS) == 0
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", "/proc/pressure"], check=True)


class Neighbourly(VethLinks):
    """With the link-layer addresses of the peers, so that what is sent to them is sent."""

    PEERS: ClassVar = {"l0": ("10.0.0.2", "fe80::3"), "l1": ("10.0.1.2",)}
    sequence = 0

    def _up(self, name: str, named: str) -> None:
        super()._up(name, named)
        for peer in self.PEERS.get(named, ()):
            run(f"ip neigh replace {peer} lladdr 02:00:00:00:00:99 dev {name} nud permanent")

    def send(self, name: str) -> None:
        super().send(name)
        self.sequence += 1
        originate(name, 1, self.sequence)


def originate(name: str, neighbours: int, sequence: int) -> None:
    """Let B.A.T.M.A.N. IV OGMs of so many neighbours arrive, each its own originator."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.bind((f"{name}.far", 0))
        for number in range(neighbours):
            mac = b"\x02\0\0\0" + number.to_bytes(2, "big")
            ogm = struct.pack("!BBBBI6s6sBBH", 0, 15, 50, 0, sequence, mac, mac, 0, 255, 0)
            with contextlib.suppress(OSError):
                out.send(b"\xff" * 6 + mac + b"\x43\x05" + ogm.ljust(46, b"\0"))


def many_links() -> None:
    """More interfaces than a sensor has rows; once."""
    if "many0:" not in Path("/proc/thread-self/net/dev").read_text():
        lines = "".join(f"link add many{k} type veth peer name ynam{k}\n" for k in range(130))
        subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)


def many_speaking_links() -> None:
    """More interfaces than net_events has room for, each with traffic of its own (IPv6 multicast)."""
    many_links()
    lines = "".join(f"link set many{k} up\nlink set ynam{k} up\n" for k in range(130))
    subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)


def many_neighbours() -> None:
    """More than batadv knows on an interface."""
    originate("l0", 1200, 7)


def nobody_more() -> None:
    """The file of identities is crowded enough."""


CASES: Mapping[str, Case] = {
    "xdp_counter": Case({"interfaces": ["l0", "l1"]}, roomy="its maps are arrays with a row for each class"),
    "link_watch": Case(
        {"pin": "no", "wait": True},
        roomy="its maps are sized by the paths of the topology",
    ),
    "netlink": Case(step=Step("netlink", "use_path", {"peer": "b", "path": "b/l0"}), roomy="it has no maps"),
    "psi": Case(
        links=False,
        lacks={"CONFIG_PSI": hide_pressure},
        roomy="it reads the cgroups of its options only",
    ),
    "tc_classifier": Case(
        {"classes": {"dns": "protocol=udp port=9"}}, roomy="its classes are bounded by the configuration"
    ),
    "mesh_filter": Case(
        crowd=Crowd(
            nobody_more,
            "addresses_refused",
            lambda: MeshFilter({"identities": str(CROWDED), "max_identities": 1, "max_addresses": 1}),
        ),
    ),
    "net_events": Case({"packets": True}, links=False, crowd=Crowd(many_speaking_links, "map_full")),
    "batadv": Case(crowd=Crowd(many_neighbours, "neighbours_full")),
    "batman_adv": Case(
        links=False,
        lacks={} if machine.has("batman_adv") else {"its module": lambda: None},
        roomy="the tables are the module's; what has no row needs a mesh that is larger than `rows`",
        module="batman_adv",
    ),
    "syscall_latency": Case(
        links=False,
        roomy="16384 slots, and which threads share two is where their stacks lie: no crowd is sure to fill them",
    ),
    "interface": Case(
        {"ethtool": True},
        keeps=False,
        crowd=Crowd(many_links, "rows_left_out", lambda: Interface({"interfaces": ["*"]})),
    ),
}


@pytest.fixture
def links(space) -> VethLinks:
    """l0 and l1, with the addresses of `some_topology`."""
    made = Neighbourly({"l0": ["10.0.0.1/24"], "l1": ["10.0.1.1/24"]})
    for name in ("l0", "l1"):
        made.add(name)
    for address in ("10.1.0.1/32", "fd00::1/128"):
        run(f"ip addr add {address} dev lo")
    return made


@pytest.fixture(params=SENSORS)
def name(request) -> str:
    assert request.param in CASES, f"{request.param} is a sensor without a conformance case: add one to CASES"
    return request.param


@pytest.fixture
def case(name) -> Case:
    return CASES[name]


@pytest.fixture
def make(name, case) -> Callable[[], Touchpoint]:
    module, _, kind = SENSORS[name].partition(":")
    return lambda: getattr(importlib.import_module(module), kind)(case.options)


def test_every_sensor_has_a_case_and_every_case_a_sensor():
    assert set(SENSORS) <= set(CASES)
    for name, case in CASES.items():
        assert bool(case.crowd) != bool(case.roomy), f"{name} must say what fills it, or why nothing does"


def known(request: pytest.FixtureRequest, case: Case, part: str) -> None:
    """What is written down as broken must fail."""
    if part in case.broken:
        request.applymarker(pytest.mark.xfail(reason=case.broken[part], strict=True, raises=AssertionError))


@pytest.mark.kernel
async def test_life(make, case, links):
    await check_touchpoint(make, step=case.step, opens=not case.module or machine.has(case.module))


async def test_interface_gone_and_back(make, case, links, request):
    known(request, case, "interface")
    if case.links:
        await check_interface(make, links, "l0", keeps=case.keeps)


async def test_taken_off_behind_its_back(make, case, links):
    if "detached" in make().counted:
        await check_detached(make, force_off, links, within_s=machine.patience(1.0))


def test_every_sensor_with_programs_on_interfaces_is_looked_after():
    kinds = (target.partition(":") for target in SENSORS.values())
    told = {
        name
        for name, (module, _, kind) in zip(SENSORS, kinds, strict=True)
        if "detached" in getattr(importlib.import_module(module), kind).counted
    }
    assert told == {"xdp_counter", "link_watch", "tc_classifier", "mesh_filter", "batadv"}


def test_no_privilege(make, links):
    check_unprivileged(make)


@pytest.mark.kernel
def test_no_feature(make, case, links, request):
    known(request, case, "feature")
    check_without(make, deny=features.deny, lacks=case.lacks)


async def test_full(make, case, links):
    if case.crowd is not None:
        await check_full(case.crowd.make or make, case.crowd)
