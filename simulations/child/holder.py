"""Hold one unnamed network namespace, and a mount namespace with its own /sys, bpffs and /run.

Nobody else names the namespaces, so they vanish when the last process inside ends. When the lab's end of
the pipe on stdin closes, or the lab dies, the holder first ends every process inside its own namespace, so
that no grandchild of an agent keeps it alive, then itself. Pins and files inside live on private mounts and
go too.
"""

from __future__ import annotations

import os
import select
import signal
import sys

from mapek.simulations import libc


def make_namespaces() -> None:
    """Unshare, then mount what a fresh machine would have."""
    libc.unshare(libc.CLONE_NEWNET | libc.CLONE_NEWNS)
    libc.mount("", "/", "", libc.MS_REC | libc.MS_PRIVATE)
    # A sysfs mounted here shows the interfaces of the new namespace; it hides the bpffs below the old one.
    libc.mount("sysfs", "/sys", "sysfs", libc.MS_NOSUID | libc.MS_NODEV)
    libc.mount("bpf", "/sys/fs/bpf", "bpf", libc.MS_NOSUID | libc.MS_NODEV, "mode=700")
    libc.mount("tmpfs", "/run", "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "mode=755,size=256m")


def sweep() -> None:
    """SIGKILL every other process in our network namespace until none is left (bounded)."""
    own = os.stat("/proc/self/ns/net")
    for _ in range(50):
        found = False
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            try:
                there = os.stat(f"/proc/{entry}/ns/net")
                if (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino):
                    os.kill(int(entry), signal.SIGKILL)
                    found = True
            except OSError:
                continue  # ended meanwhile, or a kernel thread
        if not found:
            return


def main() -> None:
    """Print "ready" once the namespaces stand, then wait for the end of the lab."""
    # SIGTERM and not SIGKILL: the sweep has to run even if the lab was killed.
    libc.die_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the lab closes us in order
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGTERM, lambda signum, frame: None)
    make_namespaces()
    os.write(1, b"ready\n")
    watch = select.poll()
    watch.register(0, select.POLLIN | select.POLLHUP)
    watch.register(wake_read, select.POLLIN)
    while not any(fd == wake_read or not os.read(0, 64) for fd, _ in watch.poll()):
        pass
    sweep()


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"holder: {error}")
