"""The second edition's tasks: the first edition's judges on the second edition's prompts, and a judge of style.

A tag of GenEval can be a task of its own: `geneval-tiny2:counting`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from opdbench.core import Prompt, Split
from opdbench.errors import UserError, unknown
from opdbench.evaluators.geneval.judge import GenEval
from opdbench.evaluators.ocr.judge import OCR
from opdbench.evaluators.second.style import Centred
from opdbench.tiny.prompts import TAGS
from opdbench.tiny.second.prompts import geneval_pool, geneval_prompts, ocr_prompts


def _own(source: str | None) -> None:
    if source is not None:
        raise UserError("the tasks of tiny@2 come with all that they need; they take no source")


def _geneval(split: Split, tag: str, task: str) -> Sequence[Prompt]:
    prompts = geneval_pool(tag) if split == "train" else geneval_prompts(split, tag)
    return tuple(replace(prompt, task=task) for prompt in prompts)


def geneval(source: str | None = None, tag: str = "") -> GenEval:
    """GenEval on the second edition's prompts, all tags (each has the same share in `train`) or one alone."""
    _own(source)
    if tag and tag not in TAGS:
        raise unknown("tag of GenEval", tag, TAGS)
    name = f"geneval:{tag}" if tag else "geneval"
    prompts: Callable[[Split], Sequence[Prompt]] = partial(_geneval, tag=tag, task=name)
    judge = GenEval(prompts=prompts)
    judge.name = name
    return judge


def ocr(source: str | None = None) -> OCR:
    """Reading on the second edition's prompts."""
    _own(source)
    return OCR(prompts=ocr_prompts)


def preference(source: str | None = None) -> Centred:
    """Style on the second edition's prompts."""
    _own(source)
    return Centred()
