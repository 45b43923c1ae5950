"""What may be configured, and what is said of the rest."""

from __future__ import annotations

from typing import Any

import pytest

from mapek.errors import ConfigError
from mapek.sensors.syscall_latency import SYSCALLS, SyscallLatency, schema_of
from mapek.sensors.syscall_latency_histogram import BOUNDS_S


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"syscalls": ["reed"]}, 'did you mean "read"'),
        ({"syscalls": []}, "name 1 to 64"),
        ({"syscalls": ["read", 5]}, r"syscalls\[1\]: is a whole number"),
        ({"syscalls": ["exit"]}, "does not return"),
        ({"processes": ["sshd"]}, 'write "self" or a process id'),
        ({"processes": ["0"]}, "is no process id"),
        ({"processes": ["-1"]}, "is no process id"),
        ({"processes": ["99999999999999999999"]}, "is no process id"),
        ({"processes": ["9" * 5000]}, "is no process id"),
        ({"processes": [str(1 << 22)]}, "is no process id"),
        ({"processes": ["٣"]}, "is no process id"),
        ({"processes": [str(n) for n in range(1, 70)]}, "at most 64"),
        ({"cgroup": "/system.slice"}, "not below the cgroup mount"),
        ({"cgroup": "../up"}, "not below the cgroup mount"),
        ({"cgroup": "a\0b"}, "not below the cgroup mount"),
        ({"cgroup": "a", "processes": ["self"]}, "one filter of two"),
        ({"all": True, "cgroup": "a"}, "one filter of two"),
        ({"all": True, "processes": ["self"]}, "one filter of two"),
        ({"all": "yes"}, "not true or false"),
        ({"variant": "ftrace"}, "use one of them"),
    ],
)
def test_what_cannot_be_meant(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        SyscallLatency(options)
    assert "\n" not in str(caught.value)


def test_the_schema_has_a_column_for_each_call() -> None:
    schema = SyscallLatency({"syscalls": ["read", "openat", "read"]}).schema()
    assert schema is not None
    assert [dict(metric.labels)["syscall"] for metric in schema.histograms] == ["read", "openat"]
    assert {metric.bounds for metric in schema.histograms} == {BOUNDS_S}
    assert len(schema.counters) == 6
    assert len(schema.gauges) == 4
    assert SyscallLatency({}).schema() == schema_of(SYSCALLS)


def test_the_variant_that_doctor_asks_for() -> None:
    assert SyscallLatency({}).wanted_variant == "auto"
    assert SyscallLatency({"variant": "kprobe"}).wanted_variant == "kprobe"


def test_it_is_not_up_before_it_is_open() -> None:
    sensor = SyscallLatency({})
    assert not sensor.status().up
    assert sensor.read() is None
