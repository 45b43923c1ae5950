"""`mapek lab open` with arguments that cannot be meant: one line, 2, and no lab."""

from __future__ import annotations

import pytest

from mapek.cli import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nodes", "3"), "lay out pair: its number of nodes is fixed; leave out --nodes or lay out a line"),
        (("--links", "0"), "lay out pair: 0 links; take 1 to 64"),
        (
            ("--topology", "triangle", "--links", "2"),
            "lay out triangle: it has one link between two nodes; leave out --links",
        ),
        (
            ("--topology", "line", "--nodes", "1"),
            "lay out line: 1 nodes, 1 links each; take 2-64 nodes, 1-3 links",
        ),
    ],
)
def test_no_such_lab(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "open", *arguments]) == 2
    assert capsys.readouterr().err == f"mapek: {message}\n"


@pytest.mark.netns
@pytest.mark.parametrize("flow", ["a", "a:a", "a:z"])
def test_no_such_flow(flow: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "open", "--flow", flow]) == 2
    assert "it needs two nodes; take two of a, b" in capfd.readouterr().err
