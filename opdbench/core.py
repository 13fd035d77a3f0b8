"""The nouns of the project that need no tensor: prompts, scores and estimates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """One thing to draw.

    Attributes:
        id: unique and stable, for example `ocr/test/0412`.
        text: what the model reads.
        task: name of the evaluator that it belongs to.
        spec: the evaluator's own payload: GenEval metadata, or `{"target": word}`.
        images: pictures to make of it in an evaluation.
    """

    id: str
    text: str
    task: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    images: int = 1
