"""What is measured of a policy: every task of the suite, and with `--suite full` what a table does not show.

All pictures come from the one path of `evaluate.py`; a finished evaluation is found by its digest. The full suite
adds, for each policy,

* every stage that no column shows, on every task: a cascade's matrix of forgetting;
* every metric on the prompts of the other tasks that it can judge;
* the same prompts with another task's opening, which a student that knows its task by the wording misreads;
* other scales of guidance;
* the KL from each teacher's steps on the teacher's own walks. These states are the same for all policies, so a
  small KL cannot come from visiting easy states.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from opdbench.console.progress import Console
from opdbench.core import Estimate, Evaluator, Meter, Prompt, Sample, Sampler, Split, judge_failed, judges
from opdbench.diffusion.adapters import Adapter
from opdbench.diffusion.flow import kl_weight, transitions
from opdbench.diffusion.model import Model
from opdbench.diffusion.walk import Noise, walk
from opdbench.evaluation.evaluate import BATCH, choose, column_key, evaluate, expected_rows, prompt_hash
from opdbench.evaluation.splits import scored_prompts
from opdbench.parallel.processes import ALONE, Team
from opdbench.records.digest import FORMAT, digest
from opdbench.records.rows import Picked, write_samples
from opdbench.records.run import Cell, PolicyResult, Probe
from opdbench.records.store import Evaluation, Store
from opdbench.stats import estimate

GUIDANCES = (1.0, 2.0, 3.5)
OPENINGS = ("a photo of ", "a picture of ", "a drawing of ", "a poster with ")
NOISE_LEVEL = 0.7
KL_PROMPTS = 64


@dataclass(frozen=True)
class Actor:
    """A policy to evaluate."""

    name: str
    role: str
    tasks: tuple[str, ...]
    sampler: Sampler
    adapter: Adapter | None


@dataclass(frozen=True)
class PolicyQuestion:
    """One evaluation: who draws what, with how much guidance, and who judges."""

    actor: Actor
    judge: Evaluator
    prompts: Sequence[Prompt]
    guidance: float

    @property
    def sampler(self) -> Sampler:
        """How the policy walks."""
        return replace(self.actor.sampler, guidance=self.guidance)


@dataclass(frozen=True)
class Suite:
    """Evaluates policies of one run; rows are kept in the store."""

    model: Model
    evaluators: Mapping[str, Evaluator]
    store: Store
    weights: str
    limit: int | None
    team: Team = ALONE
    plugins: Mapping[str, str] = field(default_factory=dict)
    """Version of each judge that does not come from opdbench, by its own name."""
    split: Split = "test"

    def table(self, actor: Actor, folder: Path, console: Console) -> PolicyResult:
        """A policy on every task; its rows are also copied to `samples` in `folder`."""
        meter, cells = Meter(), []
        for name, judge in self.evaluators.items():
            question, samples, own = self.own(actor, name, console)
            meter.seconds, meter.peak_mib = meter.seconds + own.seconds, max(meter.peak_mib, own.peak_mib)
            if self.team.leads:
                write_samples(folder / "samples" / f"{actor.name}-{name}.jsonl", samples)
            strata, trained = _strata(samples), name in actor.tasks
            cells.append(Cell(name, self.key(question), trained, estimate(samples), strata, judge.higher_is_better))
        images = sum(c.estimate.n + c.estimate.unscored for c in cells)
        passes = self.model.frozen(None, actor.sampler.guidance).passes
        meter.forwards, meter.images = {"evaluation": images * actor.sampler.steps * passes}, images
        return PolicyResult(actor.name, actor.role, asdict(actor.sampler), tuple(cells), meter)

    def own(self, actor: Actor, task: str, console: Console) -> tuple[PolicyQuestion, list[Sample], Meter]:
        """A policy on the prompts of a task: what the table shows."""
        question = PolicyQuestion(actor, self.evaluators[task], self.prompts(task), actor.sampler.guidance)
        return question, *self.ask(question, f"evaluate {actor.name} on {task}", console)

    def prompts(self, task: str) -> list[Prompt]:
        """The prompts of a task that policies are scored on; test prompts unless the run only chooses a setting."""
        return scored_prompts(task, self.evaluators[task], self.split, self.limit)

    def key(self, question: PolicyQuestion) -> str:
        """What the answer may share a column with."""
        plugin = self.plugins.get(question.judge.name, "")
        return column_key(question.judge, question.prompts, question.sampler, self.model, plugin)

    def ask(self, question: PolicyQuestion, title: str, console: Console) -> tuple[list[Sample], Meter]:
        """Rows of an evaluation, and its cost, which is kept beside them; one that is in the store is reused."""
        key = self.key(question)
        name = digest(
            [FORMAT, _known(question.actor), self.weights, question.sampler, key, prompt_hash(question.prompts)]
        )
        expected = expected_rows(question.judge.name, question.prompts)
        evaluation = self.store.finished_evaluation(name, expected)
        if evaluation is None or any(map(judge_failed, evaluation.samples)):
            with self._lock(name, title):
                evaluation = self.store.finished_evaluation(name, expected)
                if evaluation is None or any(map(judge_failed, evaluation.samples)):
                    evaluation = self._answer(question, name, title, console, evaluation)
        return evaluation.samples, evaluation.meter

    def _lock(self, name: str, title: str) -> AbstractContextManager[None]:
        """The lock of an evaluation; of a team of processes only the first one takes it."""
        return self.store.lock("evaluation", name, title) if self.team.leads else nullcontext()

    def _answer(
        self, question: PolicyQuestion, name: str, title: str, console: Console, known: Evaluation | None
    ) -> Evaluation:
        """Make an evaluation; of one that is known only the rows whose judge had failed."""
        self.team.wait()
        new, meter = self.team.leads and known is None, Meter()
        target = self.store.evaluation(name) if new else self.store.path(name)
        self.team.wait()
        policy = self.model.frozen(question.actor.adapter, question.guidance)

        def progress(done: int, total: int) -> None:
            console.progress(title, done, total, {})

        samples = evaluate(
            self.model,
            policy,
            question.sampler,
            question.judge,
            question.prompts,
            target,
            meter,
            progress,
            self.team,
            known=known.samples if known else None,
        )
        before = known.meter if known else Meter()
        cost = Meter(before.forwards, before.images, before.seconds + meter.seconds, meter.peak_mib)
        for own in self.team.gather(meter):
            cost.add(own)
        if self.team.leads:
            self.store.keep_evaluation(name, cost)
        self.team.wait()
        return Evaluation(samples, cost)

    def probes(self, actor: Actor, teachers: Sequence[Actor], console: Console) -> tuple[Probe, ...]:
        """The full suite's further numbers of a policy."""
        probes = []
        for kind, on, question in self._questions(actor):
            task = question.judge.name
            title = f"evaluate {actor.name} on {task}, {on or 'stage'}"
            samples, _ = self.ask(question, title, console)
            probes.append(Probe(kind, actor.name, task, on, self.key(question), estimate(samples)))
        for teacher in teachers:
            states, walked = prompt_hash(self._states(teacher)), f"flow-sde-{teacher.sampler.steps}"
            key = f"kl@1[{teacher.name}] {states} {walked} {str(self.model.dtype).removeprefix('torch.')}"
            name = digest([FORMAT, _known(actor), _known(teacher), self.weights, key])
            expected = [Picked(prompt.id, 0, "kl") for prompt in self._states(teacher)]
            with self._lock(name, f"KL of {actor.name} from {teacher.name}"):
                if self.team.leads and self.store.finished_evaluation(name, expected) is None:
                    write_samples(self.store.evaluation(name), self._kl(actor, teacher))
                    self.store.keep_evaluation(name, Meter())
            self.team.wait()
            evaluation = self.store.finished_evaluation(name, expected)
            assert evaluation is not None
            probes.append(Probe("kl", actor.name, teacher.tasks[0], "", key, estimate(evaluation.samples)))
        return tuple(probes)

    def _questions(self, actor: Actor) -> Iterator[tuple[str, str, PolicyQuestion]]:
        """Kind of the probe, what it is on, and the evaluation."""
        own = actor.sampler.guidance
        for name, judge in self.evaluators.items():
            prompts = self.prompts(name)
            if actor.role == "stage":
                yield "stage", "", PolicyQuestion(actor, judge, prompts, own)
                continue
            for other in self.evaluators:
                judged = [p for p in self.prompts(other) if judges(judge, p)]
                if other != name and judged:
                    yield "prompts", other, PolicyQuestion(actor, judge, judged, own)
            yield "change", "other opening", PolicyQuestion(actor, judge, [reword(p) for p in prompts], own)
            for scale in GUIDANCES:
                if scale != own:
                    yield "change", f"guidance {scale:g}", PolicyQuestion(actor, judge, prompts, scale)

    def _states(self, teacher: Actor) -> list[Prompt]:
        return choose(self.prompts(teacher.tasks[0]), KL_PROMPTS)

    @torch.no_grad()
    def _kl(self, actor: Actor, teacher: Actor) -> list[Sample]:
        """KL of the policy's path from the teacher's (nats, sum over steps and dimensions), one row per prompt.

        Both take flow-sde's steps, so the KL of a step is c_v^2 |v - v_T|^2 / (2 std^2) (arXiv 2605.15055,
        eq. 10-15); the states are the teacher's, in the spirit of a fixed-state KL.
        """
        policy = self.model.frozen(actor.adapter, actor.sampler.guidance)
        expert = self.model.frozen(teacher.adapter, teacher.sampler.guidance)
        sampler = Sampler("flow-sde", teacher.sampler.steps, NOISE_LEVEL, teacher.sampler.guidance)
        steps, prompts, rows = transitions(sampler, self.model.sigmas(sampler.steps)), self._states(teacher), []
        for first in range(0, len(prompts), BATCH):
            batch = prompts[first : first + BATCH]
            condition = self.model.encode([prompt.text for prompt in batch])
            noise = Noise([f"states/{p.id}" for p in batch], self.model.latent_shape, self.model.device)
            total = torch.zeros(len(batch), device=self.model.device)
            for step in walk(expert.at(condition), noise, steps):
                gap = policy.velocity(step.x, step.transition.t, condition) - step.velocity
                total += kl_weight(sampler, step.transition, "exact") * gap.square().flatten(1).sum(1)
            rows += [Sample(p.id, 0, "kl", "", value, None) for p, value in zip(batch, total.tolist(), strict=True)]
        return rows


def reword(prompt: Prompt) -> Prompt:
    """The same prompt with the opening of another task, in words that the embedded model knows."""
    opening = next((o for o in OPENINGS if prompt.text.startswith(o)), "")
    other = OPENINGS[2] if opening == OPENINGS[0] else OPENINGS[0]
    return replace(prompt, text=other + prompt.text.removeprefix(opening))


def _known(actor: Actor) -> str:
    return actor.adapter.digest() if actor.adapter else "base"


def _strata(samples: Sequence[Sample]) -> dict[str, Estimate]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for row in samples:
        groups[row.group].append(row)
    return {group: estimate(rows) for group, rows in groups.items()} if len(groups) > 1 else {}
