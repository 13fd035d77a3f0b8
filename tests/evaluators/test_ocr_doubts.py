"""Prompts and readings for which the official OCR formula is known to mislead: told and counted, never changed."""

from __future__ import annotations

import json
import unicodedata

import pytest
from command import opdbench
from PIL import Image, ImageDraw, ImageFont

from opdbench.evaluators.ocr.judge import OCR
from opdbench.evaluators.ocr.rules import doubt, score_text

CAFE = unicodedata.normalize("NFD", "CAFÉ")


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ('a 12" pizza under a sign "HOT"', "follows a digit"),
        ('a 12" pizza and a 14" pizza', "follows a digit"),
        ('the words "HOT" and "COLD"', "4 double quotes"),
        ('a sign "HOT" of 3" height', "3 double quotes"),
        (f'a sign "{CAFE}"', "NFC"),
        ('a sign "HOT"', ""),
        ('a sign "CAFÉ"', ""),
        ("no quote", ""),
    ],
)
def test_a_prompt_is_doubtful_where_another_text_may_be_meant(prompt, reason):
    assert reason in doubt(prompt)
    assert bool(reason) == bool(doubt(prompt))


def test_the_official_value_stays_and_the_other_one_is_a_metric():
    reading = score_text(f'a sign "{CAFE}"', ["CAFÉ"])
    assert reading.value == pytest.approx(1 - 2 / 5)  # two edits of five characters
    assert reading.nfc == 1.0
    assert "NFC" in score_text('a sign "CAFÉ"', [CAFE]).doubt
    assert score_text('a sign "CAFÉ"', ["CAFÉ"]).nfc is None


def test_doubtful_prompts_are_warned_of_and_counted(tmp_path):
    image = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(image).text((40, 96), "HOT", fill=0, font=ImageFont.load_default(48))
    rows = []
    for k, prompt in enumerate(('a 12" pizza under a sign "HOT"', 'a sign "HOT"', 'a sign "HOT" "HOT"')):
        image.save(tmp_path / f"{k}.png")
        rows.append({"image": f"{k}.png", "prompt": prompt})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = opdbench("eval", "--pictures", "rows.jsonl", "--tasks", "ocr", "--format", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warning: ocr: 2 of 3 prompts are doubtful" in done.stderr
    assert "inch mark" in done.stderr
    table = {row["metric"]: row for row in json.loads(done.stdout)}
    assert (table["doubtful"]["n"], table[""]["n"], table[""]["unscored"]) == (2, 3, 0)
    clear = OCR().score([image], [type("P", (), {"text": 'a sign "HOT"'})()])[0]
    assert "doubtful" not in clear.metrics


def test_broken_rows_end_with_1_and_no_rows_with_2(tmp_path):
    good, broken = (
        {"id": 1, "prompt": 'a "HOT"', "recognized": ["HOT"]},
        {"id": 2, "prompt": "no quote", "recognized": []},
    )
    for rows, code in (([good], 0), ([good, broken], 1), ([], 2)):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        done = opdbench("score", "ocr", tmp_path / "rows.jsonl")
        assert (done.returncode, len(done.stdout.splitlines())) == (code, len(rows))
    inch = {"id": 3, "prompt": 'a 12" sign "HOT"', "recognized": ["HOT"]}
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(inch).encode())
    done = opdbench("score", "ocr", tmp_path / "rows.jsonl")
    assert (done.returncode, json.loads(done.stdout)["score"]) == (0, 0)
    assert "warning: 1 rows are doubtful; line 1: " in done.stderr
    assert "inch mark" in done.stderr


@pytest.mark.parametrize("height", [12, 16, 20])
def test_small_words_on_large_flat_pictures_are_read(height):
    """Version 2: PP-OCRv6 finds none of them with the detector's input of version 1, 960 pixels."""
    image = Image.new("RGB", (1024, 1024), "white")
    ImageDraw.Draw(image).text((300, 500), "HELLO", fill=0, font=ImageFont.load_default(1.35 * height))
    (score,) = OCR().score([image], [type("P", (), {"text": 'a sign "HELLO"'})()])
    assert score.value == 1.0


def test_the_version_follows_the_pictures_side():
    ocr = OCR()
    assert [ocr.version_at(side) for side in (64, 128, 129, 1024)] == [1, 1, 2, 2]
