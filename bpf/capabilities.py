"""Capabilities of the calling thread, read from /proc and named as in linux/capability.h.

Only reading: dropping them is a decision of the process, and of one line of `prctl` elsewhere.
"""

from __future__ import annotations

from typing import Final

_NAMES: Final = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
    "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
    "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
    "PERFMON BPF CHECKPOINT_RESTORE"
).split()


def decode(mask: int) -> frozenset[str]:
    """Names ("CAP_BPF") of the bits set in a capability mask; bits without a name are left out."""
    return frozenset(f"CAP_{name}" for bit, name in enumerate(_NAMES) if mask >> bit & 1)


def effective() -> frozenset[str]:
    """The effective set of the calling thread; empty where /proc is not mounted."""
    try:
        with open("/proc/thread-self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("CapEff:"):
                    return decode(int(line.split()[1], 16))
    except (OSError, ValueError, IndexError):
        pass
    return frozenset()
