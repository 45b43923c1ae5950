"""Run one command in a guest, and stream what it prints.

The guest has an end in every case: its command's, the time-out's, this process's (the kernel kills QEMU when its
parent dies) or Ctrl-C's. Emulation is the default because KVM is rarely there in CI and, where it is, may not
boot a stock kernel; MAPEK_VM_ACCEL=kvm takes it and is about ten times faster.
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tools.vm.initramfs import initramfs
from tools.vm.problem import Problem
from tools.vm.store import Kernel

QEMU = "qemu-system-x86_64"
# An old processor is the quicker one to emulate: "max" brings AVX, a fifth level of page tables and a `rep movsb`
# that the kernel then copies and clears memory with, byte by byte. numpy needs no more than this one has.
_EMULATED = "Nehalem,+rdtscp,+rdrand,+fsgsbase"
# One thread for all the guest's CPUs, in turn: with a thread each, a CPU of 7.2 ran a breakpoint that another one had
# taken away again (the kernel patches a static tail call so), and the guest died of it.
_ACCEL = {
    "tcg": ["-accel", "tcg,thread=single,tb-size=512", "-cpu", _EMULATED],
    "kvm": ["-accel", "kvm", "-cpu", "host"],
}
_running: set[subprocess.Popen[bytes]] = set()
_ending = threading.Event()
_APPEND = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr random.trust_cpu=on psi=1"
# Hardening that is paid for in each page and each system call, and decides no test.
_APPEND += " init_on_alloc=0 randomize_kstack_offset=off audit=0"


@dataclass(frozen=True)
class Guest:
    """The machine that a command runs on.

    Args:
        kernel: what boots.
        hides_btf: whether /sys/kernel/btf is empty there.
        cpus, memory_mib: its size; what its command writes is in this memory, too.
        timeout_s: after this long it is ended.
        environment: beside PATH and HOME, all that the command gets.
    """

    kernel: Kernel
    hides_btf: bool = False
    cpus: int = 2
    memory_mib: int = 2048
    timeout_s: float = 900
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a command in a guest ended.

    Args:
        status: its exit status; None where the guest ended first, and `why` then says why.
        why: one line and the end of the guest's console, or "".
        booted_s: the guest's uptime when the command began.
        cpu_s: processor time that QEMU took, which other work on this machine does not stretch.
    """

    status: int | None
    why: str
    booted_s: float
    cpu_s: float


def run(
    guest: Guest,
    command: list[str],
    *,
    out: Callable[[bytes], object],
    err: Callable[[bytes], object],
    results: Path | None = None,
) -> Outcome:
    """Run `command` as root in this working directory, on `guest`; blocks.

    What it writes reaches this machine only below /run/vm/results, which is copied to `results` (replaced).
    `out` and `err` are called, each from its own thread, with what it prints. Raises Problem where QEMU or
    busybox is missing.
    """
    if shutil.which(QEMU) is None:
        raise Problem(f"booting {guest.kernel.release}: there is no {QEMU}; apt-get install qemu-system-x86")
    first_root = initramfs(guest.kernel)
    with tempfile.TemporaryDirectory(prefix="mapek-vm-") as name:
        control = Path(name)
        (control / "results").mkdir()
        (control / "command").write_text(script(command, guest.environment))
        with _pump(out) as out_fd, _pump(err) as err_fd:
            arguments = qemu(guest, first_root, control, out_fd, err_fd)
            why, cpu_s = _wait(arguments, guest.timeout_s, (out_fd, err_fd))
        if results is not None:
            shutil.rmtree(results, ignore_errors=True)
            shutil.copytree(control / "results", results)
            for log in ("console", "dmesg"):
                if (control / log).exists():
                    shutil.copy(control / log, results / log)
        status, booted = _read(control / "status"), _read(control / "booted")
        if status:
            return Outcome(int(status), "", float(booted or 0), cpu_s)
        said = _read(control / "console")[-2000:]
        where = "before its command ended" if booted else "before it had booted"
        return Outcome(
            None, f"{why or 'the guest ended'} {where}; its console: {said!r}", float(booted or 0), cpu_s
        )


