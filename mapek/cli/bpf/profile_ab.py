"""`mapek bpf profile --ab`: sensors with and without, one after another; each is told as soon as it is measured."""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from mapek.errors import ConfigError, PrivilegeError

if TYPE_CHECKING:
    from pathlib import Path

    from mapek.bpf.stop_watch import StopWatch
    from mapek.simulations.profile.result import Result
    from mapek.simulations.profile.subjects import Subject
    from mapek.simulations.report import Json


def profile_ab(arguments: argparse.Namespace, seconds: float) -> int:
    """Run it; returns the exit code. Raises before anything is begun where it cannot be done."""
    import asyncio

    from mapek.cli.lab_needs import missing_for_lab
    from mapek.cli.signals import until_signal
    from mapek.simulations.profile.subjects import SUBJECTS, subject

    options = read_options(arguments.option)
    if options and len(arguments.sensor) != 1:
        raise ConfigError("set options of", "several sensors", "they differ", "name one sensor")
    subjects = [subject(name, options) for name in dict.fromkeys(arguments.sensor) or SUBJECTS]
    for one in subjects:
        _check_options(one)
    if lacks := missing_for_lab():
        raise PrivilegeError("profile", subjects[0].sensor, "; ".join(lacks))
    if arguments.plot is not None:
        _must_draw(arguments.plot)
    return asyncio.run(until_signal(_measure(subjects, seconds, arguments)))


def read_options(given: list[str]) -> dict[str, object]:
    """`KEY=VALUE`s, each a line of TOML. Raises ConfigError."""
    options: dict[str, object] = {}
    for one in given:
        try:
            options |= tomllib.loads(one)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError("read option", one[:60], str(error), "write it as in the file") from error
    return options


def _check_options(one: Subject) -> None:
    """Construct the sensor, which raises ConfigError for what it cannot be told."""
    from mapek import plugins
    from mapek.config.options import Table
    from mapek.config.settings import PluginConfig

    place = f"[sensors.{one.sensor}]"
    plugins.create(plugins.SENSORS, PluginConfig(one.sensor, one.sensor, Table(one.options, place=place)))


def _must_draw(path: Path) -> None:
    """Say it before a minute of measuring, not after."""
    from mapek.simulations.profile.picture import check

    check(path)


async def _measure(subjects: list[Subject], seconds: float, arguments: argparse.Namespace) -> int:
    import asyncio

    from mapek.bpf.stop_watch import stop_watch
    from mapek.cli import say
    from mapek.errors import DegradedError, PermanentError
    from mapek.simulations.profile import words
    from mapek.simulations.profile.experiment import run
    from mapek.simulations.profile.result import Result

    results: list[Result] = []
    failed: dict[str, str] = {}
    watch = await asyncio.to_thread(stop_watch)
    try:
        for one in subjects:
            result = Result(one, arguments.seed)
            results.append(result)
            try:
                await run(one, seconds, arguments.seed, result)
            except (DegradedError, PermanentError) as error:
                if not result.rounds:
                    results.remove(result)
                failed[one.sensor] = str(error)
                say(error)
            finally:
                # Also after Ctrl-C: what it has by then.
                if result in results and not arguments.json:
                    sys.stdout.write(words.text(result, watch.empty_ns) + "\n\n")
                    sys.stdout.flush()
    finally:
        if arguments.json:
            print(json.dumps(document(results, failed, watch)))
        if arguments.plot is not None and any(result.rounds for result in results):
            from mapek.simulations.profile.picture import draw

            draw([result for result in results if result.rounds], arguments.plot)
    return 1 if failed else 0


def document(results: list[Result], failed: Mapping[str, str], watch: StopWatch) -> dict[str, Json]:
    """As JSON has it (docs/PROFILE.md)."""
    stats: dict[str, Json] = asdict(watch)
    sensors: list[Json] = [result.json() for result in results]
    return {"bpf_stats": stats, "sensors": sensors, "failed": dict(failed)}
