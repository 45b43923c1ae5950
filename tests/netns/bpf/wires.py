"""A veth pair and what tests send over it."""

from __future__ import annotations

import socket
import struct
import subprocess
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mapek.bpf import LoadedObject, PerCpuArrayMap, read_xdp
from mapek.bpf.xdp_netlink import XdpState


@dataclass
class Wire:
    """A veth pair: programs go to `near`, frames are sent from `far`."""

    near: int
    far: int

    def send(self, frame: bytes, times: int = 1) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
            out.bind(("far", 0))
            for _ in range(times):
                out.send(frame)


def run(command: str) -> str:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=True)
    return done.stdout


def counters(loaded: LoadedObject) -> npt.NDArray[np.uint64]:
    """xdp_counter's table: (packets, bytes) by key, summed over CPUs."""
    summed: npt.NDArray[np.uint64] = loaded.map("counters", PerCpuArrayMap).summed()[1]
    return summed


def running(ifindex: int) -> XdpState:
    """What the kernel says runs on an interface; something must."""
    state = read_xdp(ifindex)
    assert state is not None
    return state


def udp(payload: int = 22) -> bytes:
    """A broadcast UDP frame over IPv4, 60 bytes or more."""
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 28 + payload, 0, 0, 64, 17, 0, b"\x0a\0\0\x01", b"\x0a\0\0\x02"
    )
    return b"\xff" * 6 + b"\x02" * 6 + b"\x08\x00" + ip + bytes(8 + payload)
