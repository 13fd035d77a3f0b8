"""The architecture, enforced: who may import whom, absolute imports, and sizes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("opdbench", "baselines", "evaluators", "leaderboards")
FLOORS = (
    {"errors"},
    {"core", "files", "environment", "stats"},
    {"locks", "console"},
    {"registry"},
    {"recipes", "records", "prompt_sets"},
    {"parallel"},
    {"tiny"},
    {"diffusion"},
    {"evaluators"},
    {"methods"},
    {"opd"},
    {"baselines"},
    {"evaluation"},
    {"runs"},
    {"variance", "studies"},
    {"validity"},
    {"leaderboards"},
    {"api"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
"""Rooms from the ground up. A module imports its own floor and those below it, and belongs to exactly one room."""
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate"}
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def room(path):
    """The room of a file: a folder or module of `opdbench/`, or one of the other three top-level folders."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "opdbench" else parts[0]


def imports(path):
    """Absolute dotted names that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import in line {node.lineno}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_only_go_down(path):
    here = room(path)
    if path == ROOT / "opdbench" / "__init__.py":
        return
    assert here in FLOOR, f"{here} is on no floor; add it to FLOORS"
    for name in imports(path):
        if name.startswith("opdbench."):
            assert FLOOR[name.split(".")[1]] <= FLOOR[here], name
    if here == "leaderboards":
        assert not [name for name in imports(path) if name.split(".")[0] in HEAVY]


def test_every_room_exists():
    rooms = {room(path) for path in SOURCES} - {"__init__"}
    assert rooms == set(FLOOR)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_sizes(path):
    text = path.read_text()
    assert len(text.splitlines()) < 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 60, node.name
