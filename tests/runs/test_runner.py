"""What the runner hands to a stage."""

from __future__ import annotations

import pytest

from opdbench.errors import UserError
from opdbench.recipes.config import RunConfig, load_recipe
from opdbench.registry import recipe as find_recipe
from opdbench.runs import runner
from opdbench.runs.digests import stage_digests
from opdbench.runs.spec import plan_runs


def test_a_stage_cannot_start_from_the_base_and_starts_are_in_its_digest(tmp_path):
    path = tmp_path / "x.toml"

    def digests(init):
        stages = [f"[[stage]]\nname = '{name}'\nloss = 'nft'\n" for name in "abc"]
        path.write_text("".join(stages) + f"init = '{init}'")
        return stage_digests(RunConfig(load_recipe(path, ("ocr",)), ("ocr",), "tiny", 0), "weights")

    assert len({digests(init)["c"] for init in ("", "a", "b", "a+b")}) == 4
    for init in ("base", "a+base", "a+d"):
        with pytest.raises(UserError, match="before it"):
            digests(init)


def test_a_stage_with_a_seed_of_its_own_is_one_stage_for_all_runs(tmp_path):
    path = tmp_path / "x.toml"

    def digests(run_seed, own):
        path.write_text(
            f"[[stage]]\nname = 'start'\nloss = 'nft'\n{own}\n[[stage]]\nname = 'a'\nloss = 'nft'\ninit = 'start'"
        )
        return stage_digests(RunConfig(load_recipe(path, ("ocr",)), ("ocr",), "tiny", run_seed), "weights")

    plain = {seed: digests(seed, "") for seed in (0, 1)}
    fixed = {seed: digests(seed, "seed = 0") for seed in (0, 1)}
    assert plain[0]["start"] != plain[1]["start"]
    assert fixed[0]["start"] == fixed[1]["start"] == plain[0]["start"]
    assert fixed[0]["a"] != fixed[1]["a"]
    with pytest.raises(UserError, match="seed is -2; expected at least -1"):
        digests(0, "seed = -2")


class _StopError(Exception):
    pass


class _Quiet:
    def note(self, text):
        pass

    def progress(self, *args):
        pass


@pytest.mark.parametrize(("scale", "guidance"), [("4.0", 4.0), ("0", 3.5)])
def test_teachers_guide_as_the_stage_says_or_in_their_own_way(scale, guidance, tmp_path, monkeypatch):
    seen = {}

    def trainer(stage, seed, model, evaluators, teachers, *rest):
        seen.update({task: policy.guidance for task, policy in teachers.items()})
        raise _StopError

    monkeypatch.setattr(runner, "Trainer", trainer)
    recipe = load_recipe(find_recipe("opd"), ["ocr"], [f"start.teacher_guidance={scale}"])
    (spec,) = plan_runs([RunConfig(recipe, ("ocr",), "tiny", 0)], tmp_path, True, "")
    with pytest.raises(_StopError):
        runner.Runner(spec, _Quiet()).run()
    assert seen == dict.fromkeys(("geneval", "ocr", "preference"), guidance)
