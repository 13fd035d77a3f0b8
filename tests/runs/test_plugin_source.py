"""A plug-in whose code was changed: another digest, another column, named in the record."""

from __future__ import annotations

import json
import sys

import pytest
from command import opdbench

from opdbench.recipes.config import RunConfig, load_recipe
from opdbench.records.run import RunRecord
from opdbench.runs.spec import plan_runs

JUDGE = """
from opdbench.core import Prompt, Score

class Small:
    name, version, backend, unit, range, higher_is_better = "small", 1, "test", "share", (0.0, 1.0), True

    def __init__(self, source=None, setting=""):
        pass

    def prompts(self, split):
        return [Prompt(f"small/{k}", "a cat", "small", {"target": "CAT"}) for k in range(6)]

    def check(self, prompt):
        pass

    def group(self, prompt):
        return ""

    def score(self, images, prompts):
        return [Score(VALUE, VALUE) for _ in images]
"""
LOSS = """
from dataclasses import dataclass
from opdbench.baselines.sft import SFT

@dataclass(frozen=True)
class Tired(SFT):
    scale: float = VALUE
"""
RECIPE = """description = "the base model on one judge"
[judges]
small = "small"
[base_sampler]
name = "ode"
steps = 1
guidance = 1.0
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Installs a package with a judge and a loss; called with another value, it changes their code."""
    site = tmp_path / "site"
    about = site / "odd_parts-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-parts\nVersion: 1\n")
    entries = ["[opdbench.judges]", "small = odd_parts:Small", "[opdbench.losses]", "tired = odd_parts:Tired"]
    (about / "entry_points.txt").write_text("\n".join([*entries, ""]))
    monkeypatch.syspath_prepend(site)

    def write(value):
        (site / "odd_parts.py").write_text((JUDGE + LOSS).replace("VALUE", str(value)))
        sys.modules.pop("odd_parts", None)

    yield write
    sys.modules.pop("odd_parts", None)


def loaded_again():
    from opdbench.runs import runner

    runner._loaded.cache_clear()  # as a new process would


def test_a_changed_judge_is_another_run_in_another_column(plugin, tmp_path):
    (tmp_path / "only.toml").write_text(RECIPE)
    words = [
        "run",
        "--config",
        tmp_path / "only.toml",
        "--tasks",
        "small",
        "--limit",
        "2",
        "--jobs",
        "1",
        "--out",
        tmp_path / "runs",
    ]
    cells = []
    for value in (0.25, 0.75):
        plugin(value)
        loaded_again()
        done = opdbench(*words)
        assert done.returncode == 0, done.stderr
        records = map(RunRecord.load, (tmp_path / "runs").glob("*/record.json"))
        (record,) = (r for r in records if r.policies[0].cells[0].key not in {cell.key for cell in cells})
        assert list(record.plugins) == ["judges/small"]
        assert record.plugins["judges/small"].startswith("odd-parts 1 ")
        assert f"small@1[test, {record.plugins['judges/small']}]" in record.policies[0].cells[0].key
        cells.append(record.policies[0].cells[0])
    assert [cell.estimate.value for cell in cells] == [0.25, 0.75]
    assert opdbench("runs", "verify", tmp_path / "runs").returncode == 0


@pytest.mark.parametrize("setting", ["", ":left"])
@pytest.mark.parametrize("on", ["model", "pictures"])
def test_a_changed_judge_scores_again_under_another_key(setting, on, plugin, tmp_path):
    if on == "model":
        words = ["--model", "tiny", "--limit", "2", "--steps", "1"]
    else:
        from PIL import Image

        Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
        (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "a.png", "prompt": "a cat"}) + "\n")
        words = ["--pictures", tmp_path / "rows.jsonl"]
    rows = []
    for value in (0.25, 0.75):
        plugin(value)
        done = opdbench("eval", *words, "--tasks", f"small{setting}", "--out", tmp_path / "runs", "--format", "json")
        assert done.returncode == 0, done.stderr
        rows.append(json.loads(done.stdout)[0])
    assert [row["value"] for row in rows] == [0.25, 0.75]
    assert rows[0]["key"] != rows[1]["key"]


def test_a_changed_loss_is_another_stage_and_run(plugin, tmp_path):
    recipe = (
        RECIPE + '[[stage]]\nname = "s"\nloss = "tired"\ntasks = ["ocr"]\nteacher = "base"\nupdates = 1\nprompts = 2\n'
    )
    (tmp_path / "tired.toml").write_text(recipe.replace('small = "small"', 'ocr = "ocr"'))
    specs = []
    for value in (0.25, 0.75):
        plugin(value)
        config = RunConfig(load_recipe(tmp_path / "tired.toml", ("ocr",)), ("ocr",), "tiny", 0)
        specs += plan_runs([config], tmp_path, False, "")
    assert [list(spec.plugins) for spec in specs] == [["losses/tired"]] * 2
    assert specs[0].stages["s"] != specs[1].stages["s"]
    assert len({spec.digest for spec in specs}) == len({spec.group for spec in specs}) == 2
