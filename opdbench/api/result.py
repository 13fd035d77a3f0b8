"""The result of an evaluation: estimates per task, rows per picture, and some pictures to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from opdbench.core import Sample
from opdbench.files import write_json
from opdbench.records.rows import write_samples

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

Level = Literal["pictures", "tasks"]


@dataclass(frozen=True)
class NamedPicture:
    """A drawn picture: its prompt's id, its index among that prompt's pictures, and the task that scored it."""

    task: str
    prompt: str
    index: int
    image: Image


@dataclass(frozen=True)
class Result:
    """What an evaluation measured.

    Attributes:
        estimates: a row per task, group and metric with `value`, `se` (clustered by prompt), `n`, `clusters` and
            `unscored`; the row with empty `group` and `metric` is the task's score.
        samples: a row per scored picture.
        texts: prompt texts by prompt id.
        pictures: the pictures that were kept in memory.
        seed: seed of the pictures.
        environment: versions that the numbers may depend on.
    """

    estimates: Sequence[Mapping[str, Any]]
    samples: Sequence[Sample]
    texts: Mapping[str, str]
    pictures: Sequence[NamedPicture] = ()
    seed: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, float | None]:
        """The score of each task; None if no picture could be scored."""
        return {row["task"]: row["value"] for row in self.estimates if not row["group"] and not row["metric"]}

    def table(self) -> str:
        """A text table: a line per task and group or metric, with value, standard error and counts."""
        head = ("task", "group or metric", "value", "s.e.", "n", "unscored")
        rows = [
            (
                row["task"],
                " ".join(word for word in (row["group"], row["metric"]) if word) or "all",
                *("-" if row[name] is None else f"{row[name]:.3f}" for name in ("value", "se")),
                str(row["n"]),
                str(row["unscored"]),
            )
            for row in self.estimates
        ]
        widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]
        align = [str.ljust, str.ljust, *[str.rjust] * 4]
        return "\n".join(
            "  ".join(pad(text, width) for pad, text, width in zip(align, line, widths, strict=True)).rstrip()
            for line in (head, *rows)
        )

    def to_pandas(self, level: Level = "pictures") -> pd.DataFrame:
        """A tidy data frame.

        Args:
            level: `pictures` for a row per picture and metric (columns `task`, `prompt`, `text`, `index`, `group`,
                `metric`, `value`, `reward`, `reason`), `tasks` for a row per task, group and metric.
        """
        import pandas as pd

        if level == "tasks":
            return pd.DataFrame([dict(row) for row in self.estimates])
        rows = [
            {
                "task": sample.task,
                "prompt": sample.prompt,
                "text": self.texts.get(sample.prompt, ""),
                "index": sample.index,
                "group": sample.group,
                "metric": metric,
                "value": value,
                "reward": sample.reward if metric == "score" else None,
                "reason": sample.reason,
            }
            for sample in self.samples
            for metric, value in {"score": sample.value, **sample.metrics}.items()
        ]
        return pd.DataFrame(rows)

    def save(self, folder: str | Path) -> Path:
        """Write `result.json`, `samples.jsonl` and the kept pictures to `folder`; returns the folder."""
        where = Path(folder)
        write_samples(where / "samples.jsonl", self.samples)
        for picture in self.pictures:
            path = where / "pictures" / picture_name(picture.task, picture.prompt, picture.index)
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.image.save(path)
        about = {"seed": self.seed, "texts": dict(self.texts), "environment": dict(self.environment)}
        write_json(where / "result.json", {**about, "estimates": [dict(row) for row in self.estimates]})
        return where


def picture_name(task: str, prompt: str, index: int) -> str:
    """File of a picture below `pictures`: the task's folder, the prompt's id and the index."""
    return f"{task}/{prompt.replace('/', '-')}-{index}.png"
