"""Validity card of the second edition: `python -m opdbench.validity.card --work DIR`.

It trains `start`, one teacher for each task and three prompt-blind controls, scores them all on the test prompts,
and writes `card.json`:

- V1: what RL on sharpness, contrast or saturation alone buys of each task, in units of the task's own gain;
- V2: what each teacher buys of each task, in the same units;
- V3: cosines between the teachers' displacements of the weights from `start`;
- V4: scores of the base model, `start`, the teachers, and of real renderings.

A gain is a policy's score less `start`'s, on the same prompts and noise; its standard error is clustered by
prompt. Training is kept in `--work`: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # must precede torch: spinning starves the other core

import torch

from opdbench.core import Evaluator, Sample
from opdbench.diffusion.adapters import Adapter
from opdbench.diffusion.model import Model
from opdbench.files import write_json
from opdbench.registry import evaluator
from opdbench.stats import estimate
from opdbench.tiny.second.faults import draw
from opdbench.validity.policies import CONTROLS, GUIDANCE, RL, START, TASKS, Policies
from opdbench.validity.text import write_into

log = logging.getLogger(__name__)

PARTS = ("start", "teachers", *CONTROLS)

SHIPPED = Path(str(files("opdbench.tiny.second")))
"""Folder of the second edition, with `card.json` and the model; the card is outside the model's, whose files are
what identifies its weights."""


def gain(rows: Sequence[Sample], base: Sequence[Sample]) -> tuple[float, float]:
    """Mean difference of two policies' rows, and its standard error clustered by prompt."""
    before = {(row.prompt, row.index): row.value for row in base}
    pairs = [(row, before[row.prompt, row.index]) for row in rows]
    mean_gain = estimate(
        [replace(row, value=row.value - old) for row, old in pairs if row.value is not None and old is not None]
    )
    assert mean_gain.value is not None
    assert mean_gain.se is not None
    return mean_gain.value, mean_gain.se


def shares(
    policies: Mapping[str, Mapping[str, Sequence[Sample]]],
    start: Mapping[str, Sequence[Sample]],
    own: Mapping[str, Mapping[str, Sequence[Sample]]],
) -> dict[str, dict[str, list[float]]]:
    """For each policy and task, gain over that task's own teacher's gain: share, and standard error.

    Args:
        policies: rows by policy and task.
        start: rows of `start` by task.
        own: rows of each task's own teacher, by task.
    """
    shares: dict[str, dict[str, list[float]]] = {}
    for name, by_task in policies.items():
        shares[name] = {}
        for task, rows in by_task.items():
            (whole, error), (bought, spread) = gain(own[task][task], start[task]), gain(rows, start[task])
            share = bought / whole
            # Delta method, as if both gains were independent; the denominator's error matters where the share is large.
            se = (spread**2 + (share * error) ** 2) ** 0.5 / abs(whole)
            shares[name][task] = [round(share, 4), round(se, 4)]
    return shares


def displacement(adapter: Adapter, start: Adapter) -> torch.Tensor:
    """Change of all adapted weights from `start`, in one vector."""
    parts = []
    for name in sorted(adapter.tensors):
        if name.endswith(".lora_A.weight"):
            up = name.replace(".lora_A.", ".lora_B.")
            after, before = (a.tensors[up] @ a.tensors[name] for a in (adapter, start))
            parts.append((after - before).flatten())
    return torch.cat(parts)


def cosines(adapters: Mapping[str, Adapter], start: Adapter) -> dict[str, float]:
    """Cosine of every two displacements, by `first/second`."""
    moves = {name: displacement(adapter, start) for name, adapter in adapters.items()}
    names = list(moves)
    return {
        f"{a}/{b}": round(float(torch.cosine_similarity(moves[a], moves[b], dim=0)), 4)
        for k, a in enumerate(names)
        for b in names[k + 1 :]
    }


def score_renderings(judge: Evaluator, split: str = "test") -> float:
    """Score of real renderings of a task's prompts, one each."""
    prompts = judge.prompts(split)  # type: ignore[arg-type]
    kinds = ["preference" if p.task == "preference" else p.spec.get("tag", "ocr") for p in prompts]
    pictures = [draw(kind, p.spec, Random(p.id)) for kind, p in zip(kinds, prompts, strict=True)]
    values = [score.value for score in judge.score(pictures, prompts)]
    return sum(v for v in values if v is not None) / len(values)


def summary(rows: Sequence[Sample]) -> dict[str, Any]:
    """Score, standard error, and the tags' scores if there are any."""
    score = estimate(rows)
    groups = sorted({row.group for row in rows} - {""})
    tags = {group: estimate([row for row in rows if row.group == group]).value for group in groups}
    return {"value": score.value, "se": score.se, "n": score.n, **({"tags": tags} if tags else {})}


def make_card(policies: Policies, parts: Sequence[str]) -> dict[str, Any]:
    """Train and score what `parts` names of `start`, `teachers` and the controls, each of which needs those before."""
    judges = {task: policies.evaluators[task] for task in TASKS}
    card: dict[str, Any] = {"guidance": GUIDANCE, "seed": policies.seed, "images": policies.images, "V4": {}}
    card["V4"]["renderings"] = {task: score_renderings(judge) for task, judge in judges.items()}

    def score(name: str, adapter: Adapter | None, guidance: float = 1.0) -> dict[str, list[Sample]]:
        rows = {task: policies.score(adapter, guidance, task) for task in TASKS}
        card["V4"][name] = {task: summary(samples) for task, samples in rows.items()}
        log.info("%s %s", name, {task: round(card["V4"][name][task]["value"], 3) for task in TASKS})
        return rows

    score("base", None, GUIDANCE)
    score("base without guidance", None)
    if "start" not in parts:
        return card
    start = policies.train(START)
    before = score("start", start)
    if "teachers" not in parts:
        return card
    adapters = {task: policies.train(replace(RL, name=f"teacher-{task}", tasks=(task,)), start) for task in TASKS}
    taught = {task: score(f"teacher-{task}", adapter) for task, adapter in adapters.items()}
    card["V2"] = shares(taught, before, taught)
    card["V3"] = cosines(adapters, start)
    wanted = [name for name in CONTROLS if name in parts]
    blind = {name: score(name, policies.train(replace(RL, name=name, tasks=(name,)), start)) for name in wanted}
    if blind:
        card["V1"] = shares(blind, before, taught)
    return card


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for stages and rows")
    parser.add_argument("--model", default="tiny@2", help="the world's model, or the folder of a candidate")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to train and score besides the base model")
    parser.add_argument("--images", type=int, default=2, help="most pictures of a prompt that are scored")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--publish", action="store_true", help="into the shipped model's README and card.json, too")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    judges = {task: evaluator(f"{task}-tiny2") for task in TASKS}
    judges |= {name: evaluator(f"control:{name}") for name in CONTROLS}
    card = make_card(
        Policies(Model(args.model, "cpu"), judges, args.work, args.seed, args.images), args.parts.split(",")
    )
    write_json(args.work / "card.json", card)
    if args.publish:
        write_json(SHIPPED / "card.json", card)
        write_into(SHIPPED / "model" / "README.md", card)
    log.info("wrote %s", args.work / "card.json")


if __name__ == "__main__":
    main()
