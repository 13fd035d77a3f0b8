"""One training loop for all losses: batches, losses, optimizer, averages, checkpoints, meter."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from opdbench.core import Evaluator, Meter, Prompt
from opdbench.diffusion import adapters
from opdbench.diffusion.adapters import Adapter, Lora
from opdbench.diffusion.flow import transitions
from opdbench.diffusion.model import Model, Policy
from opdbench.diffusion.walk import Noise
from opdbench.environment import peak_mib
from opdbench.errors import UserError
from opdbench.files import write_bytes
from opdbench.methods.base import Actors, Batch, Loss
from opdbench.parallel.processes import ALONE, Team
from opdbench.parallel.threads import ahead
from opdbench.recipes.config import Stage, loss_options
from opdbench.registry import load

CHECKPOINT_EVERY = 5
Report = Callable[[Mapping[str, Any]], None]


@dataclass
class State:
    """What lasts between updates, and is in every checkpoint.

    Attributes:
        update: updates done.
        meter: their cost.
        average: the adapter's average over updates.
        old: the adapter of the policy that rolls out; empty where that is the student.
    """

    update: int
    meter: Meter
    average: dict[str, Tensor]
    old: dict[str, Tensor]


def pick_prompts(pool: Sequence[Prompt], key: str, first: int, count: int) -> list[Prompt]:
    """Prompts `first` to `first + count` of an endless series of seeded permutations of `pool`."""
    found, orders = [], {}
    for position in range(first, first + count):
        epoch, place = divmod(position, len(pool))
        if epoch not in orders:
            orders[epoch] = list(range(len(pool)))
            Random(f"{key}/{epoch}").shuffle(orders[epoch])
        found.append(pool[orders[epoch][place]])
    return found


def shares(stage: Stage, update: int) -> list[tuple[str, int, int]]:
    """Of each task, how many prompts it had before `update` and how many it has in it.

    The tasks take turns, so where the prompts do not split evenly the odd one goes to another in each update.
    """
    number = len(stage.tasks)

    def before(k: int, now: int) -> int:
        return (now * stage.prompts - k + number - 1) // number

    return [(task, before(k, update), before(k, update + 1) - before(k, update)) for k, task in enumerate(stage.tasks)]


class Trainer:
    """Trains one stage in `folder`, going on from its last checkpoint."""

    def __init__(
        self,
        stage: Stage,
        seed: int,
        model: Model,
        evaluators: Mapping[str, Evaluator],
        teachers: Mapping[str, Policy],
        folder: Path,
        start: Adapter | None = None,
        team: Team = ALONE,
    ) -> None:
        """Build student, optimizer and actors; read the checkpoint if there is one."""
        self.stage, self.seed, self.model, self.folder, self.team = stage, seed, model, folder, team
        self.loss: Loss = loss_options(load("losses", stage.loss), stage.options, stage.name)
        self.key = f"{seed}/{stage.name}"
        self.lora = Lora(stage.rank, stage.alpha, stage.targets or adapters.ATTENTION)
        self.pools = {task: evaluators[task].prompts("train") for task in stage.tasks}
        if self.loss.needs_teacher and not set(stage.tasks) <= set(teachers):
            raise UserError(f"stage {stage.name!r} has teachers for {sorted(teachers)}; expected {sorted(stage.tasks)}")
        if stage.prompts < team.size:
            raise UserError(f"stage {stage.name!r}: {stage.prompts} prompts are too few for {team.size} processes")
        if team.shards and stage.prompts % (team.size * len(stage.tasks)):
            each = f"{team.size} processes times {len(stage.tasks)} tasks"
            raise UserError(f"stage {stage.name!r}: {stage.prompts} prompts; FSDP wants a multiple of {each}")
        guidance = stage.sampler.guidance
        self.student = self._parted(model.student(self.lora, guidance, seed, start))
        if stage.checkpointing:
            self.student.save_memory()
        self.parameters = adapters.trainable(self.student.network)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=stage.lr, weight_decay=stage.weight_decay, betas=(0.9, 0.999)
        )
        fresh = adapters.read(self.student.network)
        self.state = State(0, Meter(), fresh, dict(fresh) if self.loss.needs_old else {})
        self.lines: list[str] = []
        self.built_on = {f"teacher/{task}": policy.adapter for task, policy in teachers.items()}
        self.built_on |= {"start": start.digest()} if start else {}
        self._resume()
        old = model.frozen(Adapter(self.state.old, self.lora), guidance) if self.loss.needs_old else None
        for policy in (self.student, old, *teachers.values()) if stage.compiled else ():
            # The base model is shared with whatever else goes on in this process.
            if policy is not None and policy.network is not model.base:
                policy.network.compile()
        self.actors = Actors(
            model=model,
            student=self.student,
            base=self._parted(model.frozen(None, guidance)),
            old=old and self._parted(old),
            teachers={task: self._parted(policy) for task, policy in teachers.items()},
            evaluators=evaluators,
            sampler=stage.sampler,
            steps=transitions(stage.sampler, model.sigmas(stage.sampler.steps)),
            meter=Meter(),
            descend=self._descend if self.loss.inner > 1 else self._refuse,
            gather=team.gather,
            # A GPU is busy anyway, and would hold more graphs; `inner` steps move the weights between losses, and
            # policies on shared weights switch them.
            threads=model.device.type == "cpu" and self.loss.inner == 1 and not team.shards,
            weights=dict(stage.rewards),
        )

    def _parted(self, policy: Policy) -> Policy:
        return replace(policy, at_once=self.stage.at_once)

    def run(self, report: Report) -> Adapter:
        """Train to the end; `report` gets one line of figures an update. Returns the averaged adapter."""
        last = time.perf_counter()
        with self.model.divided():
            for update in range(self.state.update, self.stage.updates):
                line = self.update(update)
                now = time.perf_counter()
                meter = self.state.meter
                meter.seconds, last = meter.seconds + now - last, now
                meter.peak_mib = max(meter.peak_mib, peak_mib(self.model.device.type))
                line |= {"forwards": meter.total(), "seconds": round(meter.seconds, 3)}
                self.state.update = update + 1
                if self.team.leads:
                    self.lines.append(json.dumps(line) + "\n")
                    report(line)
                if (update + 1) % CHECKPOINT_EVERY == 0 or update + 1 == self.stage.updates:
                    self._save()
        return Adapter(self.state.average, self.lora)

    def batch(self, update: int) -> Batch:
        """The prompts and noise of an update, the same whenever it is asked for."""
        images = self.stage.images
        picked = [
            prompt
            for task, first, count in shares(self.stage, update)
            for prompt in pick_prompts(self.pools[task], f"{self.key}/{task}", first, count)
        ]
        rows = [p * images + k for p in self.team.share(len(picked)) for k in range(images)]
        prompts = [picked[row // images] for row in rows]
        keys = [f"{self.key}/{update}/{p.id}/{row}" for row, p in zip(rows, prompts, strict=True)]
        condition = self.model.encode([p.text for p in prompts])
        noise = Noise(keys, self.model.latent_shape, self.model.device)
        return Batch(prompts, keys, images, condition, noise, update)

    def update(self, update: int) -> dict[str, Any]:
        """One optimizer step; returns its figures."""
        batch, self.actors.meter = self.batch(update), Meter()
        total = torch.zeros((), device=self.model.device)
        losses = self._losses(batch)
        for loss in ahead(losses) if self.actors.threads else losses:
            loss.backward()
            total += loss.detach()
        norm = self._descend()
        self._follow(update)
        self.team.sum([total])
        for meter in self.team.gather(self.actors.meter):
            self.state.meter.add(meter)
        line = {"update": update + 1, "loss": total.item(), "grad_norm": norm}
        return line | self.actors.rewards if self.loss.needs_reward else line

    def _losses(self, batch: Batch) -> Iterator[Tensor]:
        """The losses, of all pictures or of some prompts' after the others'."""
        for rows in batch.whole_prompts(self.stage.at_once if self.loss.separable else 0):
            part = batch[rows]
            # Losses are means over pictures, and parts and processes may have unlike numbers of them.
            share = len(part) / (self.stage.prompts * self.stage.images)
            yield from (share * loss for loss in self.loss.losses(part, self.actors))

    def _refuse(self) -> None:
        raise UserError(f"loss {self.stage.loss!r} takes a second optimizer step, but its `inner` is 1")

    def _descend(self) -> float:
        """One optimizer step on the gradient so far; returns the gradient's norm before clipping."""
        if self.stage.anneal:
            for group in self.optimizer.param_groups:
                group["lr"] = self.stage.lr * (1 - self.state.update / self.stage.updates)
        self.team.sum([p.grad for p in self.parameters.values() if p.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.stage.clip).item()
        if not math.isfinite(norm):
            raise UserError(f"stage {self.stage.name!r}: gradient is {norm} at update {self.state.update}; lower lr")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _follow(self, update: int) -> None:
        """Move the weight average and the old policy after the student."""
        now = adapters.read(self.student.network)
        _blend(self.state.average, now, min(self.stage.ema, (1 + update) / (10 + update)))
        if self.actors.old is not None:
            _blend(self.state.old, now, self.loss.old_decay(update))
            self.model.move(self.actors.old, Adapter(self.state.old, self.lora))

    def _save(self) -> None:
        """One file with everything that the next update needs, whole or not at all; before it, the log's new lines."""
        if not self.team.leads:
            return
        tensors = {f"average/{k}": v for k, v in self.state.average.items()}
        tensors |= {f"old/{k}": v for k, v in self.state.old.items()}
        tensors |= {f"student/{k}": v for k, v in adapters.read(self.student.network).items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer/{key}/{name}"] = value.detach().cpu().clone()
        about = {"update": self.state.update, "meter": asdict(self.state.meter), "built_on": self.built_on}
        partial = self.folder / "checkpoint.partial"
        try:
            with self._log.open("a", encoding="utf-8") as log:
                log.writelines(self.lines)
            self.lines.clear()
            save_file(tensors, partial, metadata={"state": json.dumps(about)})
            partial.replace(self.folder / "checkpoint.safetensors")
        except OSError as error:
            raise UserError(f"cannot write a checkpoint in {str(self.folder)!r}: {error}") from error

    def _resume(self) -> None:
        path = self.folder / "checkpoint.safetensors"
        if not path.exists():
            self._cut_log(0)
            return
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise UserError(f"cannot read checkpoint {str(path)!r}: {error}; delete it and run again") from error
        if about.get("built_on") != self.built_on:
            other = f"was built on {about.get('built_on')}; here are {self.built_on}"
            raise UserError(f"checkpoint {str(path)!r} {other}; delete it and run again")
        part = {kind: _under(kind, tensors) for kind in ("average", "old", "student")}
        adapters.write(self.student.network, part["student"])
        for name, parameter in self.parameters.items():
            kinds = [k for k in ("step", "exp_avg", "exp_avg_sq") if f"optimizer/{k}/{name}" in tensors]
            self.optimizer.state[parameter] = {
                k: tensors[f"optimizer/{k}/{name}"].to(parameter.device if k != "step" else "cpu") for k in kinds
            }
        self.state = State(about["update"], Meter(**about["meter"]), part["average"], part["old"])
        self._cut_log(self.state.update)

    @property
    def _log(self) -> Path:
        """The learning curve, one JSON line an update; it grows with the checkpoints."""
        return self.folder / "log.jsonl"

    def _cut_log(self, updates: int) -> None:
        """Drop the lines of updates that will be done again, whole or torn."""
        lines = self._log.read_bytes().splitlines(keepends=True) if self._log.exists() else []
        if len(lines) < updates:
            where = f"expected the {updates} of the checkpoint; delete {str(self.folder)!r} and run again"
            raise UserError(f"log {str(self._log)!r} has {len(lines)} lines; {where}")
        if self.team.leads and len(lines) > updates:
            write_bytes(self._log, b"".join(lines[:updates]))


def _under(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(f"{kind}/"): v for k, v in tensors.items() if k.startswith(f"{kind}/")}


def _blend(target: dict[str, Tensor], now: Mapping[str, Tensor], keep: float) -> None:
    for name, value in now.items():
        target[name] = keep * target[name] + (1 - keep) * value
