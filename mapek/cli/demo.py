"""`mapek demo`: real faults on real links, healed as one watches; a recording of it where that cannot be."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from mapek.model import Incident
    from mapek.simulations.campaign import CampaignResult
    from mapek.simulations.recording import Decision
    from mapek.simulations.replay import ReplayReport
    from mapek.simulations.replayed import Replayed


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    command = commands.add_parser("demo", help="inject faults into a lab and watch the loop heal them")
    command.add_argument("--out", type=Path, default=Path("build/demo"), help="where the report goes")
    command.add_argument("--replay", action="store_true", help="replay the shipped recording even as root")
    command.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from mapek.cli.lab_needs import missing_for_lab

    _must_be_writable(arguments.out)
    lacks = [] if arguments.replay else missing_for_lab()
    if not lacks and not arguments.replay:
        import asyncio

        from mapek.simulations.demo import run_demo

        results = asyncio.run(run_demo(arguments.out))
        return 0 if all(_healed(result) for result in results.values()) else 1
    print("the lab cannot run here:" if lacks else "no lab this time: --replay was asked for")
    for line in lacks:
        print(f"  {line}")
    print("so this is a recording of a lab run, through the very same loop in virtual time:")
    sys.stdout.flush()
    return _replayed(arguments.out)


def _healed(result: CampaignResult) -> bool:
    return all(trial.rescued for series in result.series for trial in series.trials)


def _must_be_writable(folder: Path) -> None:
    """Say it before a minute of measuring, not after."""
    from mapek.errors import PermanentError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        why = "" if os.access(folder, os.W_OK | os.X_OK) else "Permission denied"
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        raise PermanentError("write the report to", folder, why, "name a folder of yours with --out")


def _replayed(folder: Path) -> int:
    from mapek.cli.replay import shipped
    from mapek.errors import FeatureError
    from mapek.simulations.replayed import document, draw, table
    from mapek.simulations.report import write_json

    shown = [_show(file) for file in shipped()]
    print("\n" + table(shown))
    print(
        "MTTR: onset to the first answer on the repaired way. The flow's outage is measured in a lab only.\n"
    )
    write_json(folder / "report.json", document(shown))
    # Of an earlier demo in the lab, and not what was seen this time.
    (folder / "trials.json").unlink(missing_ok=True)
    print(folder / "report.json", end="")
    try:
        draw(shown, folder / "timeline.png")
        print(f"  {folder / 'timeline.png'}")
    except FeatureError as error:
        (folder / "timeline.png").unlink(missing_ok=True)
        print(f"\nno picture: {error}")
    return 0 if all(_sound(one) for one in shown) else 1


def _show(file: Path) -> Replayed:
    """Replay one recording, telling of each incident when it ends."""
    import asyncio

    from mapek.cli.recorded import deciders
    from mapek.model import Incident, Suspicion
    from mapek.simulations.recording import RecordingReader
    from mapek.simulations.replay import replay
    from mapek.simulations.replayed import Replayed

    reader = RecordingReader(file)
    about = reader.about
    begin_ns = next((entry.now_ns for entry in reader), 0)
    profile = str(about.config.get("profile", "unknown"))
    print(f"\n{file.name}: node {about.topology.node}, {profile} profile")
    doubts: list[int] = []

    def tell(now_ns: int, decision: Decision) -> None:
        if isinstance(decision, Suspicion) and not decision.cleared:
            doubts.append(decision.time_ns)
        elif isinstance(decision, Incident) and decision.state in ("recovered", "unrecovered"):
            print("\n".join(_told(decision, (now_ns - begin_ns) / 1e9, about.topology.node)))

    report = asyncio.run(replay(file, *deciders(about.config, file), show=tell))
    counts = f"{len(doubts)} suspicions, {len(report.incidents)} incidents"
    print(f"{report.seconds:7.2f} s  end: {counts}; {_alike(report)}")
    return Replayed(file.name, profile, begin_ns, report, tuple(doubts))


def _told(incident: Incident, seconds: float, node: str) -> list[str]:
    from mapek.simulations.replayed import mttr_ms, stages_ms

    took = mttr_ms(incident)
    word = "NOT RECOVERED" if took is None else f"healed, MTTR {took:.2f} ms"
    if took is not None and not incident.acted_ns:
        word = f"lasted {took:.2f} ms"
    why = f" ({incident.reason})" if incident.reason else ""
    parts = " + ".join(f"{stage} {length:.2f}" for stage, length in stages_ms(incident).items())
    kind = incident.kind.replace("_", " ")
    return [f"{seconds:7.2f} s  {incident.entity}, {kind}: {word}{why}", f"{'':11} {node}: {parts} ms"]


def _alike(report: ReplayReport) -> str:
    if report.alike:
        return f"all {report.recorded} decisions as they were made then, byte for byte"
    return "NOT all decisions as they were made then; `mapek replay` names the first"


def _sound(one: Replayed) -> bool:
    # One that was still open when the recording ended says nothing.
    states = {each.state for each in one.report.incidents}
    return "recovered" in states and "unrecovered" not in states
