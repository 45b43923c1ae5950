"""Pressure files: the kernel's text in, values out; anything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapek.errors import ConfigError
from mapek.sensors.psi import Psi
from mapek.sensors.psi_files import Pressure, parse

SOME = b"some avg10=7.74 avg60=15.49 avg300=100.00 total=1572795937\n"
FULL = b"full avg10=0.00 avg60=0.03 avg300=0.00 total=18446744073709551615\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (SOME, {"some": Pressure((0.0774, 0.1549, 1.0), 1_572_795_937)}),
        (SOME + FULL, {"some": Pressure((0.0774, 0.1549, 1.0), 1_572_795_937),
                       "full": Pressure((0.0, 0.0003, 0.0), 2**64 - 1)}),
    ],
)  # fmt: skip
def test_values(text, found):
    parsed = parse(text)
    assert parsed.keys() == found.keys()
    for share, one in found.items():
        assert parsed[share].total_us == one.total_us
        assert parsed[share].averages == pytest.approx(one.averages)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        SOME[:-1],
        SOME + SOME,
        SOME + b"\n",
        SOME + b"most avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        SOME.replace(b"7.74", b"-7.74"),
        SOME.replace(b"7.74", b"nan"),
        SOME.replace(b"7.74", b"100.01"),
        SOME.replace(b"7.74", b"7.7"),
        SOME.replace(b"1572795937", b"18446744073709551616"),
        SOME.replace(b"1572795937", b"1e9"),
        SOME.replace(b"1572795937", "١".encode()),
        SOME.replace(b" avg60=15.49", b""),
        b"x" * 4096,
        b"\0" * 64,
    ],
)
def test_what_no_kernel_writes(text):
    with pytest.raises(ValueError, match=r"pressure|line"):
        parse(text)


@given(st.binary(max_size=200))
def test_noise_is_refused(text):
    with pytest.raises(ValueError, match=r"pressure|line"):
        parse(text)


@given(st.integers(0, 10_000), st.integers(0, 2**64 - 1))
def test_every_value_that_a_kernel_can_write(hundredths, total):
    average = f"{hundredths // 100}.{hundredths % 100:02}"
    found = parse(f"full avg10={average} avg60=0.00 avg300=0.00 total={total}\n".encode())["full"]
    assert found == Pressure((float(average) / 100, 0.0, 0.0), total)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"triggers": ["cpu"]}, "is no trigger"),
        ({"triggers": ["cpu some 1e5 1000000"]}, "is no trigger"),
        ({"triggers": ["cpu some -1 1000000"]}, "is no trigger"),
        ({"triggers": ["cpu some 100000000000 1000000"]}, "is no trigger"),
        ({"triggers": ["disk some 1 1000000"]}, "knows no some of disk"),
        ({"triggers": ["irq some 1 1000000"]}, "knows no some of irq"),
        ({"triggers": ["cpu some 1 499999"]}, "out of the kernel's range"),
        ({"triggers": ["cpu some 1 10000001"]}, "out of the kernel's range"),
        ({"triggers": ["cpu some 0 1000000"]}, "out of the kernel's range"),
        ({"triggers": ["cpu some 1000001 1000000"]}, "out of the kernel's range"),
        ({"triggers": ["cpu some 1 1000000 a.slice"]}, "not in `cgroups`"),
        ({"triggers": [f"cpu some {k} 1000000" for k in range(1, 34)]}, "33 entries"),
        ({"cgroups": ["/a"]}, "below the cgroup mount"),
        ({"cgroups": ["a/../../b"]}, "below the cgroup mount"),
        ({"cgroups": ["a//b"]}, "below the cgroup mount"),
        ({"cgroups": [""]}, "below the cgroup mount"),
        ({"cgroups": ["a\0b"]}, "below the cgroup mount"),
        ({"cgroups": [f"g{k}" for k in range(65)]}, "65 entries"),
    ],
)
def test_wrong_options(options, why):
    with pytest.raises(ConfigError, match=why):
        Psi(options)


def test_good_options():
    Psi({"cgroups": ["a.slice/b c"], "triggers": ["cpu some 1 500000", "io full 9 9000000 a.slice/b c"]})
