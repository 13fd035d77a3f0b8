"""The searches that are shipped: whole, as drawn, at one cost, and followed by their study."""

from __future__ import annotations

from itertools import product

import pytest

from opdbench.files import parse_toml, read_sealed
from opdbench.leaderboards.numbers.search import best_of
from opdbench.runs.budget import total
from opdbench.studies.draws import StudySearch
from opdbench.studies.file import load_study, shipped_studies
from opdbench.studies.trials import search_of, trial_runs

SEARCHED = [path for path in shipped_studies() if "chosen" in parse_toml(path.read_text(encoding="utf-8"))]


@pytest.fixture(params=SEARCHED, ids=lambda path: path.stem)
def shipped(request):
    study = load_study(request.param)
    chosen = parse_toml(request.param.read_text(encoding="utf-8"))["chosen"]
    return study, read_sealed(request.param.parent / chosen)


def test_a_study_was_searched_for():
    assert [path.stem for path in SEARCHED] == ["conflict"]


def test_every_trial_is_there_as_it_is_drawn(shipped):
    study, found = shipped
    search = search_of(study)
    assert isinstance(search, StudySearch)
    assert (found["study"], found["split"], found["model"]) == (study.name, "validation", study.points[0].model)
    assert (found["at"], found["seeds"], found["limit"]) == (search.at, list(search.seeds), search.limit)
    trials = {(trial["method"], trial["number"]): trial for trial in found["trials"]}
    assert set(trials) == set(product(search.methods, range(search.trials)))
    for (method, number), trial in trials.items():
        assert trial["settings"] == search.drawn(study.name, method, number)
        assert set(trial["worst"]) == {str(seed) for seed in search.seeds}


def test_the_trials_are_runs_that_the_study_plans_today(shipped, tmp_path):
    study, found = shipped
    planned = {(r.trial.method, r.trial.number, str(r.seed)): r.spec for r in trial_runs(study, tmp_path, "")}
    for trial in found["trials"]:
        for seed, digest in trial["runs"].items():
            spec = planned[trial["method"], trial["number"], seed]
            assert digest == spec.digest
            assert trial["forwards"] == total(spec.config.recipe.stages, spec.config.recipe)


def test_all_trials_cost_the_same_within_a_hundredth(shipped):
    costs = [trial["forwards"] for trial in shipped[1]["trials"]]
    assert max(costs) < 1.01 * min(costs)


def test_the_best_trial_is_chosen_and_the_study_takes_it(shipped):
    study, found = shipped
    for method in search_of(study).methods:
        own = [trial for trial in found["trials"] if trial["method"] == method]
        assert all(trial["mean"] == pytest.approx(sum(trial["worst"].values()) / len(trial["worst"])) for trial in own)
        best = max(own, key=lambda trial: trial["mean"])
        assert found["chosen"][method] == best["settings"] == study.tuned[method]
        assert found["best_of"][method] == pytest.approx(best_of([trial["mean"] for trial in own]))
