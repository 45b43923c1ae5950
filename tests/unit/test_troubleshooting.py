"""docs/TROUBLESHOOTING.md against the source: every error that is raised has a row, and every row an error.

The constant parts of each `XError(tried, on, why, do)` are collected from the syntax tree; `…` stands for the rest. A
row belongs to a message if its own words are in it, in their order.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import pytest

from mapek import errors
from mapek.bpf import verifier

ROOT = Path(__file__).parents[2]
ROOMS = ("bpf", "sensors", "policies", "mapek")
CLASSES = {name: one for name, one in vars(errors).items() if inspect.isclass(one)}
PAGE = (ROOT / "docs/TROUBLESHOOTING.md").read_text()

# Whose words all come from elsewhere: what they say is a row of another call, or follows from the verb handed in.
HANDED_ON = {
    "bpf/syscall.py": "explain: privileges, and errnos in the kernel's words",
    "bpf/validate.py": "findings, each with its own words: docs/VALIDATE.md",
}


Said = dict[str, list[str]]


def _alternatives(node: ast.expr, said: Said) -> list[str]:
    """What an expression can say; `said` has what the names of its function were given."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.FormattedValue(value=value):
            return _alternatives(value, said) if isinstance(value, ast.IfExp) else ["…"]
        case ast.JoinedStr(values=values):
            return ["".join(parts) for parts in product(*(_alternatives(one, said) for one in values))]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [a + b for a in _alternatives(left, said) for b in _alternatives(right, said)]
        case ast.IfExp(body=body, orelse=orelse):
            return _alternatives(body, said) + _alternatives(orelse, said)
        case ast.Name(id=name) if name in said:
            return said[name]
        case _:
            return ["…"]


def _given(function: ast.AST) -> Said:
    """What the names `why` and `do`, and their like, are given in a function."""
    said: Said = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            pairs = [(node.targets[0], node.value)]
            if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(node.targets[0].elts, node.value.elts, strict=False))
            for target, value in pairs:
                if isinstance(target, ast.Name):
                    said.setdefault(target.id, []).extend(_alternatives(value, {}))
    return said


def _messages(path: Path) -> Iterator[tuple[str, int]]:
    """Each message of a file with its line."""
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for scope in (*functions, tree):
        said = {} if scope is tree else _given(scope)
        for node in ast.walk(scope):
            if not isinstance(node, ast.Call) or len(node.args) < 3:
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in CLASSES and (scope is not tree or not _within(node, functions)):
                told = [_alternatives(one, said) for one in node.args[:4]]
                for tried, on, why, *do in product(*told):
                    yield f"{tried} {on}: {why}" + (f"; {do[0]}" if do and do[0] else ""), node.lineno


def _within(node: ast.Call, functions: Iterable[ast.FunctionDef | ast.AsyncFunctionDef]) -> bool:
    return any(one.lineno <= node.lineno <= (one.end_lineno or 0) for one in functions)


@functools.cache
def messages() -> dict[str, str]:
    """Every message, and where it is raised."""
    found = {}
    for room in ROOMS:
        # The rooms are also there by symlinks below mapek.
        paths = [path for path in (ROOT / room).rglob("*.py") if not (room == "mapek" and _linked(path))]
        for path in sorted(paths):
            where = path.relative_to(ROOT)
            found.update((message, f"{where}:{line}") for message, line in _messages(path))
    return found


def _linked(path: Path) -> bool:
    return any(parent.is_symlink() for parent in path.parents if parent != ROOT)


def table(section: str) -> list[list[str]]:
    """The rows of all tables of a section and what is below it."""
    level = section.split(" ")[0]
    text = PAGE.split(f"\n{section}\n")[1]
    text = re.split(rf"\n#{{1,{len(level)}}} ", text)[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in rows if row[0] not in ("You see", "Class", "The verifier")]


def rows() -> list[str]:
    """The first cells of all tables of messages."""
    sections = [line for line in PAGE.splitlines() if line.startswith("## ") and "classes" not in line]
    cells = [row[0].strip("|` ") for section in sections for row in table(section)]
    complaints = {row[0].strip("|` ") for row in table("### What the verifier says")}
    return [cell for cell in cells if cell not in complaints]


def covers(row: str, message: str) -> bool:
    """Whether the words of a row are in a message in their order, from its beginning unless the row begins with …"""
    plain = message.replace("`", "")
    parts = [re.escape(part.strip()) for part in row.split("…")]
    return re.match(".*".join(parts), plain) is not None


def test_every_message_has_a_row():
    cells = rows()
    lost = {
        where: message
        for message, where in messages().items()
        if not any(covers(row, message) for row in cells) and where.split(":")[0] not in HANDED_ON
    }
    assert lost == {}


def test_every_row_has_a_message():
    """Or it is what a status says."""
    source = "".join(
        path.read_text() for room in ("bpf", "sensors") for path in sorted((ROOT / room).glob("*.py"))
    )
    stale = [
        row
        for row in rows()
        if not any(covers(row, message) for message in messages())
        and max(row.split("…"), key=len).strip(" :;") not in source
    ]
    assert stale == []


def test_no_row_is_so_wide_that_it_says_nothing():
    assert [row for row in rows() if len(re.sub(r"[^A-Za-z]", "", row)) < 3] == []
    assert len(rows()) == len(set(rows()))


def test_every_class_has_a_row():
    assert {row[0].strip("|` ") for row in table("## What the classes mean")} == CLASSES.keys()


def test_links_lead_somewhere():
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in PAGE.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\(#([a-z0-9-]+)\)", PAGE)) <= anchors


@pytest.mark.parametrize("row", table("### What the verifier says"), ids=lambda row: row[0].strip("|` "))
def test_a_complaint_has_the_cure_of_the_page(row: list[str]):
    assert verifier.complaint(row[0].strip("|` ")).cure == row[1]


def test_every_known_complaint_is_on_the_page():
    assert [row[1] for row in table("### What the verifier says")] == [cure for _, cure in verifier.CURES]
