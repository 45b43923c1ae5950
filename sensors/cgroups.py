"""Where the cgroups of version 2 are, and which texts of a configuration name one of them."""

from __future__ import annotations

import re

from mapek.errors import FeatureError


def cgroup_mount(mountinfo: str) -> str:
    """Where `mountinfo` (/proc/self/mountinfo) has cgroup v2; "" for nowhere."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if after.split(" ")[0] == "cgroup2" and len(fields) > 4:
            return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
    return ""


def find_cgroups() -> str:
    """`cgroup_mount` of this process."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return cgroup_mount(file.read())


def require_cgroups() -> str:
    """`find_cgroups`. Raises FeatureError for nowhere."""
    if mount := find_cgroups():
        return mount
    raise FeatureError(
        "find", "cgroup v2", "it is not mounted", "mount -t cgroup2 none /sys/fs/cgroup/unified"
    )


def is_below(path: str) -> bool:
    """Whether `path`, put behind the mount and a slash, stays below it."""
    return "\0" not in path and all(part not in ("", ".", "..") for part in path.split("/"))
