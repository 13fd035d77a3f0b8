"""GenEval (Ghosh et al. 2023, arXiv 2310.11513) on the tiny world: the official rules, own detector.

The verdict is the official one. The detector is classical (`shapes`), so the numbers belong to the
backend `shapes` and never share a column with Mask2Former's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from PIL.Image import Image

from opdbench.evaluators.geneval_rules import judge
from opdbench.evaluators.geneval_spec import Spec, parse_metadata
from opdbench.evaluators.shapes import detect

from ..core import Prompt, Score, Split
from ..errors import UserError
from ..tiny.prompts import geneval_pool, geneval_prompts
from ..tiny.scenes import COLORS, SHAPES


class GenEval:
    """Are the asked objects there, in number, colour and place? 1 or 0 per picture.

    The reward for RL is Flow-GRPO's dense reward with its position term mended (`dense_fixed`),
    clipped to [0, 1]: unclipped it falls to -14 on a picture full of one shape.
    """

    name = "geneval"
    version = 1
    backend = "shapes"
    unit = "accuracy"
    range = (0.0, 1.0)
    higher_is_better = True

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Prompts of the tiny world's split; tags are balanced in `train`, where one alone has most."""
        return geneval_pool() if split == "train" else geneval_prompts(split)

    def check(self, prompt: Prompt) -> None:
        """Raise `UserError` if the prompt has no usable `include`, or asks for what cannot be detected."""
        spec = self._spec(prompt)
        if not spec.include:
            raise UserError(f"prompt {prompt.id!r} has an empty 'include': every picture would be correct")
        for clause in (*spec.include, *spec.exclude):
            if clause.name not in SHAPES:
                raise UserError(
                    f"prompt {prompt.id!r} asks for {clause.name!r}; "
                    f"the detector {self.backend!r} knows {', '.join(SHAPES)}"
                )
            if clause.color is not None and clause.color not in COLORS:
                raise UserError(
                    f"prompt {prompt.id!r} asks for the colour {clause.color!r}; "
                    f"the detector {self.backend!r} knows {', '.join(COLORS)}"
                )

    def group(self, prompt: Prompt) -> str:
        """GenEval's tag."""
        return str(prompt.spec["tag"])

    def score(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Score]:
        """Official verdict as value, clipped dense reward as reward, boxes as details."""
        return [self._score_one(image, prompt) for image, prompt in zip(images, prompts, strict=True)]

    def _score_one(self, image: Image, prompt: Prompt) -> Score:
        detections = detect(image)
        verdict = judge(self._spec(prompt), detections)
        return Score(
            value=float(verdict.correct),
            reward=min(max(verdict.dense_fixed, 0.0), 1.0),
            reason="; ".join(verdict.reasons),
            details={"strict": verdict.strict, "detections": [asdict(d) for d in detections]},
        )

    def _spec(self, prompt: Prompt) -> Spec:
        try:
            return parse_metadata(prompt.spec)
        except UserError as error:
            raise UserError(f"prompt {prompt.id!r} is no GenEval prompt: {error}") from error
