"""Move runs of schema 1 to schema 2: `python -m opdbench.runs.migrate FOLDER`.

In schema 1 a stage's loss was called its method. The word is in a stage's settings, so its digest changes with it, and
with the digest the names of the folders that hold stages and runs. Nothing that was measured is changed. The command
can be repeated; what it does not understand stays as it is, and is named.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opdbench.core import Sampler
from opdbench.files import read_sealed, write_sealed
from opdbench.recipes.config import Recipe, RunConfig, Stage
from opdbench.records.digest import FORMAT, canonical, digest
from opdbench.records.run import SCHEMA
from opdbench.runs.digests import BASE, run_digests, stage_digests

BASE_SAMPLERS = (Sampler("ode", 10, 0.0, 3.5), Sampler("ode", 40, 0.0, 4.5))
"""Samplers of the base model in the shipped recipes, for stages whose run is not there."""


def main() -> None:
    """Migrate the folders that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="folders of runs, as given to --out")
    for folder in parser.parse_args().folders:
        for line in migrate(folder):
            print(line)


def migrate(folder: Path) -> Iterator[str]:
    """Migrate the runs and stages in `folder`; yields a line for each."""
    for path in sorted(folder.glob("*/record.json")):
        yield f"{path.parent.name}: {_migrate_record(path)}"
    names = _stage_names(folder)
    for path in sorted(folder.glob("stages/*/stage.json")):
        yield f"stages/{path.parent.name}: {_migrate_stage(path, names)}"


def read_stage(raw: Mapping[str, Any]) -> Stage:
    """A stage from its settings in a record of either schema."""
    values = {("loss" if key == "method" else key): value for key, value in raw.items()}
    for key in ("sampler", "eval_sampler"):
        values[key] = Sampler(**values[key])
    for key in ("tasks", "targets"):
        values[key] = tuple(values[key])
    for key in ("teachers", "rewards"):
        values[key] = tuple(tuple(pair) for pair in values.get(key, ()))
    return Stage(**values)


def read_config(raw: Mapping[str, Any]) -> RunConfig:
    """A run's configuration from its record of either schema."""
    recipe = dict(raw["recipe"])
    recipe["base_sampler"] = Sampler(**recipe["base_sampler"])
    recipe["stages"] = tuple(map(read_stage, recipe["stages"]))
    recipe["judges"] = tuple(tuple(pair) for pair in recipe.get("judges", ()))
    return RunConfig(**{**raw, "recipe": Recipe(**recipe), "tasks": tuple(raw["tasks"])})


def _migrate_record(path: Path) -> str:
    raw = read_sealed(path)
    if raw.get("schema") != 1:
        return f"schema {raw.get('schema')}, left as it is"
    config, weights, before = read_config(raw["config"]), raw["model"]["hash"], raw["digest"]
    names = stage_digests(config, weights)
    for stage in raw["config"]["recipe"]["stages"]:
        stage["loss"] = stage.pop("method")
    for stage in raw["stages"]:
        stage["loss"], stage["digest"] = stage.pop("method"), names[stage["name"]]
    raw["digest"], raw["group"] = run_digests(config, weights)
    raw["schema"] = SCHEMA
    write_sealed(path, raw)
    folder = path.parent
    if folder.name.endswith(before[:8]):
        folder.rename(folder.with_name(folder.name.removesuffix(before[:8]) + raw["digest"][:8]))
    return f"{before} is now {raw['digest']}"


def _stage_names(folder: Path) -> dict[str, str]:
    """New digest of each stage by its old one, worked out from the stages themselves.

    A stage names those that it builds on; which digests they have is found by trying until the old digest fits.
    """
    stages = {path.parent.name: read_sealed(path) for path in folder.glob("stages/*/stage.json")}
    renamed = {digest(sampler): digest(sampler) for sampler in BASE_SAMPLERS}
    known: dict[str, list[str]] = {BASE: list(renamed)}
    names: dict[str, str] = {}
    for _ in stages:
        for old, raw in stages.items():
            if old in names or "method" not in raw["stage"]:
                continue
            stage = read_stage(raw["stage"])
            wanted = [name for _, name in stage.teachers] + list(stage.starts)
            for needs in itertools.product(*(known.get(name, []) for name in wanted)):
                if digest([FORMAT, _old_words(stage), raw["seed"], raw["model"], list(needs)]) == old:
                    new = digest([FORMAT, stage, raw["seed"], raw["model"], [renamed[need] for need in needs]])
                    names[old] = renamed[old] = new
                    known.setdefault(stage.name, []).append(old)
                    break
    return names


def _old_words(stage: Stage) -> dict[str, Any]:
    return {("method" if key == "loss" else key): value for key, value in canonical(stage).items()}


def _migrate_stage(path: Path, names: Mapping[str, str]) -> str:
    raw, folder = read_sealed(path), path.parent
    if "method" not in raw["stage"]:
        return "left as it is"
    if folder.name not in names:
        return "not understood, left as it is: what it builds on is not here"
    raw["stage"]["loss"], raw["digest"] = raw["stage"].pop("method"), names[folder.name]
    write_sealed(path, raw)
    folder.rename(folder.with_name(names[folder.name]))
    return f"is now {names[folder.name]}"


def migrate_references(path: Path, digests: Mapping[str, str]) -> None:
    """Rename the loss of each stage, and the digests that changed, in a file of reference values."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    for group in raw["groups"]:
        config: dict[str, Any] = group["config"]
        for key in [key for key in config if key.startswith("recipe.stages.") and key.endswith(".method")]:
            config[key.removesuffix("method") + "loss"] = config.pop(key)
        group["digest"] = digests.get(group["digest"], group["digest"])
    path.write_text(json.dumps(raw, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
