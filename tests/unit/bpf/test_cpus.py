"""How many CPUs there may be, and up to which number."""

from __future__ import annotations

import pytest

from mapek.bpf import cpus


@pytest.mark.parametrize(
    ("text", "count", "slots"),
    [
        ("0", 1, 1),
        ("0-1", 2, 2),
        ("0-191", 192, 192),
        ("0,2-3", 3, 4),
        ("0,2,4,6", 4, 7),
        ("0-3,8-11", 8, 12),
        ("1-3", 3, 4),
    ],
)
def test_cpus(tmp_path, monkeypatch, text, count, slots):
    (tmp_path / "possible").write_text(text + "\n")
    monkeypatch.setattr(cpus, "POSSIBLE", tmp_path / "possible")
    assert (cpus.possible_cpus(), cpus.cpu_slots()) == (count, slots)
