"""GenEval's rules against the official script's verdicts, Flow-GRPO's rewards and UniRL's fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opdbench.core import Sample
from opdbench.errors import UserError
from opdbench.evaluation.tables import table
from opdbench.evaluators.geneval.rules import GenEvalVerdict, judge, relations
from opdbench.evaluators.geneval.spec import parse_detections, parse_metadata, parse_options

GOLDEN = Path(__file__).parents[1] / "golden"
ALL = [json.loads(line) for line in (GOLDEN / "geneval.jsonl").read_text().splitlines()]
TIES = [case for case in ALL if case.get("platform_dependent")]  # the official sort is unstable there
CASES = [case for case in ALL if case not in TIES]
SUMMARIES = json.loads((GOLDEN / "geneval_summary.json").read_text())


def verdict(case: dict[str, Any]) -> GenEvalVerdict:
    options = parse_options(case.get("options", {}))
    return judge(parse_metadata(case["metadata"]), parse_detections(case["detections"]), options)


def same_reasons(found: list[str], expected: list[str], unordered: bool) -> bool:
    if not unordered:
        return found == expected
    words = [[sorted(line.split()) for line in lines] for lines in (found, expected)]
    return words[0] == words[1]


def test_the_golden_file_is_whole() -> None:
    assert (len(ALL), len(TIES)) == (70, 1)
    assert sum("flow_grpo" in case for case in ALL) == 64


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_official_verdict(case: dict[str, Any]) -> None:
    got, expected = verdict(case), case["expected"]
    assert got.correct is expected["correct"]
    assert same_reasons(list(got.reasons), expected["reasons"], case.get("reason_unordered", False))
    assert same_reasons("\n".join(got.reasons).split("\n"), expected["reason"].split("\n"), True)
    assert dict(got.kept) == expected["kept"]
    assert [list(call) for call in got.color_calls] == expected["color_calls"]


@pytest.mark.parametrize("case", [c for c in CASES if "flow_grpo" in c], ids=lambda c: c["id"])
def test_flow_grpo_rewards(case: dict[str, Any]) -> None:
    got, expected = verdict(case), case["flow_grpo"]
    assert got.correct is expected["correct"]
    assert got.strict is expected["strict_correct"]
    assert got.dense_flowgrpo == pytest.approx(expected["score"], abs=1e-12)
    assert got.dense_fixed == pytest.approx(case["unirl_fixed_dense_score"], abs=1e-12)
    unordered = case.get("reason_unordered", False)
    assert same_reasons("\n".join(got.strict_reasons).split("\n"), expected["strict_reason"].split("\n"), unordered)


@pytest.mark.parametrize(
    "case", [c for c in CASES if "group_accuracy" in c.get("flow_grpo", {})], ids=lambda c: c["id"]
)
def test_group_accuracies_hold_the_tag_of_the_picture_alone(case: dict[str, Any]) -> None:
    got = verdict(case)
    for key, value in (("group_accuracy", got.correct), ("group_strict_accuracy", got.strict)):
        present = {tag: v for tag, v in case["flow_grpo"][key].items() if v != -10.0}
        assert present == {case["metadata"]["tag"]: float(value)}


def test_of_equal_scores_the_later_detection_comes_first() -> None:
    for case in TIES:
        assert list(verdict(case).reasons) == case["expected"]["reasons"]


@pytest.mark.parametrize("summary", SUMMARIES, ids=lambda s: s["name"])
def test_the_table_says_what_the_official_script_prints(summary: dict[str, Any]) -> None:
    samples = [
        Sample(f"{r['tag']} {r['prompt']}", k, "geneval", r["tag"], float(r["correct"]), None)
        for k, r in enumerate(summary["results"])
    ]
    rows = {(row["group"], row["metric"]): row for row in table("geneval", "key", "set@1", samples)}
    overall, expected = rows["", ""], summary["expected"]
    assert (overall["n"], overall["clusters"]) == (expected["total_images"], expected["total_prompts"])
    assert round(overall["value"], 5) == expected["overall"]
    if len(expected["tags"]) == 1:  # all means are one
        assert len(rows) == 1
        return
    assert round(100 * rows["", "images"]["value"], 2) == expected["correct_images_pct"]
    assert round(100 * rows["", "any"]["value"], 2) == expected["correct_prompts_pct"]
    assert rows["", "images"]["value"] == pytest.approx(summary["image_weighted_accuracy_flow_grpo"], abs=1e-12)
    tags = {group: (round(100 * row["value"], 2), row["n"]) for (group, _), row in rows.items() if group}
    assert tags == {tag: (one["acc_pct"], one["total"]) for tag, one in expected["tags"].items()}


@pytest.mark.parametrize(
    ("dx", "dy", "expected"),
    [
        (41, 0, ["right of"]),
        (40, 0, []),  # 20 % of the summed widths, strictly
        (-41, 0, ["left of"]),
        (0, 41, ["below"]),
        (0, -41, ["above"]),
        (100, 100, ["right of", "below"]),
        (0, 0, []),
    ],
)
def test_relations_need_more_than_a_fifth_of_the_summed_sizes(dx: float, dy: float, expected: list[str]) -> None:
    assert relations((dx, dy, dx + 100, dy + 100), (0, 0, 100, 100)) == expected


def metadata(**changes: object) -> dict[str, Any]:
    clause = {"class": "dog", "count": 1}
    return {"tag": "custom", "prompt": "a dog", "include": [clause], **changes}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "metadata must be an object"),
        ({"tag": "counting", "include": []}, "'prompt'"),
        ({"prompt": "a dog", "include": []}, "'tag'"),
        ({"tag": "counting", "prompt": "a dog"}, "neither 'include' nor 'exclude'"),
        (metadata(include="dog"), "must be a list"),
        (metadata(include=["dog"]), r"include\[0\] must be an object"),
        (metadata(include=[{"count": 1}]), "'class'"),
        (metadata(include=[{"class": "dog"}]), "count must be an integer"),
        (metadata(include=[{"class": "dog", "count": 0}]), "at least 1"),
        (metadata(include=[{"class": "dog", "count": True}]), "count must be an integer"),
        (metadata(include=[{"class": "dog", "count": 1.0}]), "count must be an integer"),
        (metadata(include=[{"class": "dog", "count": 1, "color": 3}]), "'color'"),
        (metadata(include=[{"class": "dog", "count": 1, "position": ["left of", 0]}]), "earlier clause"),
        (metadata(include=[{"class": "dog", "count": 1, "position": ["left of", -1]}]), "earlier clause"),
        (metadata(include=[{"class": "dog", "count": 1, "position": ["near", 0]}]), "unknown relation"),
        (metadata(include=[{"class": "dog", "count": 1, "position": "left of"}]), "position must be"),
        (metadata(exclude={"class": "dog"}), "'exclude' must be a list"),
    ],
)
def test_bad_metadata_is_one_clear_line(bad: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse_metadata(bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box": [0, 0, float("nan"), 1]}, "finite"),
        ({"box": [0, 0, float("inf"), 1]}, "finite"),
        ({"box": [0, 0, 10**400, 1]}, "finite"),
        ({"box": [0, 0, 1]}, "box must be"),
        ({"box": [9, 0, 1, 1]}, "x1 <= x2"),
        ({"box": ["0", 0, 1, 1]}, "must be a number"),
        ({"score": float("nan")}, "finite"),
        ({"score": None}, "must be a number"),
        ({"score": True}, "must be a number"),
        ({"class": None}, "'class'"),
        ({"color": 1}, "'color'"),
    ],
)
def test_bad_detections_are_one_clear_line(change: dict[str, Any], message: str) -> None:
    good = {"class": "dog", "box": [0, 0, 1, 1], "score": 0.9, "color": None}
    parse_detections([good])
    with pytest.raises(UserError, match=message) as error:
        parse_detections([{**good, **change}])
    assert "\n" not in str(error.value)


def test_unknown_option_says_what_was_meant() -> None:
    with pytest.raises(UserError, match="did you mean 'threshold'"):
        parse_options({"treshold": 0.5})
    with pytest.raises(UserError, match="max_objects must be an integer"):
        parse_options({"max_objects": 1.5})


def test_a_colour_that_was_never_classified_cannot_be_judged() -> None:
    spec = parse_metadata(metadata(include=[{"class": "dog", "count": 1, "color": "red"}]))
    with pytest.raises(UserError, match="no colour label"):
        judge(spec, parse_detections([{"class": "dog", "box": [0, 0, 9, 9], "score": 0.9, "color": None}]))


def test_max_objects_keeps_the_most_confident() -> None:
    boxes = [{"class": "dog", "box": [0, 0, 9, 9], "score": s, "color": None} for s in (0.5, 0.9, 0.7)]
    got = judge(parse_metadata(metadata()), parse_detections(boxes), parse_options({"max_objects": 2}))
    assert got.kept == {"dog": 2}


def test_an_empty_include_is_vacuously_correct_and_earns_nothing() -> None:
    got = judge(parse_metadata(metadata(include=[])), [])
    assert (got.correct, got.strict, got.dense_flowgrpo, got.dense_fixed) == (True, True, 0.0, 0.0)
