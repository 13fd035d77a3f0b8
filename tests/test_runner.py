"""What the runner hands to a stage."""

from __future__ import annotations

import pytest

from opdbench import runner
from opdbench.config import RunConfig, load_recipe
from opdbench.registry import recipe as find_recipe


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
    with pytest.raises(_StopError):
        runner.Runner(RunConfig(recipe, ("ocr",), "tiny", 0), tmp_path, True, "", _Quiet()).run()
    assert seen == dict.fromkeys(("geneval", "ocr", "preference"), guidance)
