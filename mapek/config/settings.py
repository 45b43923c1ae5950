"""The configuration as data: frozen, checked, with every default filled in. No file is read here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mapek.config.options import Table
from mapek.knowledge.topology import Topology

Profile = Literal["default", "fast"]
Switch = Literal["auto"] | bool
"""True: must be, or it is an error. False: never. "auto": where the machine allows it, or said so."""

DEFAULT_SENSORS = ("link_watch", "netlink", "xdp_counter")
DEFAULT_ANALYZERS = ("path_health",)
DEFAULT_POLICIES = ("link_failover",)


PERSISTENT = (
    "xdp_counter", "mesh_filter", "batadv", "tc_classifier", "syscall_latency", "net_events",
)  # fmt: skip
"""Plugins that have the option `persist`."""

PROFILES: Mapping[Profile, Mapping[str, Mapping[str, object]]] = {
    "default": {"link_watch": {"interval_ms": 10.0}, "path_health": {"grace_ms": 1.0}},
    "fast": {"link_watch": {"interval_ms": 1.0}, "path_health": {"grace_ms": 0.3}},
}
"""A profile is a set of plugin options, by plugin; what a plugin's own table says comes first."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """This node.

    Args:
        name: of this node, among its peers.
        state_dir: where the journal lives; None keeps it in memory, so that nothing survives a restart.
    """

    name: str
    state_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """How the loop runs.

    Args:
        profile: "default" probes every 10 ms, "fast" every 1 ms.
        realtime: SCHED_FIFO and locked memory for the process that runs the loop.
        pin: pin the reflector in bpffs, so that it outlives the agent.
        wait: start although a sensor cannot open yet, and keep trying.
        persist: let what the BPF sensors count, and how they are attached, outlive the agent.
    """

    profile: Profile = "default"
    realtime: Switch = "auto"
    pin: Switch = "auto"
    wait: bool = False
    persist: bool = False


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """Where `/metrics` and `/health` are served.

    Args:
        host: an IPv4 or IPv6 address; empty: not served.
        port: 0 lets the kernel choose.
    """

    host: str = "127.0.0.1"
    port: int = 9464


@dataclass(frozen=True, slots=True)
class PluginConfig:
    """One plugin to run.

    Args:
        name: of this instance, as the file's table is called.
        plugin: the name it is found by; the same unless the table says `plugin = "..."`.
        options: its own keys.
    """

    name: str
    plugin: str
    options: Table


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration.

    Args:
        topology: this node's name, addresses and peers.
        sensors, analyzers, policies, actions: by instance name, those that are enabled, in order.
        plugin_directory: where further plugins lie, or None.
        record: the file to record all inputs and decisions in, or None.
        rules: the file of rules by which BPF objects are loaded, or None for the default ones.
        file: where it was read from, for messages; None when made in code.
    """

    node: NodeConfig
    topology: Topology
    loop: LoopConfig = LoopConfig()
    service: ServiceConfig = ServiceConfig()
    sensors: Mapping[str, PluginConfig] = field(default_factory=dict)
    analyzers: Mapping[str, PluginConfig] = field(default_factory=dict)
    policies: Mapping[str, PluginConfig] = field(default_factory=dict)
    actions: Mapping[str, PluginConfig] = field(default_factory=dict)
    plugin_directory: Path | None = None
    record: Path | None = None
    rules: Path | None = None
    file: Path | None = None
