"""GenEval's official rules over detections: the verdict and Flow-GRPO's rewards.

The rules are those of Ghosh et al. 2023 (arXiv 2310.11513) and of its public script; the strict
verdict and the dense reward are those of Flow-GRPO's reward server (Liu et al. 2025, arXiv
2505.05470). The server writes -10.0 for the tags that a picture does not have; here they are absent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from opdbench.errors import UserError
from opdbench.evaluators.geneval.spec import RELATIONS, Clause, Detection, GenEvalOptions, GenEvalSpec

PALETTE = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")


@dataclass(frozen=True)
class GenEvalVerdict:
    """What the rules say of one picture.

    Attributes:
        correct, reasons: the official verdict, and why not.
        strict, strict_reasons: exactly the wanted number of each class; `exclude` is not read.
        dense_flowgrpo: Flow-GRPO's training reward, in [-14, 1] with 16 detections a class; after a
            wrong position it adds 1.0 for nothing.
        dense_fixed: the same without that 1.0.
        kept: detections per class after filtering.
        color_calls: colour labels, one tuple for each clause whose colour was asked.
    """

    correct: bool
    reasons: tuple[str, ...]
    strict: bool
    strict_reasons: tuple[str, ...]
    dense_flowgrpo: float
    dense_fixed: float
    kept: Mapping[str, int]
    color_calls: tuple[tuple[str, ...], ...]


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two boxes with the script's extra pixel (width = x2 - x1 + 1)."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) + 1
    inner = float(np.prod(np.maximum(sides, 0)))
    return inner / (float(np.prod(a[2:] - a[:2] + 1)) + float(np.prod(b[2:] - b[:2] + 1)) - inner)


def filter_detections(detections: Iterable[Detection], tag: str, options: GenEvalOptions) -> dict[str, list[Detection]]:
    """Kept detections per class, most confident first; of equal scores the later one comes first."""
    least = np.float32(options.counting_threshold if tag == "counting" else options.threshold)
    groups: dict[str, list[Detection]] = {}
    for detection in detections:
        # Strict and in float32, as the detector's scores are: 0.3 itself is dropped.
        if np.float32(detection.score) > least:
            groups.setdefault(detection.name, []).append(detection)
    kept = {}
    for name, group in groups.items():
        order = sorted(range(len(group)), key=lambda k: (-np.float32(group[k].score), -k))
        chosen: list[Detection] = []
        for detection in (group[k] for k in order[: options.max_objects]):
            box = np.asarray(detection.box, np.float32)
            others = (_overlap(box, np.asarray(d.box, np.float32)) for d in chosen)
            if options.max_overlap == 1 or all(iou < options.max_overlap for iou in others):
                chosen.append(detection)
        if chosen:
            kept[name] = chosen
    return kept


def relations(a: Sequence[float], b: Sequence[float], dead_zone: float = 0.1) -> list[str]:
    """Relations of box `a` to box `b`, up to two, in float32 as in the official script.

    The offset of the centres is shrunk by `dead_zone` times the summed sizes, per axis, and divided
    by its own length before shrinking; a relation holds where the result exceeds one half.
    """
    first, second = np.asarray(a, np.float32).reshape(2, 2), np.asarray(b, np.float32).reshape(2, 2)
    offset = first.mean(0) - second.mean(0)
    dead = np.float32(dead_zone) * (np.abs(first[1] - first[0]) + np.abs(second[1] - second[0]))
    shrunk = np.maximum(np.abs(offset) - dead, 0) * np.sign(offset)
    if np.all(np.abs(shrunk) < 1e-3):
        return []
    dx, dy = shrunk / np.linalg.norm(offset)
    holds = (dx < -0.5, dx > 0.5, dy < -0.5, dy > 0.5)
    return [name for name, held in zip(RELATIONS, holds, strict=True) if held]


def _color_reason(clause: Clause, labels: Sequence[str]) -> str:
    tally = Counter(labels)
    order = [c for c in PALETTE if c in tally] + sorted(set(tally) - set(PALETTE))
    listed = ", ".join(f"{tally[c]} {c}" for c in order)
    wanted = f"expected {clause.color} {clause.name}>={clause.count}"
    return f"{wanted}, found {tally[clause.color or '']} {clause.color}; and {listed}"


def _position_reason(
    clause: Clause, group: Sequence[Detection], targets: Sequence[Detection] | None, dead_zone: float
) -> str:
    """Why the clause's relation does not hold, or "" if it does."""
    if clause.position is None:
        return ""
    wanted = clause.position[0]
    if targets is None:
        return f"no target for {clause.name} to be {wanted}"
    for subject in group:
        for target in targets:
            held = relations(subject.box, target.box, dead_zone)
            if wanted not in held:
                return f"expected {clause.name} {wanted} target, found {' and '.join(held)} target"
    return ""


