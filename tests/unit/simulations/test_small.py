"""Faults, the wire's layout, BIRD's configuration, usage, and the search for remains."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mapek.bpf import ObjectSpec, object_path
from mapek.errors import ConfigError
from mapek.simulations.bird import Bird, BirdTimers
from mapek.simulations.clean import clean, remains
from mapek.simulations.faults import DROP_AB, DROP_BOTH, FLAP, gray
from mapek.simulations.lab import Lab, Node
from mapek.simulations.netns import Namespace
from mapek.simulations.process import MARK, mark, start_time
from mapek.simulations.topology import pair
from mapek.simulations.usage import descendants, usage
from mapek.simulations.wire_program import COUNT_TYPE, END_TYPE


def test_layout_matches_the_program():
    maps = ObjectSpec.read(object_path("lab_wire")).maps
    assert (maps["ends"].value_size, maps["counts"].value_size) == (END_TYPE.itemsize, COUNT_TYPE.itemsize)
    assert {found.key_size for found in maps.values()} == {4}


def test_faults():
    assert [fault.gray for fault in (DROP_BOTH, DROP_AB, FLAP, gray(30), gray(0.1, "ba"))] == [
        False, False, True, True, True,
    ]  # fmt: skip
    assert gray(0.1, "ba").name == "loss_0.1_ba"
    assert gray(30).loss == pytest.approx(0.3)


@pytest.mark.parametrize("percent", [0, 100, -1])
def test_gray_is_not_black_or_white(percent):
    with pytest.raises(ConfigError, match="more than 0"):
        gray(percent)


def test_bird_configuration():
    lab = Lab(pair(2))
    a = Node(lab.topology.nodes[0], Namespace("a"))
    text = Bird(BirdTimers(1, 3)).configuration(lab, a)
    assert "min rx interval 1 ms; min tx interval 1 ms; multiplier 3;" in text
    assert "route 10.255.0.2/32 via 10.254.0.2 bfd;" in text
    assert "route fd6d:6170::2/128 via fe80::1:2%l1 bfd;" in text
    assert text.index("preference 220") < text.index("preference 219")
    assert "interval" not in Bird().configuration(lab, a)
    assert Bird().name == "BIRD BFD 100 ms x5 (default)"


def test_without_root():
    code = (
        "import asyncio, os\nfrom mapek.simulations.lab import Lab\n"
        "from mapek.simulations.topology import pair\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "asyncio.run(Lab(pair()).__aenter__())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "PrivilegeError: open lab: namespaces need CAP_SYS_ADMIN" in done.stderr


def test_usage_counts_the_tree():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        while len(tree := descendants(parent.pid)) < 2:
            assert parent.poll() is None
        whole, alone = usage(parent.pid), usage(tree[1])
        assert whole.pss_mb > 0
        assert whole.rss_mb > alone.rss_mb * 1.2
    finally:
        parent.communicate(b"\n")
    assert usage(parent.pid).rss_mb == 0


def test_a_living_owner_has_no_remains():
    environment = os.environ | {MARK: mark()}
    code = "import mapek.simulations.clean as c; print('ready', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert child.pid not in {remain.pid for remain in remains()}
        child.communicate(b"\n")


@pytest.mark.parametrize("owner", ["1:1", "nonsense", "4194305:7"])
def test_a_dead_owners_processes_are_ended(owner):
    environment = os.environ | {MARK: owner}
    code = "import mapek.simulations.clean as c; print('ready', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert child.pid in {remain.pid for remain in remains()}
        assert child.pid in {remain.pid for remain in clean()}
        assert child.wait(5) < 0


def test_start_time_of_a_stranger_name():
    assert start_time(os.getpid()) > 0
    with pytest.raises(OSError, match="No such file"):
        start_time(4194305)
