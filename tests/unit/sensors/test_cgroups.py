"""Which mount is cgroup v2's, and which paths lie below it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapek.sensors.cgroups import cgroup_mount, is_below


@pytest.mark.parametrize(
    ("lines", "mount"),
    [
        ("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "/sys/fs/cgroup"),
        ("30 23 0:26 / /a\\040b rw shared:9 master:1 - cgroup2 none rw", "/a b"),
        ("31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
         "30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw", "/sys/fs/cgroup/unified"),
        ("31 23 0:27 / /cgroup2 rw - tmpfs cgroup2 rw", ""),
        ("", ""),
        ("- cgroup2", ""),
        (" - cgroup2", ""),
    ],
)  # fmt: skip
def test_where_cgroups_are(lines, mount):
    assert cgroup_mount(lines) == mount


@given(st.text())
def test_any_text_is_a_mountinfo(text):
    assert isinstance(cgroup_mount(text), str)


@pytest.mark.parametrize(
    ("path", "below"),
    [
        ("a", True),
        ("system.slice/x.service", True),
        ("a b/c", True),
        ("..a/b..", True),
        ("", False),
        ("/a", False),
        ("a/", False),
        ("a//b", False),
        ("a/../../b", False),
        ("./a", False),
        ("a\0b", False),
    ],
)
def test_what_stays_below_the_mount(path, below):
    assert is_below(path) == below
