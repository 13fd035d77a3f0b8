"""The commands `opdbench list` and `opdbench data`: what is installed, and what can be downloaded."""

from __future__ import annotations

import ast
from fnmatch import fnmatchcase
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from opdbench.commands.options import FormatOption
from opdbench.errors import UserError

Kind = Literal["methods", "losses", "tasks", "judges"]
GROUPS = {"losses": "losses", "tasks": "evaluators", "judges": "judges"}
"""Entry-point group `opdbench.<group>` of each kind."""


def list_(
    kind: Annotated[Kind | None, typer.Argument(help="show only methods, losses, tasks or judges")] = None,
    match: Annotated[str, typer.Option(help="show only names that match, e.g. 'multi-*'")] = "*",
    format_: FormatOption = "table",
) -> None:
    """List the installed methods, losses (with their options), tasks and judges."""
    from opdbench.commands.terminal import print_json

    kinds: list[Kind] = [kind] if kind else ["methods", "losses", "tasks", "judges"]
    installed = {
        name: {entry: text for entry, text in _entries(name).items() if fnmatchcase(entry, match)} for name in kinds
    }
    if format_ == "json":
        print_json(installed)
        return
    for name, entries in installed.items():
        print(name)
        for entry, about in entries.items():
            print(f"  {entry:22} {about['description']}".rstrip())
            if about["options"]:
                print(f"  {'':22} options: {', '.join(about['options'])}")


def _entries(kind: Kind) -> dict[str, dict[str, Any]]:
    """Description and options of each entry of a kind, by name; no plug-in is imported."""
    from opdbench import registry

    if kind == "methods":
        from opdbench.recipes.config import load_recipe

        known = registry.recipes()
        plans = {name: load_recipe(path, ("ocr", "geneval"), (), known) for name, path in sorted(known.items())}
        return {name: {"description": plan.description, "options": []} for name, plan in plans.items()}
    points = sorted(entry_points(group=f"opdbench.{GROUPS[kind]}"), key=lambda point: point.name)
    return {point.name: _described(point, kind == "losses") for point in points}


def _described(point: EntryPoint, options: bool) -> dict[str, Any]:
    """First line of the docstring of a class or function, and the fields of a class, from its source."""
    try:
        spec = find_spec(point.module)
        source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
        module = ast.parse(source)
    except (ImportError, OSError, SyntaxError, ValueError):
        return {"description": f"cannot be read: {point.value}", "options": []}
    makers = [node for node in module.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    nodes = [node for node in makers if node.name == point.attr]
    texts = [ast.get_docstring(node) for node in (*nodes, module)]
    text = next((text for text in texts if text), "")
    fields = [field for node in nodes if options for field in node.body if isinstance(field, ast.AnnAssign)]
    names = [f"{ast.unparse(f.target)}={ast.unparse(f.value)}" for f in fields if f.value is not None]
    return {"description": text.splitlines()[0] if text else "", "options": names}


def data(
    action: Annotated[
        Literal["pull", "list"], typer.Argument(help="pull: download prompt sets; list: show which are downloaded")
    ],
    names: Annotated[list[str] | None, typer.Argument(help="prompt sets")] = None,
) -> None:
    """Download the prompt sets of real benchmarks, pinned by revision and sha256."""
    from opdbench import prompt_sets as sets

    if action == "list":
        for name, source in sets.SETS.items():
            state = "local" if sets.local_path(name).exists() else "remote"
            print(f"{name:10} {state:8} {source.repository}@{source.revision[:7]} {source.path}, {source.licence}")
        return
    if not names:
        raise UserError(f"no prompt set given; expected one or more of {', '.join(sets.SETS)}")
    for name in names:
        print(sets.pull(name))
