"""What every analyzer keeps to: see `check_analyzer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mapek.contracts import Analyzer
from mapek.knowledge import Knowledge, Topology
from mapek.knowledge.encoding import decode, encode
from mapek.model import Frame, Input, Inquiry, Suspicion, Symptom
from mapek.testing.inputs import sealed, some_inputs, some_topology
from mapek.testing.purity import pure

Found = list[tuple[int, bytes]]


def check_analyzer(
    make: Callable[[], Analyzer],
    inputs: Iterable[Input] | None = None,
    topology: Topology | None = None,
    *,
    finds: bool = False,
) -> None:
    """Raise AssertionError if the analyzers that `make` makes break the contract.

    They have a name, see nothing but their inputs, leave these unchanged, find the same in the same inputs,
    put up with inputs of strangers, and what they find can be recorded: plain values, inquiries with ids of
    their own, symptoms whose onset is not after their detection.

    Args:
        make: makes a new one, the same each time.
        inputs: what it should also see, in order: best a recording of what it is for.
        topology: of those inputs.
        finds: it must find something in them.
    """
    topology = topology or some_topology()
    own = list(inputs or ())
    for item in own:
        if isinstance(item, Frame):
            sealed(item)
    for given in (own, some_inputs(topology)):
        first, second = _run(make, given, topology), _run(make, given, topology)
        assert first == second, (
            f"{make().name} found other things in the same inputs: {_difference(first, second)}"
        )
        if given is own and finds:
            assert first, f"{make().name} found nothing"


def _run(make: Callable[[], Analyzer], inputs: list[Input], topology: Topology) -> Found:
    analyzer, knowledge = make(), Knowledge(topology)
    assert isinstance(analyzer.name, str), "an analyzer has a name"
    assert analyzer.name, "an analyzer has a name"
    found: Found = []
    ids: set[str] = set()
    with pure(f"analyzer {analyzer.name}"):
        analyzer.start(knowledge)
    for item in inputs:
        knowledge.now_ns = item.time_ns
        if isinstance(item, Frame):
            knowledge.take(item)
        with pure(f"analyzer {analyzer.name}"):
            if isinstance(item, Frame):
                findings = tuple(analyzer.on_frame(item, knowledge))
            else:
                findings = tuple(analyzer.on_event(item, knowledge))
        for finding in findings:
            found.append((item.time_ns, _checked(analyzer.name, finding, ids)))
    return found


def _checked(name: str, finding: object, ids: set[str]) -> bytes:
    assert isinstance(finding, (Inquiry, Suspicion, Symptom)), (
        f"{name} found {finding!r}, which is no finding"
    )
    data = encode(finding)
    assert encode(decode(type(finding), data)) == data, f"{finding!r} does not survive a recording"
    assert finding.kind, f"{finding!r} has no kind"
    if isinstance(finding, Inquiry):
        assert finding.id not in ids, f"{name} asked twice under the id {finding.id}"
        assert finding.id.startswith(f"{name}:"), f"inquiry {finding.id} should begin with {name}:"
        assert finding.within_ns > 0, f"{finding.id} must be answered in no time"
        ids.add(finding.id)
    elif isinstance(finding, Symptom):
        assert finding.onset_ns <= finding.detected_ns, f"{finding!r} was detected before it began"
        assert finding.onset_error_ns >= 0, f"{finding!r} has a negative error"
    return data


def _difference(first: Found, second: Found) -> str:
    for one, two in zip(first, second, strict=False):
        if one != two:
            return f"{one} and {two}"
    return f"{len(first)} and {len(second)} findings"
