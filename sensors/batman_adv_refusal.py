"""What batman-adv's refusals mean; apart from the netlink family, for pyroute2 takes long to import."""

from __future__ import annotations

import errno
import struct
from typing import Final

from mapek.bpf import rtnl
from mapek.bpf.syscall import missing_capabilities
from mapek.errors import FeatureError, MapekError, NetlinkError, PrivilegeError

_NETLINK_GENERIC: Final = 16
_GENL_ID_CTRL: Final = 16
_CTRL_GETFAMILY: Final = 3
_CTRL_ATTR_FAMILY_NAME: Final = 2
FAMILY: Final = "batadv"


def refusal(code: int) -> MapekError:
    """What the kernel's errno says, as an error of ours."""
    if code in (errno.ENOENT, errno.ENOTSUP):
        return FeatureError("read", "batman-adv", "it is not loaded", "modprobe batman-adv")
    if code == errno.EPERM:
        do = "run as root or grant the capability"
        return PrivilegeError("read", "batman-adv", "CAP_NET_ADMIN is missing", do)
    why = errno.errorcode.get(code, str(code))
    return NetlinkError("dump", FAMILY, why, "see `batctl meshif bat0 oj`", code=code)


def absence() -> MapekError | None:
    """Why the tables could not be read now; None where they could, or it is not known. The kernel loads the module for
    the question, where it can be loaded."""
    name = FAMILY.encode() + bytes(2)  # its end, and padding
    body = struct.pack("=BBHHH", _CTRL_GETFAMILY, 1, 0, 4 + len(FAMILY) + 1, _CTRL_ATTR_FAMILY_NAME) + name
    try:
        rtnl.ask(_GENL_ID_CTRL, body, protocol=_NETLINK_GENERIC)
    except OSError as error:
        return refusal(errno.ENOENT) if error.errno == errno.ENOENT else None
    return refusal(errno.EPERM) if missing_capabilities("CAP_NET_ADMIN") else None
