"""The architecture, enforced: who may import whom, and sizes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BOTTOM = {"core", "flow", "stats", "record", "config", "recipes", "errors", "runtime", "variance_record"}
MIDDLE = {
    "walk",
    "adapters",
    "model",
    "methods",
    "trainer",
    "evaluate",
    "estimators",
    "opd",
    "opd_ppo",
    "opd_gradient",
    "moments",
    "variance",
    "registry",
    "grid",
}
SOURCES = sorted(p for d in ("opdbench", "baselines", "evaluators", "leaderboards") for p in (ROOT / d).rglob("*.py"))


def imports(path):
    """Absolute dotted names that a file imports."""
    package = ["opdbench", *path.relative_to(ROOT).with_suffix("").parts]
    package = package[1:] if package[1] == "opdbench" else package
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            stem = package[: -node.level] if node.level else []
            name = ".".join([*stem, *([node.module] if node.module else [])])
            found |= {name} | {f"{name}.{alias.name}" for alias in node.names}
    return found


def inside(names, part):
    return {n for n in names if n == part or n.startswith(part + ".")}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_layers(path):
    names, folder, stem = imports(path), path.relative_to(ROOT).parts[0], path.stem
    if path.parent.name == "opdbench" and stem in BOTTOM:
        above = MIDDLE | {"runner", "cli", "baselines", "evaluators", "leaderboards", "tiny"}
        assert not [n for m in above for n in inside(names, f"opdbench.{m}")]
    if path.parent.name == "opdbench" and stem in MIDDLE:
        above = {"runner", "cli", "baselines", "evaluators", "leaderboards"}
        assert not [n for m in above for n in inside(names, f"opdbench.{m}")]
    if folder == "baselines":
        assert not inside(names, "opdbench.evaluators") | inside(names, "opdbench.leaderboards")
    if folder == "evaluators":
        assert not inside(names, "opdbench.baselines") | inside(names, "opdbench.leaderboards")
    if folder == "leaderboards":
        heavy = {"torch", "diffusers", "transformers"}
        assert not [n for h in heavy for n in inside(names, h)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_sizes(path):
    text = path.read_text()
    assert len(text.splitlines()) < 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 60, node.name
