"""Study files: what they may say, and the one clear line for what they may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from opdbench.errors import UserError
from opdbench.studies.file import load_study
from opdbench.studies.grid import study_runs

STUDY = """
methods = ["opd", "multi-rl-nft"]
joint = ["multi-rl-nft"]
seeds = [3, 5]
[tasks]
a = "dial:a:area:0:0"
b = "dial:b:area:{kappa}:0"
[axis]
name = "kappa"
values = [-1, 0.5]
[settings.stage."teacher-{task}"]
updates = "{kappa}"
[[claim]]
name = "first"
better = "opd"
than = "joint"
trend = true
"""
SHIPPED = sorted(Path(__file__).resolve().parents[2].glob("leaderboards/studies/*.toml"))


def write(folder, text):
    path = folder / "s.toml"
    path.write_text(text)
    return path


def test_the_axis_is_filled_in_as_text_and_as_a_number(tmp_path):
    first, second = load_study(write(tmp_path, STUDY)).points
    assert dict(first.tasks) == {"a": "dial:a:area:0:0", "b": "dial:b:area:-1:0"}
    assert dict(second.tasks)["b"] == "dial:b:area:0.5:0"
    assert first.settings == {"stage": {"teacher-{task}": {"updates": -1}}}
    assert second.settings["stage"]["teacher-{task}"]["updates"] == 0.5


def test_a_point_has_its_own_settings_over_the_common_ones(tmp_path):
    text = STUDY.replace("values = [-1, 0.5]", "").replace('updates = "{kappa}"', "updates = 7\nimages = 2")
    points = '[[axis.point]]\nvalue = 1\nmodel = "tiny@2"\nsettings.stage."teacher-{task}".updates = 9\n'
    text = text.replace("[settings", f"{points}[[axis.point]]\nvalue = 2\n[settings")
    first, second = load_study(write(tmp_path, text)).points
    assert first.settings["stage"]["teacher-{task}"] == {"updates": 9, "images": 2}
    assert second.settings["stage"]["teacher-{task}"] == {"updates": 7, "images": 2}
    assert (first.model, second.model) == ("tiny@2", "tiny")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = [3, 5]", "seeds = [3, 3]", r"seeds is \[3, 3\]; expected numbers from 0 on, each once"),
        ("seeds = [3, 5]", "seed = [3]", "unknown key of study 's.toml' 'seed'.*did you mean 'seeds'"),
        ("values = [-1, 0.5]", "values = []", "has no values"),
        ("values = [-1, 0.5]", "values = [1, 1]", "the value 1 twice"),
        ("values = [-1, 0.5]", "values = [0, 0.0]", "the value 0 twice"),
        ("values = [-1, 0.5]", "values = ['a']", "the value 'a'; expected a number"),
        ("trend = true", "", "either `trend = true` or `at` a value"),
        ("trend = true", "at = 3", "is at 3, which is no value of the axis"),
        ('better = "opd"', 'better = "odp"', "unknown method of claim 'first' 'odp'.*did you mean 'opd'"),
        ('joint = ["multi-rl-nft"]', "", "names 'joint', but the study has no list"),
        ('name = "kappa"', 'name = "kappa"\nscale = -1', "scale is -1; expected a value of an axis whose points share"),
        ("[tasks]", "[tasks", "is not TOML"),
    ],
)
def test_bad_studies_are_one_clear_line(old, new, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load_study(write(tmp_path, STUDY.replace(old, new)))


def test_runs_go_point_by_point_and_share_what_does_not_depend_on_the_axis(tmp_path):
    text = STUDY.replace('updates = "{kappa}"', "updates = 2")
    runs = study_runs(load_study(write(tmp_path, text)), tmp_path, "")
    order = [(run.value, run.seed, run.method) for run in runs]
    assert order[:4] == [(-1, 3, "start"), (-1, 3, "opd"), (-1, 3, "multi-rl-nft"), (-1, 5, "start")]
    assert [value for value, *_ in order] == [-1] * 6 + [0.5] * 6
    opd = {run.value: run.spec.stages for run in runs if run.method == "opd" and run.seed == 3}
    shared = {name for name in opd[-1] if opd[-1][name] == opd[0.5][name]}
    assert shared == {"start", "teacher-a"}
    assert len({run.spec.digest for run in runs}) == len(runs)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_can_be_planned(path, tmp_path):
    study = load_study(path)
    assert study.name == path.stem
    assert len(study.seeds) >= 2
    assert study_runs(study, tmp_path, "", seeds=[0])