def end_all() -> None:
    """End every guest of this process, for good; `run` returns in the threads that wait for them."""
    _ending.set()
    for process in tuple(_running):
        process.kill()


def script(command: list[str], environment: Mapping[str, str]) -> str:
    """The shell script that the guest runs; a single argument is a line of shell, several are the words."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    exported = {"PATH": path, "HOME": os.environ.get("HOME", "/root"), **environment}
    return "\n".join(
        [
            *(f"export {name}={shlex.quote(value)}" for name, value in exported.items()),
            f"cd {shlex.quote(os.getcwd())} || exit 126",
            command[0] if len(command) == 1 else shlex.join(command),
            "",
        ]
    )


def qemu(guest: Guest, first_root: Path, control: Path, out_fd: int, err_fd: int) -> list[str]:
    """The command line that boots the guest."""
    words = f"{_APPEND} vm.modules={guest.kernel.modules}{' vm.btf=hidden' if guest.hides_btf else ''}"
    share = "security_model=none,multidevs=remap"
    # A guest whose parent was killed must not go on; setpriv is a part of util-linux.
    return [
        "setpriv", "--pdeathsig", "KILL", QEMU, *_ACCEL[os.environ.get("MAPEK_VM_ACCEL", "tcg")],
        "-machine", "q35", "-m", str(guest.memory_mib), "-smp", str(guest.cpus),
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-kernel", str(guest.kernel.image), "-initrd", str(first_root), "-append", words,
        "-serial", f"file:{control / 'console'}", "-device", "virtio-rng-pci",
        "-fsdev", f"local,id=root,path=/,readonly=on,{share}", "-device", "virtio-9p-pci,fsdev=root,mount_tag=root",
        "-fsdev", f"local,id=control,path={control},{share}",
        "-device", "virtio-9p-pci,fsdev=control,mount_tag=control", "-device", "virtio-serial-pci",
        "-chardev", f"file,id=o,path=/dev/fd/{out_fd}", "-device", "virtserialport,chardev=o,name=out",
        "-chardev", f"file,id=e,path=/dev/fd/{err_fd}", "-device", "virtserialport,chardev=e,name=err",
    ]  # fmt: skip


def _wait(arguments: list[str], timeout_s: float, fds: tuple[int, int]) -> tuple[str, float]:
    """Start QEMU and wait for its end or the time-out; why it ended early, or "", and its processor time."""
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=words, stderr=words, pass_fds=fds, process_group=0
        )
        _running.add(process)
        exit_fd = os.pidfd_open(process.pid)
        try:
            if _ending.is_set():  # it was not among those that were ended
                return "interrupted", 0.0
            ended, _, _ = select.select([exit_fd], [], [], timeout_s)
            cpu_s = _cpu_s(process.pid)
            if not ended:
                return f"ended after {timeout_s:.0f} s", cpu_s
            process.wait()
        finally:
            os.close(exit_fd)
            if process.poll() is None:
                process.kill()
                process.wait()
            _running.discard(process)
        words.seek(0)
        said = words.read().decode("utf-8", "replace").strip()
        return f"QEMU said {said!r} and ended" if process.returncode else "", cpu_s


def _cpu_s(pid: int) -> float:
    """Processor time of a process that was not waited for yet."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _pump(sink: Callable[[bytes], object]) -> Iterator[int]:
    """The writing end of a pipe whose content goes to `sink`; all of it has arrived at the end."""
    read_fd, write_fd = os.pipe()

    def copy() -> None:
        with open(read_fd, "rb", buffering=0) as file:
            while data := file.read(65536):
                sink(data)

    thread = threading.Thread(target=copy, name="guest output")
    thread.start()
    try:
        yield write_fd
    finally:
        os.close(write_fd)
        thread.join()


def _read(path: Path) -> str:
    return path.read_text("utf-8", "replace").strip() if path.exists() else ""