@dataclass
class _Walk:
    """Result of one walk over the include clauses: reasons, reward terms and colour labels."""

    reasons: list[str]
    terms: list[float]
    fixed: list[float]
    calls: list[tuple[str, ...]]

    def reward(self, *terms: float) -> None:
        self.terms += terms
        self.fixed += terms


def _check_color(clause: Clause, group: Sequence[Detection], walk: _Walk) -> bool:
    if clause.color is None:
        return True
    labels = tuple(d.color for d in group if d.color is not None)
    if len(labels) < len(group):
        raise UserError(f"a detection of {clause.name!r} has no colour label, and the prompt asks its colour")
    walk.calls.append(labels)
    hits = labels.count(clause.color)
    walk.reward(1 - (clause.count - hits) / clause.count)
    if hits < clause.count:
        walk.reasons.append(_color_reason(clause, labels))
    return hits == clause.count


def _walk_include(spec: GenEvalSpec, kept: Mapping[str, list[Detection]], dead_zone: float, exact: bool) -> _Walk:
    """Check every include clause, at least (official) or exactly (`exact`, reward) `count` boxes."""
    walk = _Walk([], [], [], [])
    matched: list[Sequence[Detection] | None] = []
    for clause in spec.include:
        boxes, want = kept.get(clause.name, []), clause.count
        group = boxes[:want]
        walk.reward(1 - abs(want - len(boxes)) / want)
        passed = len(boxes) == want if exact else len(boxes) >= want
        if not passed:
            sign = "==" if exact else ">="
            walk.reasons.append(f"expected {clause.name}{sign}{want}, found {len(boxes)}")
            if clause.color is not None or clause.position is not None:
                walk.reward(0.0)
        elif not _check_color(clause, group, walk):
            passed = False
        elif clause.position is not None:
            targets = matched[clause.position[1]]
            reason = _position_reason(clause, group, targets, dead_zone)
            passed = not reason
            walk.fixed.append(float(passed))
            # Flow-GRPO's server appends 1.0 after a violated relation too, but not without a target.
            walk.terms += [1.0] if passed else [0.0] if targets is None else [0.0, 1.0]
            walk.reasons += [reason] if reason else []
        matched.append(group if passed else None)
    return walk


def judge(spec: GenEvalSpec, detections: Iterable[Detection], options: GenEvalOptions | None = None) -> GenEvalVerdict:
    """Official verdict, strict verdict and dense rewards of one picture.

    Raises:
        UserError: if a colour is asked of a detection that has no colour label.
    """
    options = options or GenEvalOptions()
    kept = filter_detections(detections, spec.tag, options)
    official = _walk_include(spec, kept, options.position_threshold, exact=False)
    exact = _walk_include(spec, kept, options.position_threshold, exact=True)
    for clause in spec.exclude:
        number = len(kept.get(clause.name, []))
        if number >= clause.count:
            official.reasons.append(f"expected {clause.name}<{clause.count}, found {number}")
    return GenEvalVerdict(
        correct=not official.reasons,
        reasons=tuple(official.reasons),
        strict=not exact.reasons,
        strict_reasons=tuple(exact.reasons),
        dense_flowgrpo=sum(exact.terms) / len(exact.terms) if exact.terms else 0.0,
        dense_fixed=sum(exact.fixed) / len(exact.fixed) if exact.fixed else 0.0,
        kept={name: len(group) for name, group in kept.items()},
        color_calls=tuple(official.calls),
    )
