"""`mapek replay`: a recording through the same loop in virtual time, and whether it decides alike."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from mapek.config import Config
    from mapek.simulations.recording import Decision
    from mapek.simulations.replay import ReplayReport


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    command = commands.add_parser("replay", help="replay a recording and compare its decisions")
    command.add_argument("file", type=Path, nargs="?", help="a recording; without it, those that came along")
    command.add_argument(
        "-c", "--config", metavar="FILE.toml", help="other analyzers and policies than its own"
    )
    command.add_argument("--json", action="store_true", help="one JSON object a recording")
    command.set_defaults(run=_replay)


def _replay(arguments: argparse.Namespace) -> int:
    from mapek.config import load_config

    config = load_config(arguments.config) if arguments.config else None
    files = [arguments.file] if arguments.file else shipped()
    return max(show(file, config, as_json=arguments.json) for file in files)


def shipped() -> list[Path]:
    """The recordings of real lab runs that came along. Raises RecordingError when there is none."""
    from mapek.errors import RecordingError

    folder = Path(__file__).parent.parent / "simulations" / "recordings"
    found = sorted(folder.glob("*.mcap"))
    if not found:
        raise RecordingError("replay", folder, "no recording came along", "name a file")
    return found


def show(file: Path, config: Config | None = None, *, as_json: bool = False) -> int:
    """Replay one file and print what it comes to.

    0 if every decision is the recorded one, or if `config` asks for others; else 1.
    """
    import asyncio

    from mapek.cli.printing import Records, human_line
    from mapek.cli.recorded import deciders
    from mapek.plugins import ANALYZERS, POLICIES, create_all
    from mapek.simulations.recording import RecordingReader
    from mapek.simulations.replay import replay

    if config is None:
        analyzers, policies = deciders(RecordingReader(file).about.config, file)
    else:
        analyzers = list(create_all(ANALYZERS, config.analyzers, config.plugin_directory).values())
        policies = list(create_all(POLICIES, config.policies, config.plugin_directory).values())
    records, began_ns = Records(), 0

    def tell(now_ns: int, decision: Decision) -> None:
        nonlocal began_ns
        began_ns = began_ns or now_ns
        for record in records.of(decision):
            print(human_line(record, began_ns))

    report = asyncio.run(replay(file, analyzers, policies, show=None if as_json else tell))
    print(json.dumps(report.plain()) if as_json else "\n".join(_summary(file, report)))
    return 0 if report.alike or config is not None else 1


def _verdict(report: ReplayReport) -> str:
    if report.alike and not report.recorded:
        return "nothing to compare"
    return "alike, byte for byte" if report.alike else "NOT alike"


def _summary(file: Path, report: ReplayReport) -> list[str]:
    ended = [one for one in report.incidents if one.state == "recovered"]
    times = sorted((one.recovered_ns - one.onset_ns) / 1e6 for one in ended)
    lines = [
        "",
        f"{file.name}: {report.seconds:.1f} s of node {report.about.topology.node}, {report.inputs} inputs",
        f"incidents    {len(report.incidents)}, recovered {len(ended)}"
        + (f", MTTR median {times[len(times) // 2]:.2f} ms, longest {times[-1]:.2f} ms" if times else ""),
        f"decisions    {report.recorded} recorded, {report.replayed} replayed: {_verdict(report)}",
    ]
    if report.asked:
        share = report.unknown / report.asked
        lines.append(f"questions    {report.asked}, of which the recording cannot answer {share:.1%}")
    if report.difference is not None:
        first = report.difference
        lines += [
            f"difference   decision {first.number}",
            f"  then {first.recorded}",
            f"  now  {first.replayed}",
        ]
    if report.damage:
        lines.append(f"damaged      {report.damage}")
    if report.missing:
        lines.append(f"missing      {report.missing} items were left out of the recording")
    return lines
