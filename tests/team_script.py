"""What each process of `test_team.py` runs: small stages of three methods, and an evaluation."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from opdbench import evaluate, trainer
from opdbench.config import Stage
from opdbench.core import Meter, Sampler
from opdbench.errors import UserError
from opdbench.model import Model
from opdbench.registry import evaluator
from opdbench.runtime import write_json
from opdbench.team import join

TASKS = ("ocr", "geneval")
STAGES = (
    Stage("opd", "opd", TASKS, 3, 6, sampler=Sampler("ode", 2), rank=4, alpha=8),
    Stage("nft", "nft", TASKS, 2, 4, 2, sampler=Sampler("ode", 3), rank=4, alpha=8),
    Stage("flow-grpo", "flow-grpo", TASKS, 2, 4, 2, sampler=Sampler("flow-sde", 3, 0.7), rank=4, alpha=8),
)


class Mortal(trainer.Trainer):
    """Ends its process in the second update."""

    def update(self, update):
        """One update, or the end."""
        if update == 1:
            os._exit(9)
        return super().update(update)


def main() -> None:
    """Train into the folder that is given; with `--die NAME` process 1 ends in that stage's second update."""
    folder, dies = Path(sys.argv[1]), sys.argv[-1] if "--die" in sys.argv else ""
    team, model = join(), Model()
    trainer.CHECKPOINT_EVERY = 1
    evaluators = {task: evaluator(task) for task in TASKS}
    teachers = {task: model.frozen(None, 2.0) for task in TASKS}
    for stage in STAGES:
        place = folder / stage.name
        place.mkdir(exist_ok=True)
        kind = Mortal if stage.name == dies and not team.leads else trainer.Trainer
        one = kind(stage, 0, model, evaluators, teachers, place, team=team)
        adapter = one.run(lambda line: None)
        if team.leads:
            adapter.save(place / "adapter.safetensors")
            meter = one.state.meter
            about = {"forwards": meter.forwards, "images": meter.images, "loss": one.state.log[-1]["loss"]}
            write_json(place / "about.json", about)
        team.wait()
    evaluate.BATCH = 8
    policy, prompts = teachers["ocr"], evaluators["ocr"].prompts("test")[:10]
    scored = (model, policy, Sampler("ode", 2), evaluators["ocr"], prompts, folder / "rows.jsonl", Meter())
    evaluate.evaluate(*scored, lambda done, total: None, team)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
