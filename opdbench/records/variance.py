"""What `opdbench variance` leaves: `variance.json`, the numbers behind its table, figures and claims.

One `Row` is one estimator at one setting, in one space, of one step or of the whole walk; `record.table_rows()`
are those of the table. All gradients are of the path's KL in nats, summed over C, H, W and steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from opdbench.errors import UserError
from opdbench.files import check_schema, read_sealed, write_sealed

States = Literal["redrawn", "frozen"]
Space = Literal["lora", "mean"]
Where = tuple[States, Space, int | None]
"""How states came, in which space a gradient is, and the step; None is the whole walk."""
SCHEMA = 1
FILE = "variance.json"


@dataclass(frozen=True)
class Setting:
    """Where gradients were measured.

    Attributes:
        task: whose teacher teaches, on whose prompts.
        at: stage of the recipe whose policy is the student.
        sampler, steps, noise_level: how the student walks.
        side: height and width of the latent.
        last_step: whether the step to t = 0 belongs to the walk; the first edition's records do not say so and had it.
    """

    task: str
    at: str
    sampler: str
    steps: int
    noise_level: float
    side: int
    last_step: bool = True


@dataclass(frozen=True)
class Row:
    """An estimator's moments; traces and SNR are per picture, every `_se` is a jackknife over draws.

    Attributes:
        setting: where.
        states: `redrawn`: every draw is a prompt, an initial noise and a group of walks of its own; `frozen`: a few
            states are fixed and only the noise of their own step is redrawn.
        space: `lora`: gradient in the adapter's weights, randomly projected; `mean`: in the coordinate
            (mean of the transition) / std, where closed forms are known.
        step: index of the step; None is the whole walk.
        estimator: its name.
        reference: estimator whose mean is the truth for this one.
        trace: of the covariance.
        ratio: trace over that of `analytic`; None where that is 0.
        bias: of the component along the reference's mean, as a share of it; -1 is no signal.
        snr: squared norm of the mean (unbiased, so it may be negative) over the trace; None without noise. Its
            inverse is the number of pictures whose mean has SNR 1.
        noise_scale: trace over the reference's squared norm (simple noise scale, McCandlish et al. 2018).
        cosine: mean over draws of the cosine with `analytic` on the same draw.
        cosines: histogram of it, 40 equal bins over [-1, 1]; empty where it was not kept.
        law: the trace in closed form, if there is one.
        forwards: of a step and picture in training; None for what is not trained with.
        adam_ratio: trace over that of `analytic` in Adam's metric, where each weight is divided by the root mean square
            of its analytic gradient.
        prompt_share: share of the trace that is between prompts, not between pictures of one prompt.
    """

    setting: Setting
    states: States
    space: Space
    step: int | None
    estimator: str
    reference: str
    trace: float
    trace_se: float
    ratio: float | None
    ratio_se: float | None
    bias: float
    bias_se: float
    snr: float | None
    snr_se: float | None
    noise_scale: float
    noise_scale_se: float
    cosine: float | None = None
    cosine_se: float | None = None
    cosines: tuple[int, ...] = ()
    law: float | None = None
    forwards: int | None = None
    adam_ratio: float | None = None
    adam_ratio_se: float | None = None
    prompt_share: float | None = None
    prompt_share_se: float | None = None


@dataclass(frozen=True)
class StudyScene:
    """What else was seen at a setting.

    Attributes:
        setting: where.
        kl: the student's distance, KL of its path from the teacher's (nats a picture), and `kl_se`.
        step_kl: the same of each step.
        times: time t of each step.
        dropped: squared norm of the term that OPD drops, E sum_j eps_j sum_{k>j} D_k, over that of the one it keeps.
        dropped_bias: component of the dropped term along the kept one, as a share of it.
        dropped_by: estimator of the whole gradient that `dropped` is measured with.
        draws: redraws of the walk, and of the frozen states' noise; groups of `group` pictures.
        projection_error: bound of the relative standard deviation of a trace over random projections.
    """

    setting: Setting
    kl: float
    kl_se: float
    step_kl: tuple[float, ...]
    times: tuple[float, ...]
    dropped: float
    dropped_se: float
    dropped_bias: float
    dropped_bias_se: float
    dropped_by: str
    draws: int
    group: int
    projection_error: float
    seconds: float


@dataclass(frozen=True)
class VarianceRecord:
    """A finished study; its existence means that the study is complete."""

    digest: str
    method: str
    seed: int
    model: Mapping[str, str]
    stages: Mapping[str, str]
    scenes: tuple[StudyScene, ...]
    rows: tuple[Row, ...]
    environment: Mapping[str, str]
    command: str
    schema: int = SCHEMA

    def table_rows(self) -> list[Row]:
        """One row an estimator and setting: the whole walk's gradient in the weights, with states redrawn."""
        return [r for r in self.rows if r.states == "redrawn" and r.space == "lora" and r.step is None]

    def save(self, folder: Path) -> Path:
        """Write `variance.json`, the last thing that a study does, with the hash of its content."""
        path = folder / FILE
        write_sealed(path, asdict(self))
        return path

    @staticmethod
    def load(path: Path) -> VarianceRecord:
        """Read a record from its file or its folder."""
        file = path / FILE if path.is_dir() else path
        raw = check_schema(read_sealed(file), SCHEMA, f"study {str(file)!r}")
        try:
            scenes = tuple(StudyScene(**_nested(scene, ("step_kl", "times"))) for scene in raw.pop("scenes"))
            rows = tuple(Row(**_nested(row, ("cosines",))) for row in raw.pop("rows"))
            return VarianceRecord(scenes=scenes, rows=rows, **raw)
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"study {str(file)!r} is damaged ({error}); run its command again") from error


def _nested(raw: Mapping[str, Any], sequences: tuple[str, ...]) -> dict[str, Any]:
    return {**raw, "setting": Setting(**raw["setting"]), **{name: tuple(raw[name]) for name in sequences}}


def flat(row: Row) -> dict[str, Any]:
    """A row with its setting's fields beside its own, for JSON and tables."""
    return {**asdict(row.setting), **{k: v for k, v in asdict(row).items() if k != "setting"}}
