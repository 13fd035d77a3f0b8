"""One training loop for all losses: batches, losses, optimizer, averages, meter."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opdbench.core import Evaluator, Meter
from opdbench.diffusion import adapters
from opdbench.diffusion.adapters import Adapter, Lora
from opdbench.diffusion.flow import transitions
from opdbench.diffusion.model import Model, Policy
from opdbench.diffusion.walk import Noise
from opdbench.environment import peak_mib
from opdbench.errors import UserError
from opdbench.methods.base import Actors, Batch, Loss
from opdbench.parallel.processes import ALONE, Team
from opdbench.parallel.threads import ahead
from opdbench.recipes.config import Stage, loss_options
from opdbench.registry import load
from opdbench.runs.checkpoints import CHECKPOINT_EVERY, Checkpoint, StageFiles, State
from opdbench.runs.plateau import Plateau, Validation, is_check, last_update, rate_factor
from opdbench.runs.schedule import pick_prompts, shares
from opdbench.runs.trunks import Branch, SavedTrunk

Report = Callable[[Mapping[str, Any]], None]


def _say_nothing(text: str) -> None:
    pass


class Trainer:
    """Trains one stage in `folder`, from its last checkpoint on."""

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
        note: Callable[[str], None] = _say_nothing,
        branch: Branch | None = None,
    ) -> None:
        """Build student, optimizer and actors; read the checkpoint if there is one, or else the trunk's."""
        self.stage, self.seed, self.model, self.folder, self.team = stage, seed, model, folder, team
        self.loss: Loss = loss_options(load("losses", stage.loss), stage.options, stage.name)
        self.key = f"{seed}/{stage.name}"
        self.lora = Lora(stage.rank, stage.alpha, stage.targets or adapters.ATTENTION)
        self.pools = {task: evaluators[task].prompts("train") for task in stage.tasks}
        _check(stage, self.loss, teachers, team)
        self.student = self._make_student(start)
        self.parameters = adapters.trainable(self.student.network)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=stage.lr,
            weight_decay=stage.weight_decay,
            betas=(0.9, 0.999),
            fused=self._fuses or None,
        )
        self.built_on = {f"teacher/{task}": policy.adapter for task, policy in teachers.items()}
        self.built_on |= {"start": start.digest()} if start else {}
        self.files, self.branch, self.note = StageFiles(folder, self.built_on, team, note), branch, note
        self.lines: list[str] = []
        self.state = self._resume()
        self.actors = self._make_actors(teachers, evaluators)
        self.validation = Validation(stage, model, evaluators) if stage.validate_every else None

    @property
    def _fuses(self) -> bool:
        """Whether the optimizer is one kernel; on a CPU it would have other bits."""
        return self.model.device.type == "cuda"

    def _make_student(self, start: Adapter | None) -> Policy:
        """The policy that is trained: a fresh adapter, or `start`."""
        student = self._in_parts(self.model.student(self.lora, self.stage.sampler.guidance, self.seed, start))
        if self.stage.checkpointing:
            student.save_memory()
        return student

    def _make_actors(self, teachers: Mapping[str, Policy], evaluators: Mapping[str, Evaluator]) -> Actors:
        """All that the loss sees; compiled if the stage says so."""
        stage, model, guidance = self.stage, self.model, self.stage.sampler.guidance
        old = model.frozen(Adapter(self.state.old, self.lora), guidance) if self.loss.needs_old else None
        if stage.compiled:
            teachers = {task: model.separate(policy) for task, policy in teachers.items()}
            for policy in (self.student, old, *teachers.values()):
                if policy is not None:
                    policy.compile(stage.compiled)
        return Actors(
            model=model,
            student=self.student,
            base=self._in_parts(model.frozen(None, guidance)),
            old=old and self._in_parts(old),
            teachers={task: self._in_parts(policy) for task, policy in teachers.items()},
            evaluators=evaluators,
            sampler=stage.sampler,
            steps=transitions(stage.sampler, model.sigmas(stage.sampler.steps)),
            meter=Meter(),
            descend=self._descend if self.loss.inner > 1 else self._refuse,
            gather=self.team.gather,
            # A GPU is busy anyway, and would hold more graphs; `inner` steps move the weights between losses, and
            # policies on shared weights switch them.
            threads=model.device.type == "cpu" and self.loss.inner == 1 and not self.team.shards,
            weights=dict(stage.rewards),
        )

    def _in_parts(self, policy: Policy) -> Policy:
        """The policy with the stage's limit of images per forward pass."""
        return replace(policy, at_once=self.stage.at_once)

    def run(self, report: Report) -> Adapter:
        """Train to the end; `report` gets the figures of each update. Returns the averaged adapter.

        Raises:
            UserError: a loss, a gradient or a weight is not finite; nothing of that update is kept.
        """
        last = time.perf_counter()
        with self.model.divided():
            while (update := self.state.update) < last_update(self.stage, self.state.plateau):
                line = self.update(update) | self._validate(update + 1)
                now = time.perf_counter()
                meter = self.state.meter
                meter.seconds, last = meter.seconds + now - last, now
                meter.peak_mib = max(meter.peak_mib, peak_mib(self.model.device.type))
                line |= {"forwards": meter.total(), "seconds": round(meter.seconds, 3)}
                self.state.update = update + 1
                if self.team.leads:
                    self.lines.append(json.dumps(line) + "\n")
                    report(line)
                if (update + 1) % CHECKPOINT_EVERY == 0 or update + 1 == last_update(self.stage, self.state.plateau):
                    self._save()
                if self.branch and update + 1 == self.branch.updates and self.team.leads:
                    self._save()
                    lines = self.files.log.read_text(encoding="utf-8").splitlines(keepends=True)
                    self.branch.keep(SavedTrunk(self._checkpoint(), lines), self.built_on, self.team, self.note)
        return Adapter(adapters.on_host(self.state.average), self.lora)

    def batch(self, update: int) -> Batch:
        """The prompts and noise of an update, the same whenever it is asked for."""
        images = self.stage.images
        picked = [
            prompt
            for share in shares(self.stage, update)
            for prompt in pick_prompts(self.pools[share.task], f"{self.key}/{share.task}", share.first, share.count)
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
        norm = self.finish(update)
        self.team.sum([total])
        if not math.isfinite(total.item()):
            raise self._diverged("loss", total.item())
        for meter in self.team.gather(self.actors.meter):
            self.state.meter.add(meter)
        line = {"update": update + 1, "loss": total.item(), "grad_norm": norm}
        return line | self.actors.rewards if self.loss.needs_reward else line

    def finish(self, update: int) -> float:
        """Step the optimizer on the gradient so far and move the averages; returns the gradient's norm."""
        norm = self._descend()
        self._follow(update)
        return norm

    def _validate(self, done: int) -> dict[str, float]:
        """Check the averaged policy on validation prompts, if that is due after `done` updates; its figures."""
        if self.validation is None or not is_check(self.stage, self.state.plateau, done):
            return {}
        score, meter = self.validation.score(Adapter(adapters.on_host(self.state.average), self.lora))
        assert self.state.plateau is not None
        self.state.plateau = self.state.plateau.after(score, self.stage, done)
        self.state.meter.add(meter)
        return {} if score.value is None else {"validation": score.value, "validation_se": score.se or 0.0}

    def _losses(self, batch: Batch) -> Iterator[Tensor]:
        """The losses, of all pictures or of some prompts' after the others'."""
        for rows in batch.whole_prompts(self.stage.at_once if self.loss.separable else 0):
            pictures = batch[rows]
            # Losses are means over pictures, and parts and processes may have unlike numbers of them.
            weight = len(pictures) / (self.stage.prompts * self.stage.images)
            yield from (weight * loss for loss in self.loss.losses(pictures, self.actors))

    def _refuse(self) -> None:
        raise UserError(f"loss {self.stage.loss!r} takes a second optimizer step, but its `inner` is 1")

    def _descend(self) -> float:
        """One optimizer step on the gradient so far; returns the gradient's norm before clipping."""
        if self.stage.anneal:
            end = last_update(self.stage, self.state.plateau)
            for group in self.optimizer.param_groups:
                group["lr"] = self.stage.lr * rate_factor(self.stage, self.state.update, end)
        self.team.sum([p.grad for p in self.parameters.values() if p.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.stage.clip).item()
        if not math.isfinite(norm):
            raise self._diverged("gradient", norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _diverged(self, what: str, value: object) -> UserError:
        return UserError(
            f"stage {self.stage.name!r}: {what} is {value} at update {self.state.update + 1}; "
            "expected a finite number; lower its lr and run again"
        )

    def _follow(self, update: int) -> None:
        """Move the weight average and the old policy after the student."""
        now = adapters.by_peft_name(self.parameters)
        if not torch.stack(torch._foreach_norm(list(now.values()), math.inf)).isfinite().all():
            raise self._diverged("a weight", "not finite")
        adapters.blend(self.state.average, now, min(self.stage.ema, (1 + update) / (10 + update)))
        if self.actors.old is not None:
            adapters.blend(self.state.old, now, self.loss.old_decay(update))
            self.model.move(self.actors.old, Adapter(self.state.old, self.lora))

    def _save(self) -> None:
        """Write log and checkpoint."""
        if self.team.leads:
            self.files.save(self._checkpoint(), self.lines)
            self.lines.clear()

    def _checkpoint(self) -> Checkpoint:
        """All that the next update needs, now."""
        student = adapters.read(self.student.network)
        moments = {
            f"{kind}/{name}": value.detach().cpu().clone()
            for name, parameter in self.parameters.items()
            for kind, value in self.optimizer.state[parameter].items()
        }
        state = replace(self.state, average=adapters.on_host(self.state.average), old=adapters.on_host(self.state.old))
        return Checkpoint(state, student, moments)

    def _from_trunk(self) -> Checkpoint | None:
        """The state in which a shorter stage began to anneal, with its log to be written as this stage's."""
        saved = self.branch.load(self.built_on, self.team, self.note) if self.branch else None
        if saved is None:
            return None
        self.lines = list(saved.lines)
        return saved.checkpoint

    def _resume(self) -> State:
        """The state of the checkpoint, with student and optimizer set to it; a fresh state if there is none."""
        checkpoint = self.files.load() or self._from_trunk()
        if checkpoint is None:
            now = adapters.by_peft_name(self.parameters)
            fresh, old = ({name: tensor.clone() for name, tensor in now.items()} for _ in range(2))
            plateau = Plateau() if self.stage.validate_every else None
            return State(0, Meter(), fresh, old if self.loss.needs_old else {}, plateau)
        adapters.write(self.student.network, checkpoint.student)
        for name, parameter in self.parameters.items():
            kinds = [k for k in ("step", "exp_avg", "exp_avg_sq") if f"{k}/{name}" in checkpoint.moments]
            self.optimizer.state[parameter] = {
                k: checkpoint.moments[f"{k}/{name}"].to(parameter.device if k != "step" or self._fuses else "cpu")
                for k in kinds
            }
        state, device = checkpoint.state, self.model.device
        average, old = ({k: t.to(device) for k, t in held.items()} for held in (state.average, state.old))
        return replace(state, average=average, old=old)


def _check(stage: Stage, loss: Loss, teachers: Mapping[str, Policy], team: Team) -> None:
    """Raise `UserError` for a stage that cannot be trained with these teachers by these processes."""
    if loss.needs_teacher and not set(stage.tasks) <= set(teachers):
        raise UserError(f"stage {stage.name!r} has teachers for {sorted(teachers)}; expected {sorted(stage.tasks)}")
    if stage.prompts < team.size:
        raise UserError(f"stage {stage.name!r}: {stage.prompts} prompts are too few for {team.size} processes")
    if team.shards and stage.replay:  # the processes would have unlike numbers of a task's prompts
        raise UserError(f"stage {stage.name!r}: FSDP cannot replay prompts of other tasks; use processes without it")
    if team.shards and stage.prompts % (team.size * len(stage.tasks)):
        each = f"{team.size} processes times {len(stage.tasks)} tasks"
        raise UserError(f"stage {stage.name!r}: {stage.prompts} prompts; FSDP expects a multiple of {each}")
