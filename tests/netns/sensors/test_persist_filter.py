"""mesh_filter's counts and verdicts from one agent to the next: who was quarantined stays so, and is who he was."""

from __future__ import annotations

from pathlib import Path

import pytest

from mapek.bpf import pins, read_xdp
from tests.netns.bpf.wires import udp
from tests.netns.sensors.keeping import Agent, Traffic, agent
from tests.netns.sensors.wires import on_tc

pytestmark = [pytest.mark.needs("bpffs", "tcx")]
WHO, OTHER, THIRD = (f"spiffe://mesh.example/{name}" for name in ("who", "other", "third"))


def identities(folder: Path, *entries: tuple[str, str, int]) -> str:
    """A file of SPIFFE ID, MAC and number (0: none given)."""
    lines = []
    for name, mac, number in entries:
        lines += ["[[identity]]", f'spiffe_id = "{name}"', f'macs = ["{mac}"]']
        lines += [f"number = {number}"] if number else []
    file = folder / "identities.toml"
    file.write_text("\n".join(lines) + "\n")
    return str(file)


def mac_of(frame: bytes) -> str:
    return frame[6:12].hex(":")


def total(one: Agent, *columns: str) -> int:
    return sum(row[column] for row in one.rows().values() for column in columns)


@pytest.mark.parametrize("mode", ["native", "tc"])
def test_counts_and_verdicts_go_on(quiet, tmp_path, mode):
    mac = mac_of(udp())
    mine, another = (WHO, mac, 0), (OTHER, "02:00:00:00:77:01", 0)
    options = {"interfaces": ["near"], "mode": mode, "persist": True, "prefer": "mac"}
    options["identities"] = identities(tmp_path, mine, another)
    with Traffic(udp()) as traffic:
        with agent("mesh_filter", options, tmp_path) as first:
            assert first.said["degraded"] == []
            first.ask("quarantine", identity=WHO)
            traffic.start()
            traffic.go_on()
            first.ask()
            first.kill()
        traffic.go_on()
        # The other comes first now: counted anew, each would have the number of the other.
        options["identities"] = identities(tmp_path, another, mine)
        with agent("mesh_filter", options, tmp_path) as second:
            assert second.said["degraded"] == []
            traffic.go_on()
            traffic.stop()
            row = second.rows()[WHO]
            # Dropped, all of them, also while nobody was there and while one took over from the other.
            assert (row["receive_packets"], row["drops_"]) == (traffic.sent, traffic.sent)
            second.ask("release", identity=WHO)
            second.stop()
    with Traffic(udp()) as more:
        options["identities"] = identities(tmp_path, another)
        # Whoever is not registered any more has no address; what he did is still there.
        with agent("mesh_filter", options, tmp_path) as third:
            more.start()
            more.go_on()
            more.stop()
            rows = third.rows()
            assert rows["unknown"]["receive_packets"] == more.sent
            assert (rows[WHO]["receive_packets"], rows[WHO]["drops_"]) == (traffic.sent, traffic.sent)
            third.kill()
    # Numbers that are given are right, whoever had them before.
    options["identities"] = identities(tmp_path, (WHO, mac, 7), (THIRD, "02:00:00:00:77:02", 8))
    with agent("mesh_filter", options, tmp_path) as fourth:
        assert fourth.said["degraded"] == []
        assert total(fourth, "receive_packets") == traffic.sent + more.sent
        fourth.stop()
    options["identities"] = identities(tmp_path, (THIRD, "02:00:00:00:77:02", 7))
    with agent("mesh_filter", options, tmp_path) as fifth:
        assert fifth.said["degraded"] == []
        assert total(fifth, "receive_packets") == traffic.sent + more.sent
        fifth.stop()
    with agent("mesh_filter", {**options, "persist": False}, tmp_path) as last:
        last.ask()
        last.stop()
    assert read_xdp(quiet.near) is None
    assert on_tc("near") == (0, 0)
    assert not pins.root().exists()
