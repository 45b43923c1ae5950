"""The tests marked `kernel`, on every kernel of the catalogue, and a table of how they ended.

All tests of a kernel run in one pytest process, because starting one costs a guest half a minute of processor.
A guest has two CPUs, so that per-CPU counters and races are real, and keeps little more than one of the machine's
busy: as many guests run at once as there are CPUs here, and one more for the time that the others wait.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tools.vm import boot, store
from tools.vm.catalogue import CATALOGUE, Entry
from tools.vm.problem import Problem
from tools.vm.results import Result, of_junit, once_more, table, write_summary

# The command or file by which each Debian package is known to be here.
PACKAGES = {
    "qemu-system-x86": boot.QEMU,
    "busybox-static": "/usr/share/doc/busybox-static",
    "kmod": "depmod",
    "iproute2": "ip",
    "bpftool": "bpftool",
    "batctl": "batctl",
    "debian-archive-keyring": "/usr/share/keyrings/debian-archive-keyring.gpg",
}
PATHS = ("tests/netns",)
SLOWNESS = 20  # of a guest under emulation; deadlines of tests are stretched by it
_TEST_TIMEOUT_S = 240
# Coverage is the host's business; hypothesis' plugin only reports.
_WITHOUT = [part for name in ("pytest_cov", "hypothesispytest") for part in ("-p", f"no:{name}")]
_SELECT = ["-m", "kernel and not host", "--import-mode=importlib", *_WITHOUT]
_NO_BYTECODE = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
_SOURCES = ("mapek", "bpf", "sensors", "policies", "simulations", "tests")
_SHARE = re.compile(rb"\[ *(\d+)%\]\n")
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Plan:
    """What to run where: `jobs` guests at once, each with `cpus` and `memory_mib`, for at most `timeout_s`."""

    entries: tuple[Entry, ...]
    reports: Path
    jobs: int
    cpus: int
    memory_mib: int
    timeout_s: float
    keyword: str = ""
    within_s: float = 1200.0
    """For all guests together: one that is slow leaves less to those after it."""


def test(plan: Plan) -> int:
    """Run the plan; 0 when every test on every kernel passed or was excused. Raises Problem."""
    plan.reports.mkdir(parents=True, exist_ok=True)
    with open(plan.reports / ".lock", "w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Problem(
                f"writing to {plan.reports}: another run does; wait for it, or set --reports"
            ) from error
        return _test(plan)


def _test(plan: Plan) -> int:
    began = time.monotonic()
    files = _collect(plan)
    count = sum(files.values())
    kernels = [store.kernel(entry) for entry in plan.entries]
    print(
        f"{count} tests on {len(kernels)} kernels, {plan.jobs} at once with {plan.cpus} CPU each", flush=True
    )
    pool = ThreadPoolExecutor(plan.jobs)
    try:
        results = list(
            pool.map(
                lambda pair: _one(plan, list(files), began + plan.within_s, *pair),
                zip(plan.entries, kernels, strict=True),
            )
        )
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        boot.end_all()
        raise
    finally:
        pool.shutdown()
    for result in results:
        for name, text in result.failed.items():
            print(f"\n{result.entry}: {name}\n{text}")
    print(f"\n{table(results)}\n{time.monotonic() - began:.0f} s in all; reports in {plan.reports}")
    write_summary(results, plan.reports / "summary.json")
    return 0 if all(result.good for result in results) else 1


def _pytest(plan: Plan, paths: Iterable[str] = PATHS) -> list[str]:
    chosen = ["-k", plan.keyword] if plan.keyword else []
    return [sys.executable, "-m", "pytest", *_SELECT, *chosen, *paths]


def _collect(plan: Plan) -> dict[str, int]:
    """How many tests each file has; the guests import only these, from the byte code that this leaves behind.

    Without it each guest compiles mapek anew in every process, and rewrites the tests and all of hypothesis.
    """
    writing = {name: value for name, value in os.environ.items() if name not in _NO_BYTECODE}
    done = subprocess.run(
        [*_pytest(plan), "--collect-only", "-qq", "-p", "no:cacheprovider"],
        check=False, capture_output=True, text=True, cwd=_ROOT,
        env=writing | {"MAPEK_ROWS": "1", "MAPEK_LEAKS": "report"},
    )  # fmt: skip
    if done.returncode:
        raise Problem(f"collecting the tests marked `kernel`: {done.stdout.strip()[-2000:]}")
    # What only a child of a test imports; named one by one, since compileall follows no links.
    subprocess.run([sys.executable, "-m", "compileall", "-q", *_SOURCES], check=False, cwd=_ROOT, env=writing)
    # "PATH: COUNT" for each file
    counted = (line.rsplit(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    return {path: int(count) for path, count in counted}


def _one(plan: Plan, files: list[str], ends: float, entry: Entry, kernel: store.Kernel) -> Result:
    began = time.monotonic()
    timeout_s = max(min(plan.timeout_s, ends - began), 1.0)
    folder = plan.reports / entry.name
    guest = boot.Guest(
        kernel, entry.hides_btf, plan.cpus, plan.memory_mib, timeout_s,
        {
            "MAPEK_REQUIRE_ALL": "1",
            "MAPEK_PROMISED": ",".join(entry.promises),
            "MAPEK_TIME_SCALE": str(SLOWNESS),
            # One row of each table of tests, on each kernel another one: see tests/support/thin.py
            "MAPEK_ROWS": f"{CATALOGUE.index(entry)}/{len(CATALOGUE)}",
            "MAPEK_LEAKS": "end",
        },
    )  # fmt: skip
    results, cache = "/run/vm/results", "/run/vm/cache"

    def tests(share: float, file: str, *more: str) -> str:
        # Interrupted in time, pytest still says what failed until then.
        bound = ["timeout", "--signal=INT", f"{timeout_s * share:.0f}"]
        options = ["-v", "-rs", "-o", f"timeout={_TEST_TIMEOUT_S}", "-o", f"cache_dir={cache}", *more]
        return shlex.join([*bound, *_pytest(plan, files), *options, f"--junit-xml={results}/{file}"])

    # What failed runs once more, alone, as in tools/check.sh: a guest stands still whenever its host does.
    line = (
        f"{tests(0.8, 'junit.xml', '--durations=15')}; status=$?; if [ $status = 1 ]; then "
        f"{tests(0.15, 'again.xml', '--last-failed', '--last-failed-no-failures=none')}; status=$?; fi; "
        f"{shlex.quote(sys.executable)} -m mapek doctor --json >{results}/doctor.json; exit $status"
    )
    log, lock, told = bytearray(), threading.Lock(), 0

    def say(data: bytes) -> None:
        nonlocal told
        with lock:
            seen = log.rfind(b"\n") + 1
            log.extend(data)
            for share in _SHARE.findall(log, seen):
                if int(share) >= told + 10:
                    told = int(share) // 10 * 10
                    print(f"{entry.name}: {told} % after {time.monotonic() - began:.0f} s", flush=True)

    outcome = boot.run(guest, [line], out=say, err=say, results=folder)
    folder.mkdir(exist_ok=True)
    (folder / "log").write_bytes(log)
    found = of_junit(folder / "junit.xml", entry.name, kernel.release)
    if found.failed:
        found = once_more(found, of_junit(folder / "again.xml", entry.name, kernel.release))
    seconds = time.monotonic() - began
    print(
        f"{entry.name}: {'done' if outcome.status is not None else outcome.why} after {seconds:.0f} s",
        flush=True,
    )
    if outcome.status not in (0, 1) or (outcome.status == 1 and not found.failed):
        late = f"it was interrupted after {timeout_s * 0.8:.0f} s" if outcome.status == 124 else ""
        why = outcome.why or late or f"pytest exited with {outcome.status}"
        found.failed["the run itself"] = f"{why}\n{log.decode('utf-8', 'replace')[-3000:]}"
    return replace(found, seconds=seconds, booted_s=outcome.booted_s, cpu_s=outcome.cpu_s)
