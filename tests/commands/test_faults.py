"""Mistakes and odd inputs that once hung, crashed, passed in silence or printed pages."""

from __future__ import annotations

import io
import json
import sys
import textwrap

import pytest
from command import opdbench
from records import make_run
from rich.console import Console as Rich

from opdbench import registry
from opdbench.commands import doctor_checks
from opdbench.commands.plan import cost_rows
from opdbench.commands.terminal import print_runs
from opdbench.console.progress import BarConsole
from opdbench.leaderboards.numbers.runs import load_runs


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "--set", "student.prompts=1000000", "--dry-run"], "draws 1,000,000 pictures per update"),
        (["run", "--preset", "sd35", "--dry-run"], "preset 'sd35' does not fit --model tiny"),
        (["run", "--method", "sft", "--config", "mine.toml"], "--config and --method 'sft' each name a recipe"),
        (["variance", "--side", "7"], "side is 7; expected a multiple of 2, at most 8"),
        (["variance", "--side", "64"], "side is 64; expected a multiple of 2, at most 8"),
    ],
)
def test_bad_input_is_one_clear_line(args, message, tmp_path):
    done = opdbench(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not done.stdout


def test_a_plan_of_many_runs_is_short_honours_json_and_writes_nothing(tmp_path):
    args = ["run", "--method", "opd,opd-sde,base", "--seeds", "0-1", "--dry-run", "--out", tmp_path / "runs"]
    text = opdbench(*args)
    assert text.returncode == 0, text.stderr
    # A line of names, one per method, three of totals, and the hours at the rate of the stages that ship.
    assert len(text.stdout.splitlines()) == 1 + 3 + 3 + 1
    assert text.stdout.splitlines()[-1].endswith("forwards per second (finished stages)")
    plan = json.loads(opdbench(*args, "--format", "json").stdout)
    assert [(run["method"], run["seed"]) for run in plan["runs"]] == [
        (method, seed) for seed in (0, 1) for method in ("opd", "opd-sde", "base")
    ]
    stages = {stage["digest"]: stage for run in plan["runs"] for stage in run["stages"]}
    assert plan["forwards"]["distinct"] == sum(stage["forwards"] for stage in stages.values())
    assert plan["forwards"]["per_run"] > plan["forwards"]["distinct"] > plan["forwards"]["to_train"] > 0
    assert f"{plan['forwards']['distinct']:,} forwards with each shared stage once" in text.stdout
    assert not (tmp_path / "runs").exists()


PLUGIN = """
class Small:
    name, version, backend, unit, range, higher_is_better = "small", 1, "test", "share", (0.0, 1.0), True

    def prompts(self, split):
        from opdbench.core import Prompt
        return [Prompt(f"small/{k}", "a cat", "small", {"target": "CAT"}) for k in range(6)]

    def check(self, prompt):
        pass

    def group(self, prompt):
        return ""

    def score(self, images, prompts):
        from opdbench.core import Score
        return [Score(0.5, 0.5) for _ in images]


class Broken:
    name = "broken"


def explodes():
    raise RuntimeError("no such weights")
"""


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """Installs evaluator plug-ins by name from the module above."""
    (tmp_path / "odd_judges.py").write_text(textwrap.dedent(PLUGIN))
    about = tmp_path / "odd_judges-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-judges\nVersion: 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry._warned.cache_clear()

    def install(**classes):
        lines = [f"{name} = odd_judges:{value}" for name, value in classes.items()]
        (about / "entry_points.txt").write_text("\n".join(["[opdbench.evaluators]", *lines, ""]))

    yield install
    registry._warned.cache_clear()
    sys.modules.pop("odd_judges", None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("Broken", "evaluator 'broken' lacks version, backend"),
        ("explodes", "evaluator 'broken' cannot be made: RuntimeError: no such weights"),
        ("Absent", "cannot load evaluator 'broken'"),
        ("Small", "evaluator 'broken' calls itself 'small'"),
    ],
)
def test_a_broken_plugin_fails_only_what_names_it(value, message, plugins, tmp_path):
    plugins(broken=value)
    done = opdbench(
        *["run", "--method", "base", "--limit", "1", "--set", "base_sampler.steps=1", "--jobs", "1"],
        *["--out", tmp_path / "runs", "--format", "json"],
    )
    assert done.returncode == 0, done.stderr
    assert {row["task"] for row in json.loads(done.stdout)["rows"]} == {"geneval", "ocr", "preference"}
    assert done.stderr.count(f"warning: {message}") == 1
    named = opdbench("eval", "--tasks", "broken", "--limit", "1", "--out", tmp_path / "runs")
    assert (named.returncode, message in named.stderr) == (2, True)
    row = doctor_checks.check_suite("broken")
    assert (row["ok"], message in row["what"]) == (False, True)


