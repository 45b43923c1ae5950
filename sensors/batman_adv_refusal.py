"""What batman-adv's refusals mean; apart from the netlink family, for pyroute2 takes long to import."""

from __future__ import annotations

import errno

from mapek.errors import FeatureError, MapekError, NetlinkError, PrivilegeError

FAMILY = "batadv"


def refusal(code: int) -> MapekError:
    """What the kernel's errno says, as an error of ours."""
    if code in (errno.ENOENT, errno.ENOTSUP):
        return FeatureError("read", "batman-adv", "it is not loaded", "modprobe batman-adv")
    if code == errno.EPERM:
        do = "run as root or grant the capability"
        return PrivilegeError("read", "batman-adv", "CAP_NET_ADMIN is missing", do)
    why = errno.errorcode.get(code, str(code))
    return NetlinkError("dump", FAMILY, why, "see `batctl meshif bat0 oj`", code=code)
