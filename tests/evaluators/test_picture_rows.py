"""Rows of existing pictures: which of them are one prompt, and which are refused."""

from __future__ import annotations

import json
import os

import pytest
from command import opdbench
from PIL import Image, ImageDraw, ImageFont

from opdbench.core import payload
from opdbench.errors import UserError
from opdbench.evaluation.picture_files import read_pictures
from opdbench.evaluators.geneval.judge import GenEval
from opdbench.prompt_sets import read_prompts

WORDS = {"HELLO": "HELLO", "WORLD": "XXXXX", "PIZZA": "PIZZA"}


@pytest.fixture
def rows(tmp_path):
    """Four pictures per word; one word is never drawn."""
    made = []
    for word, drawn in WORDS.items():
        for k in range(4):
            image = Image.new("RGB", (256, 256), "white")
            ImageDraw.Draw(image).text((30, 96), drawn, fill=0, font=ImageFont.load_default(48))
            image.save(tmp_path / f"{word}{k}.png")
            made.append({"image": f"{word}{k}.png", "prompt": f'a sign "{word}"'})
    return made


def write(path, rows, start=b""):
    path.write_bytes(start + "\n".join(map(json.dumps, rows)).encode())
    return path


def whole(folder, name, *args):
    done = opdbench("eval", "--pictures", name, "--tasks", "ocr", "--format", "json", *args, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)[0]


def test_bookkeeping_makes_no_clusters(tmp_path, rows):
    """Whatever a row says besides what the judge reads: each prompt is one cluster, and the error that of three."""
    write(tmp_path / "plain.jsonl", rows)
    write(tmp_path / "seeded.jsonl", [{**row, "seed": k} for k, row in enumerate(rows)])
    write(tmp_path / "ids.jsonl", [{"id": f"x{k}", "run": str(k), **row} for k, row in enumerate(rows)])
    plain = whole(tmp_path, "plain.jsonl")
    assert (plain["n"], plain["clusters"]) == (12, 3)
    assert plain["se"] == pytest.approx(1 / 3, abs=0.02)
    for name in ("seeded.jsonl", "ids.jsonl"):
        other = whole(tmp_path, name)
        assert [other[key] for key in ("value", "se", "n", "clusters")] == [
            plain[key] for key in ("value", "se", "n", "clusters")
        ]
        assert other["key"].split()[0] == plain["key"].split()[0]


def test_the_judges_payload_parts_prompts_of_one_text(tmp_path, rows):
    clauses = [{"class": "circle", "count": count} for count in (1, 2)]
    specs = [{**row, "prompt": "a photo", "tag": "counting", "include": [clauses[k % 2]], "seed": k}
             for k, row in enumerate(rows)]  # fmt: skip
    path = write(tmp_path / "g.jsonl", specs)
    assert {p.prompt.id for p in read_pictures(path, payload(GenEval()))} == {"g/0000", "g/0001"}
    assert {p.prompt.id for p in read_pictures(path, ())} == {"g/0000"}
    assert {p.prompt.id for p in read_pictures(path)} == {"g/0000", "g/0001"}  # an unknown judge may read `include`


def test_a_prompts_file_with_ids_and_seeds_has_each_prompt_once(tmp_path):
    rows = [{"prompt": f"p{k % 2}", "seed": k, "id": str(k)} for k in range(6)]
    prompts = read_prompts(write(tmp_path / "p.jsonl", rows), "ocr")
    assert [(p.text, p.images) for p in prompts] == [("p0", 3), ("p1", 3)]


@pytest.mark.parametrize("kind", ["row", "file", "link"])
def test_a_row_or_a_file_twice_is_an_error(tmp_path, rows, kind):
    more = {"row": rows[5], "file": {"image": "./WORLD1.png", "prompt": 'a sign "OTHER"'}, "link": {**rows[5]}}[kind]
    if kind == "link":
        os.symlink(tmp_path / "WORLD1.png", tmp_path / "link.png")
        more["image"] = "link.png"
    write(tmp_path / "twice.jsonl", [*rows, more])
    done = opdbench("eval", "--pictures", "twice.jsonl", "--tasks", "ocr", cwd=tmp_path)
    assert done.returncode == 2
    assert "is given twice, in twice.jsonl, line 6 and twice.jsonl, line 13" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_capital_letters_of_a_kind_are_no_other_kind(tmp_path):
    samples = tmp_path / "00000" / "samples"
    samples.mkdir(parents=True)
    (samples.parent / "metadata.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "x", "tag": "t", "include": []}')
    for name in ("0000.png", "0001.PNG", "0002.Png"):
        Image.new("RGB", (9, 9)).save(samples / name, "PNG")
    assert [p.path.name for p in read_pictures(tmp_path)] == ["0000.png", "0001.PNG", "0002.Png"]
    Image.new("RGB", (9, 9)).save(samples / "0003.TIFF", "TIFF")
    with pytest.raises(UserError, match="is not PNG"):
        read_pictures(tmp_path)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".tsv"])
def test_a_byte_order_mark_is_no_character(tmp_path, suffix):
    text = {".txt": "a cat", ".jsonl": '{"prompt": "a cat"}', ".tsv": "Prompt\na cat"}[suffix]
    path = tmp_path / f"p{suffix}"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [p.text for p in read_prompts(path, "ocr")] == ["a cat"]


def test_a_byte_order_mark_of_rows_is_no_character(tmp_path, rows):
    assert read_pictures(write(tmp_path / "bom.jsonl", rows, b"\xef\xbb\xbf"))[0].prompt.text == 'a sign "HELLO"'


@pytest.mark.parametrize("bad", ["\0", "\ud800", "a\udfffb"])
@pytest.mark.parametrize("key", ["prompt", "image", "other"])
def test_what_is_no_text_is_one_line(tmp_path, rows, bad, key):
    write(tmp_path / "bad.jsonl", [{**rows[0], key: f'the "WORD" {bad}'}])
    done = opdbench("eval", "--pictures", "bad.jsonl", "--tasks", "ocr", cwd=tmp_path)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert "bad.jsonl, line 1 holds" in done.stderr
    if key == "prompt":
        write(tmp_path / "p.jsonl", [{"prompt": f'the "WORD" {bad}'}])
        done = opdbench("eval", "--prompts", "p.jsonl", "--tasks", "ocr", cwd=tmp_path)
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
        assert "line 1 holds" in done.stderr


def test_an_escaped_backslash_is_text(tmp_path):
    write(tmp_path / "p.jsonl", [{"prompt": "a path C:\\u0000"}])
    assert read_prompts(tmp_path / "p.jsonl", "ocr")[0].text == "a path C:\\u0000"