def test_the_doctor_takes_a_plugin_with_few_prompts(plugins):
    plugins(small="Small")
    row = doctor_checks.check_suite("small")
    assert row == {
        "name": "evaluator small",
        "ok": False,
        "what": "0 of 6 rendered pictures score above a picture of another prompt",
    }


def test_costs_of_many_runs_are_one_table(tmp_path, capsys):
    runs = load_runs([make_run(tmp_path, method, seed) for method in ("opd", "sft") for seed in range(3)])
    print_runs(runs)
    text = capsys.readouterr().out
    assert text.count("peak MiB") == 1
    costs = [{"stage": "a", "reused": k == 0, "forwards": k, "images": 0, "seconds": k, "peak_mib": k} for k in (0, 4)]
    rows = cost_rows([("opd", [row]) for row in costs])
    assert [(r["runs"], r["reused"], r["forwards"], r["seconds"], r["peak_mib"]) for r in rows] == [(2, 1, 2, 2, 4)]


def test_times_are_whole_at_eighty_columns():
    bars, out = BarConsole(), io.StringIO()
    bars._bars.live.console = bars._rich = Rich(file=out, width=80, force_terminal=False)
    bars._bars.add_task("evaluate teacher-geneval on preference", total=200, figures="loss 0.01234 reward 0.5678")
    line = out.getvalue() or _rendered(bars, 80)
    assert "0:00:00" in line
    assert "-:--:--" in line
    assert max(map(len, line.splitlines())) <= 80


def _rendered(bars, width):
    out = io.StringIO()
    Rich(file=out, width=width, force_terminal=False).print(bars._bars.get_renderable())
    return out.getvalue()


def test_list_describes_and_filters():
    everything = json.loads(opdbench("list", "--format", "json").stdout)
    assert set(everything) == {"methods", "losses", "tasks", "judges"}
    assert all(about["description"] for entries in everything.values() for about in entries.values())
    assert "beta=1.0" in everything["losses"]["nft"]["options"]
    some = opdbench("list", "methods", "--match", "multi-*").stdout.splitlines()
    assert some[0] == "methods"
    assert {line.split()[0].partition("-")[0] for line in some[1:]} == {"multi"}


def test_runs_are_removed_and_only_unused_stages_collected(tmp_path):
    kept, gone = (make_run(tmp_path, method) for method in ("opd", "sft"))
    used = load_runs([kept])[0].record.stages[0].digest
    for name in (used, "unused"):
        (tmp_path / "stages" / name).mkdir(parents=True)
        (tmp_path / "stages" / name / "stage.json").write_text("{}")
    (tmp_path / "stages" / "training").mkdir()  # without stage.json: not finished
    listed = opdbench("runs", "gc", tmp_path)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["unused", "1"]
    assert (tmp_path / "stages" / "unused").exists()
    assert opdbench("runs", "gc", tmp_path, "--yes").returncode == 0
    assert sorted(path.name for path in (tmp_path / "stages").iterdir()) == sorted([used, "training"])
    assert opdbench("runs", "rm", gone, tmp_path / "absent", "--yes").returncode == 2
    assert gone.exists()
    assert opdbench("runs", "rm", gone, "--yes").returncode == 0
    assert (kept.exists(), gone.exists()) == (True, False)
