"""Preference: how much people would like a picture for a prompt, as models say that were trained on choices.

One evaluator and one table of scorers. A score is stored raw; `reward` is what the papers of this line
maximise, the raw score divided by the scorer's `divisor`. The tiny world's own judge is a `CLIPModel` with
PickScore's formula (`opdbench.tiny.preference`). Only differences under one prompt mean something.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path

from PIL.Image import Image

from opdbench.core import Prompt, Score, Split
from opdbench.errors import UserError
from opdbench.evaluators.loading.pictures import cropped, cropped_bilinear, letterboxed, score_fit
from opdbench.evaluators.loading.weights import JudgeFiles, keyed
from opdbench.evaluators.preference.blip import TEXT_CONFIG, WEIGHTS, load_imagereward
from opdbench.evaluators.preference.clip import PairScorer, load_aesthetic, load_clip, load_open_clip
from opdbench.prompt_sets import pulled
from opdbench.tiny.prompts import preference_prompts

BATCH = 32
"""Pairs per forward; the score of a pair does not depend on it."""

UNBOUNDED = (float("-inf"), float("inf"))
CLIP_L, CLIP_H = "openai/clip-vit-large-patch14", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

Load = Callable[[str, Sequence[str]], PairScorer]
"""From what the model is called in messages, and the source of each of its checkpoints, to the model."""


@dataclass(frozen=True)
class Scorer:
    """A row of the table.

    Attributes:
        backend: model and version, as in the metric's key.
        unit: what a raw score is.
        range: of raw scores.
        divisor: `reward` is the raw score divided by it.
        load: makes the judge.
        checkpoints: the files that it reads, and their usual sources.
        shipped: name of the usual weights if they come with this package, so that it alone tells them; else "".
    """

    backend: str
    unit: str
    range: tuple[float, float]
    divisor: float
    load: Load
    checkpoints: tuple[JudgeFiles, ...]
    shipped: str = ""


def _tiny(what: str, sources: Sequence[str]) -> PairScorer:
    return load_clip(what, sources[0], sources[0], cropped, scaled=True)


def _pickscore(what: str, sources: Sequence[str]) -> PairScorer:
    model, prepared = sources
    return load_clip(what, model, prepared, cropped, scaled=True)


def _clipscore(what: str, sources: Sequence[str]) -> PairScorer:
    return load_clip(what, sources[0], sources[0], cropped_bilinear, scaled=False)


def _hps(what: str, sources: Sequence[str]) -> PairScorer:
    model, prepared = sources
    return load_open_clip(what, model, HPS_FILE, prepared, letterboxed)


def _aesthetic(what: str, sources: Sequence[str]) -> PairScorer:
    model, head = sources
    return load_aesthetic(what, model, head, LAION_HEAD if Path(head).is_dir() else TRL_HEAD)


def _imagereward(what: str, sources: Sequence[str]) -> PairScorer:
    model, tokenizer = sources
    return load_imagereward(what, model, tokenizer)


HPS_FILE = "HPS_v2.1_compressed.pt"
LAION_HEAD, TRL_HEAD = "sac+logos+ava1-l14-linearMSE.pth", "aesthetic-model.pth"
"""The same aesthetic head under its authors' name, in a folder, and under that of its hub repository."""

_TINY = str(files("opdbench.tiny.preference_model"))
_PICKSCORE = JudgeFiles("yuvalkirstain/PickScore_v1", optional=())
_PREPARED = JudgeFiles(CLIP_H, (("preprocessor_config.json",),))
_HPS = JudgeFiles("xswu/HPSv2", ((HPS_FILE,),), ())
_HEAD = JudgeFiles("trl-lib/ddpo-aesthetic-predictor", ((LAION_HEAD, TRL_HEAD),), ())
_BLIP = JudgeFiles("THUDM/ImageReward", ((WEIGHTS,), (TEXT_CONFIG,)), ())
_BERT = JudgeFiles("bert-base-uncased", (("vocab.txt", "tokenizer.json"),))

