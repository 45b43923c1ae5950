"""`mapek doctor`: what it prints fits a terminal, its JSON has the keys of docs/DOCTOR.md, and its exit status."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mapek.bpf import demands, features, host, parts
from mapek.bpf.attempts import Answer
from mapek.bpf.demands import Part
from mapek.bpf.host import Condition
from mapek.cli import diagnosis, main
from mapek.cli.diagnosis import Examined, Told, Verdict
from mapek.service.kernel import Kernel

PAGE = (Path(__file__).resolve().parents[3] / "docs/DOCTOR.md").read_text()
LONG = (
    "a reason of many words that goes on and on until no terminal has room for it in one line, and then some"
)
POOR = Examined(
    Kernel("5.4.0", "", "libbpf.so.1 is missing", ("CAP_BPF",), {"tcx": "no (kernel 6.6)", "btf": "yes"}),
    (Condition("lockdown", Answer.NO, LONG, LONG), Condition("jit", Answer.UNKNOWN, "not visible", "ask outside")),
    {"CAP_BPF": True, "CAP_PERFMON": False},
    {
        Part("helper", "timer_init", "sched_cls"): Told("no", "kernel 5.15", ("link_watch",)),
        Part("helper", "spin_lock", "sched_cls"): Told("yes", "kernel 5.10", ("batadv",)),
        Part("helper", "spin_lock", "xdp"): Told("unknown", "kernel 5.10", ("batadv",)),
        Part("map type", "ringbuf"): Told("no", "kernel 5.8", ("link_watch", "net_events")),
    },
    {
        "link_watch": Verdict("user", (), (("bpf_timer", LONG),), (LONG,), ("use kernel 5.15 or newer",)),
        "psi": Verdict(missing=(LONG,), do=("boot with psi=1",)),
        "interface": Verdict(),
    },
)  # fmt: skip


def _keys(found: object, before: str = "") -> set[str]:
    if not isinstance(found, dict) or not found:
        return {before}
    return {key for name, inner in found.items() for key in _keys(inner, f"{before}.{name}".lstrip("."))}


def test_the_text_fits_a_terminal_and_says_what_to_do():
    text = list(diagnosis.lines(POOR))
    assert max(map(len, text)) <= 80
    joined = " ".join(" ".join(text).split())
    for word in ("-> use kernel 5.15 or newer", "-> boot with psi=1", "-> ask outside", "cannot run: psi"):
        assert word in joined
    assert "timer_init: kernel 5.15; used by link_watch" in joined
    # Where types differ, they are told apart.
    assert "yes spin_lock in sched_cls" in joined
    assert "unknown spin_lock in xdp" in joined
    assert not POOR.well


def test_the_keys_are_those_of_the_page():
    documented = {
        key for row in re.findall(r"^\| (`[^|]+) \|", PAGE, re.M) for key in re.findall(r"`([^`]+)`", row)
    }
    names = r"machine\.(\w+)", r"sensors\.(\w+)", r"programs\.helpers\.(\w+)"
    found = set()
    for key in _keys(diagnosis.document(POOR)):
        for name, place in zip(names, ("machine.NAME", "sensors.NAME", "programs.helpers.TYPE"), strict=True):
            key = re.sub(rf"^{name}", place, key)
        for table in ("kernel.features", "sensors.NAME.passed_over", "programs.helpers.TYPE"):
            key = table if key.startswith(f"{table}.") else key
        found.add(re.sub(r"^(programs\.(?!helpers)\w+)\..*", r"\1", key))
    assert found == documented


def test_the_conditions_of_the_page():
    named = re.search(r"of ((?:`\w+`, )+`\w+`): \"yes\"", PAGE)
    assert named is not None
    assert re.findall(r"`(\w+)`", named[1]) == [one.name for one in host.conditions()]
    for one in host.conditions():
        assert one.said
        assert (one.answer is Answer.YES) <= (not one.do)
        assert (one.answer is Answer.NO) <= bool(one.do)


def test_it_runs_without_a_configuration(capsys: pytest.CaptureFixture[str]):
    code = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] == (code == 0)
    assert "sensors" not in found
    assert main(["doctor"]) == code
    assert "give a configuration" in capsys.readouterr().out


def test_what_our_objects_demand_is_what_they_say():
    found = demands.ours()
    assert found[Part("map type", "lpm_trie")] == ("mesh_filter",)
    assert "link_watch" in found[Part("helper", "timer_start", "sched_cls")]
    assert found[Part("attachment", "kprobe")] == ("syscall_latency",)
    assert found[Part("instruction", "callback")] == ("link_watch",)
    assert not [part for part in found if "unspec" in (part.name, part.of)]


def test_everything_that_our_objects_demand_can_be_asked_and_has_a_version():
    for part in demands.ours():
        assert parts.since(part), part
        if part.kind == "map type":
            assert part.name in parts._SHAPES
        elif part.kind == "program type":
            assert part.name in {*parts._PLAIN_PROGRAMS, "tracing"}
        elif part.kind == "helper":
            assert part.of in {*parts._PLAIN_PROGRAMS, "tracing"}
            assert part.name not in parts._TRACING_ONLY
        elif part.kind == "instruction":
            assert part.name in {*parts._INSTRUCTIONS, "global_data"}
    assert set(parts._WAYS.values()) <= features.FEATURES.keys()


NOWHERE = """
[node]
name = "a"
[loop]
wait = {wait}
[sensors.link_watch]
enabled = false
[sensors.netlink]
enabled = false
[sensors.interface]
interfaces = ["no-such"]
"""


@pytest.mark.parametrize(("wait", "word"), [("false", "no"), ("true", "waits")])
def test_an_interface_that_is_away(tmp_path: Path, capsys: pytest.CaptureFixture[str], wait: str, word: str):
    file = tmp_path / "node.toml"
    file.write_text(NOWHERE.format(wait=wait))
    file.chmod(0o600)
    main(["doctor", "-c", str(file)])
    text = " ".join(capsys.readouterr().out.partition("\nsensors\n")[2].split())
    assert f"interface {word} count on no-such: there is no such interface; check the name" in text
    assert ("cannot run: interface" in text) == (word == "no")
    assert "link_watch" not in text
