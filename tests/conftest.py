"""Skips that cannot hide a fault, and a search for what the tests left behind.

A test that skips where the machine has what it needs fails (see tests/support/machine.py), and a run that
leaves a namespace, a BPF program, a pin or a process behind fails as a whole and names the test after
which it first showed. MAPEK_REQUIRE_ALL=1 makes every avoidable skip a failure; MAPEK_LEAKS=report only
reports left-overs, for machines where other work with BPF goes on at the same time; MAPEK_LEAKS=end looks for
them at the end only, where a look at all processes after each test costs too much.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support import leaks, machine, thin

_before = pytest.StashKey[leaks.Snapshot]()
_first_seen = pytest.StashKey[dict[tuple[str, str], str]]()
_left = pytest.StashKey[list[str]]()
_excused = pytest.StashKey[bool]()


# How long a draw takes says something about the machine and nothing about the code.
settings.register_profile("mapek", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mapek")


def _needs(item: pytest.Item) -> tuple[str, ...]:
    implied = machine.NETNS if item.get_closest_marker("netns") else ()
    named = tuple(name for mark in item.iter_markers("needs") for name in mark.args)
    for name in named:
        if name not in machine.FEATURES:
            raise pytest.UsageError(f"{item.nodeid} needs {name!r}, which tests/support/machine.py lacks")
    return implied + named


def _table(item: pytest.Item) -> str:
    """What the rows of a parametrized test have in common; one marked `each_row` keeps them all."""
    return item.nodeid if item.get_closest_marker("each_row") else item.nodeid.partition("[")[0]


def pytest_configure(config: pytest.Config) -> None:
    """Remember the machine as it was."""
    # A shell's background job ignores SIGINT, and children would inherit that: half of what ends them would not.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    leaks.mark_children()
    config.stash[_before] = leaks.snapshot()
    config.stash[_first_seen] = {}
    config.stash[_left] = []


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Check every `needs` before the first test runs; leave out rows of long tables where that was asked."""
    for item in items:
        _needs(item)
    if (keep := thin.rows())[0]:
        items[:], left = thin.thinned(items, _table, keep, _is_tried)
        config.hook.pytest_deselected(items=left)


def _is_tried(item: pytest.Item) -> bool:
    """Does it run here, or fail because it should?"""
    answer = machine.verdict(_needs(item))
    return answer is None or answer[1]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or fail, a test that this machine cannot run."""
    answer = machine.verdict(_needs(item))
    if answer is None:
        return
    reason, fails = answer
    if fails:
        pytest.fail(reason, pytrace=False)
    item.stash[_excused] = True
    pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip that nothing excuses into a failure."""
    report = yield
    privileged = item.get_closest_marker("netns") is not None and machine.capable()
    unexcused = report.skipped and not hasattr(report, "wasxfail") and not item.stash.get(_excused, False)
    if unexcused and (privileged or machine.require_all()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"skipped where the machine has what the test needs: {reason}"
    return report


@pytest.fixture(autouse=True)
def _attribute_leftovers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Note after which privileged test a left-over first showed; the run's end decides if it stayed."""
    yield
    if request.node.get_closest_marker("netns") is None or os.environ.get("MAPEK_LEAKS") == "end":
        return
    stash = request.config.stash
    for thing in stash[_before].new():
        stash[_first_seen].setdefault(thing, request.node.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run for what is still there."""
    stash = session.config.stash
    seen = {f"{kind} {name}": test for (kind, name), test in stash[_first_seen].items()}
    left = stash[_before].left()
    for line in left:
        stash[_left].append(f"{line} (first seen after {seen.get(line, 'an unprivileged test')})")
    if stash[_left] and os.environ.get("MAPEK_LEAKS") != "report":
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        _count_as_failed(session.config, [test for test in map(seen.get, left) if test])


def _count_as_failed(config: pytest.Config, tests: list[str]) -> None:
    """Whoever runs again what failed runs these too, and is told if they leave something behind alone."""
    if (cache := getattr(config, "cache", None)) is not None:
        failed = {**cache.get("cache/lastfailed", {}), **dict.fromkeys(tests, True)}
        cache.set("cache/lastfailed", failed)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left behind."""
    if config.stash[_left]:
        terminalreporter.section("left behind by the tests", red=True, bold=True)
        for line in config.stash[_left]:
            terminalreporter.write_line(line)