SCORERS: Mapping[str, Scorer] = {
    "preference": Scorer("clip", "score", (-100.0, 100.0), 1.0, _tiny, (JudgeFiles(_TINY),), "tiny-clip"),
    "pickscore": Scorer(
        "PickScore_v1", "exp(logit scale) x cosine", (-100.0, 100.0), 26.0, _pickscore, (_PICKSCORE, _PREPARED)
    ),
    "clipscore": Scorer("clip-vit-large-patch14", "cosine", (-1.0, 1.0), 1.0, _clipscore, (JudgeFiles(CLIP_L),)),
    "hpsv2": Scorer("HPS_v2.1", "cosine", (-1.0, 1.0), 1.0, _hps, (_HPS, _PREPARED)),
    "aesthetic": Scorer(
        "sac+logos+ava1-l14", "points, about 1 to 10", UNBOUNDED, 1.0, _aesthetic, (JudgeFiles(CLIP_L), _HEAD)
    ),
    "imagereward": Scorer("ImageReward-v1.0", "standard deviations", UNBOUNDED, 1.0, _imagereward, (_BLIP, _BERT)),
}
"""Sources: arXiv 2305.01569 (PickScore), 2103.00020 (CLIP), 2306.09341 (HPSv2), 2210.08402 (LAION), 2304.05977."""


class Preference:
    """A scorer of the table as an evaluator; by default the tiny world's."""

    version = 1
    higher_is_better = True
    payload = ()

    def __init__(
        self,
        name: str = "preference",
        source: str | None = None,
        prompts: Callable[[Split], Sequence[Prompt]] = preference_prompts,
    ) -> None:
        """Remember what to load; nothing is read before the first score.

        Args:
            name: of a scorer.
            source: one folder with all files of the scorer, or a hub id; their usual places if None.
            prompts: of a split.
        """
        self.name, self._prompts, self._scorer = name, prompts, SCORERS[name]
        self._shipped = self._scorer.shipped if source is None else ""
        usual = self._scorer.checkpoints
        self._checkpoints = usual if source is None else tuple(replace(files, source=source) for files in usual)
        self.unit, self.range = self._scorer.unit, self._scorer.range

    @cached_property
    def backend(self) -> str:
        """Model and version, and the hash of its files unless they come with this package."""
        return self._shipped or keyed(self._scorer.backend, self._checkpoints)

    @cached_property
    def judge(self) -> PairScorer:
        """The model, loaded when first used."""
        return self._scorer.load(f"the {self.name} model", [files.source for files in self._checkpoints])

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Prompts of a split."""
        return self._prompts(split)

    def check(self, prompt: Prompt) -> None:
        """Raise `UserError` if the prompt has no text."""
        if not prompt.text.strip():
            raise UserError(f"prompt {prompt.id!r} has no text; the {self.name} score needs one")

    def group(self, prompt: Prompt) -> str:
        """No strata."""
        return ""

    def score(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Score]:
        """Score each picture under its own prompt; `truncated` tells if the model read only its beginning.

        A picture that is too small or too long is unscored.

        Raises:
            UserError: if a picture is not RGB, a prompt is empty, or the model cannot be loaded.
        """
        for prompt in prompts:
            self.check(prompt)

        def score(fit: Sequence[int]) -> list[Score]:
            scores: list[Score] = []
            for first in range(0, len(fit), BATCH):
                batch = fit[first : first + BATCH]
                scores += self._score_batch([images[k] for k in batch], [prompts[k] for k in batch])
            return scores

        return score_fit(images, prompts, f"the {self.name} score", score)

    def _score_batch(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Score]:
        texts = [prompt.text for prompt in prompts]
        values, truncated = self.judge.values(images, texts), self.judge.truncated(texts)
        divisor = self._scorer.divisor
        return [
            Score(value, value / divisor, details={"truncated": cut}, metrics={"truncated": float(cut)})
            for value, cut in zip(values, truncated, strict=True)
        ]


def _judge(name: str, source: str | None) -> Preference:
    return Preference(name, source, pulled("drawbench", name, "pickapic-train"))


pickscore = partial(_judge, "pickscore")
clipscore = partial(_judge, "clipscore")
hpsv2 = partial(_judge, "hpsv2")
aesthetic = partial(_judge, "aesthetic")
imagereward = partial(_judge, "imagereward")
