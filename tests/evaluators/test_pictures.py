"""`opdbench eval --pictures`: GenEval's layout and JSONL, resumed, with a gallery."""

from __future__ import annotations

import base64
import io
import json
import threading
from functools import partial
from random import Random

import pytest
from command import opdbench
from PIL import Image

from opdbench.core import Sample
from opdbench.errors import UserError
from opdbench.evaluation.evaluate import cut, score_in_parts
from opdbench.evaluation.gallery import SIDE, write_gallery
from opdbench.evaluation.picture_files import PictureFile, read_pictures, uneven
from opdbench.evaluation.picture_pixels import open_picture
from opdbench.evaluation.standalone import evaluate_pictures
from opdbench.evaluation.tables import table
from opdbench.evaluators.ocr.judge import OCR
from opdbench.tiny.prompts import geneval_prompts, ocr_prompts
from opdbench.tiny.render import render
from opdbench.tiny.scenes import draw_scene


def by_tag(number):
    """The first prompts of each tag."""
    tags = {}
    for prompt in geneval_prompts("test"):
        tags.setdefault(prompt.spec["tag"], []).append(prompt)
    return [p for group in tags.values() for p in group[:number]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two rendered pictures for each of twelve prompts, one of them of the wrong prompt."""
    root, rng = tmp_path_factory.mktemp("made"), Random(0)
    prompts = by_tag(2)
    for k, prompt in enumerate(prompts):
        samples = root / f"{k:05}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(prompt.spec))
        for n in range(2):
            shown = prompts[5] if (k, n) == (4, 1) else prompt
            render(draw_scene(shown.spec, rng)).save(samples / f"{n:05}.png")
    (root / "notes").mkdir()
    return root


def write_rows(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def words(tmp_path):
    prompts, rng, rows = ocr_prompts("test")[:5], Random(1), []
    for k, prompt in enumerate(prompts):
        for n in range(2):
            render(draw_scene(prompt.spec, rng)).save(tmp_path / f"{k}-{n}.png")
            rows.append({"image": f"{k}-{n}.png", "prompt": prompt.text})
    return write_rows(tmp_path / "words.jsonl", rows)


def test_genevals_layout_is_scored_and_a_second_time_found(folder, tmp_path):
    done = opdbench("eval", "--pictures", folder, "--tasks", "geneval", "--out", tmp_path, "--format", "json")
    assert done.returncode == 0, done.stderr
    rows = {(r["group"], r["metric"]): r for r in json.loads(done.stdout)}
    whole = rows["", ""]
    assert (whole["n"], whole["clusters"], whole["unscored"]) == (24, 12, 0)
    assert whole["value"] == pytest.approx(23 / 24)  # one of four pictures of one of six tags is wrong
    further = {"strict", "dense-fixed", "dense-flowgrpo"}
    assert len({g for g, _ in rows if g}) == 6
    assert {m for g, m in rows if g} == {"", *further}
    assert {m for g, m in rows if not g} == {"", "images", "any", *further}
    assert whole["prompts"].startswith(f"{folder.name}@")
    place = next(tmp_path.glob("pictures-*"))
    assert json.loads((place / "table.json").read_text())["rows"] == json.loads(done.stdout)
    page = next(place.glob("*.html")).read_text()
    assert page.count("<figure>") == 1
    samples = next(place.glob("geneval-*.jsonl"))
    before = samples.stat().st_mtime_ns
    again = opdbench("eval", "--pictures", folder, "--tasks", "geneval", "--out", tmp_path, "--format", "json")
    assert again.stdout == done.stdout
    assert samples.stat().st_mtime_ns == before


def test_lines_of_a_file_are_scored_and_a_broken_picture_is_unscored(words, tmp_path):
    (words.parent / "3-1.png").write_bytes(b"no picture")
    done = opdbench("eval", "--pictures", words, "--tasks", "ocr", "--out", tmp_path / "runs")
    assert done.returncode == 1
    assert "n 9, 1 unscored" in done.stdout
    assert "exact" in done.stdout


def quiet(done, total):
    pass


def test_a_killed_scoring_goes_on_to_the_same_rows(tmp_path):
    items, asked = list(range(25)), []

    def make(part):
        return [10 * k for k in part]

    def score(part, made, broken=None):
        assert made == make(part)
        for k in part:
            if k == broken:
                raise KeyboardInterrupt
            asked.append(k)
        return [Sample(str(k), 0, "t", "", k, k, details={"k": k}) for k in part]

    whole = score_in_parts(cut(items, 10), tmp_path / "a.jsonl", make, score, quiet)
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        score_in_parts(cut(items, 10), tmp_path / "b.jsonl", make, partial(score, broken=17), quiet)
    assert not (tmp_path / "b.jsonl").exists()
    resumed = score_in_parts(cut(items, 10), tmp_path / "b.jsonl", make, score, quiet)
    assert resumed == whole
    assert [k for k in asked if k < 10] == list(range(10))
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert not list(tmp_path.glob("*.part*"))


def test_a_part_is_scored_while_the_next_is_made(tmp_path):
    made_next = threading.Event()

    def make(part):
        if part == [2, 3]:
            made_next.set()
        return part

    def score(part, pictures):
        assert made_next.wait(20)
        return [Sample(str(k), 0, "t", "", k, k) for k in part]

    rows = score_in_parts(cut(range(6), 2), tmp_path / "a.jsonl", make, score, quiet)
    assert [row.value for row in rows] == list(range(6))


def test_shares_give_the_rows_of_one_process(words, tmp_path, monkeypatch):
    monkeypatch.setattr("opdbench.evaluation.standalone.BATCH", 3)
    whole = evaluate_pictures(words, {"ocr": OCR()}, tmp_path / "a")
    for k in (1, 0):
        assert evaluate_pictures(words, {"ocr": OCR()}, tmp_path / "b", (k, 2)) == []
        assert len(list((tmp_path / "b").rglob("*.part*"))) == (2 if k else 4)
    monkeypatch.setattr(OCR, "score", None)  # nothing is left to score
    assert evaluate_pictures(words, {"ocr": OCR()}, tmp_path / "b") == whole
    first, second = (next((tmp_path / name).rglob("ocr-*.jsonl")).read_bytes() for name in "ab")
    assert first == second


def test_pictures_are_counted_by_prompt(words):
    pictures = read_pictures(words)
    assert [(p.prompt.id, p.index, p.prompt.images) for p in pictures[:3]] == [
        ("words/0000", 0, 2),
        ("words/0000", 1, 2),
        ("words/0001", 0, 2),
    ]
    assert uneven(pictures) == ""
    prompts = {"0-0.png": "x", "0-1.png": "x", "1-0.png": "x", "1-1.png": "y"}
    write_rows(words, [{"image": name, "prompt": prompt} for name, prompt in prompts.items()])
    assert "1 of 1, 1 of 3" in uneven(read_pictures(words))


def test_orientation_is_applied_and_alpha_is_seen_over_white(tmp_path):
    turned = Image.new("RGB", (20, 10), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a.png", exif=exif)
    Image.new("RGBA", (8, 8), (1, 2, 3, 0)).save(tmp_path / "b.png")
    assert open_picture(tmp_path / "a.png").size == (10, 20)
    assert open_picture(tmp_path / "b.png").getpixel((0, 0)) == (255, 255, 255)


def test_the_gallery_escapes_what_people_and_engines_wrote(tmp_path, words):
    evil = "<script>alert('x')</script>"
    pictures = [PictureFile(p.path, p.prompt.__class__(evil, evil, "ocr"), 0, "") for p in read_pictures(words)[:3]]
    read = {"text": evil, "confidence": 0.25}
    box = {"name": evil, "color": "red; background: url(x)", "box": [1, 1, 9, 9], "score": 0.5}
    samples = [
        Sample(evil, 0, "ocr", "", v, v, evil, {}, {"recognized": [read], "detections": [box]}) for v in (None, 0.5, 1)
    ]
    write_gallery(tmp_path / "g.html", evil, samples, pictures, best=1.0)
    page = (tmp_path / "g.html").read_text()
    assert "<script" not in page
    assert page.count("<figure>") == 2
    assert page.index("unscored") < page.index("0.500")
    assert "data:image/png;base64," in page
    assert "style" not in page.split("</style>")[1]  # what is no word is no colour


def test_the_gallery_shows_picture_boxes_colours_text_and_reason(tmp_path, words):
    pictures = read_pictures(words)[:2]
    pictures[1].path.write_bytes(b"")
    box = {"name": "ring", "color": "red", "box": [16, 16, 48, 48], "score": 0.75}
    seen = {"detections": [box], "recognized": [{"text": "HI", "confidence": 0.5}]}
    samples = [
        Sample("p", 0, "t", "", 0.25, 0.25, "too few rings", {}, seen),
        Sample("p", 1, "t", "", None, None, "unreadable"),
    ]
    write_gallery(tmp_path / "g.html", "a title", samples, pictures, best=1.0)
    page = (tmp_path / "g.html").read_text()
    for text in ("too few rings", "0.250", "red ring 0.75", "background: red", "read &#39;HI&#39; 0.50", "no picture"):
        assert text in page, text
    raw = base64.b64decode(page.split("base64,")[1].split('"')[0])
    shown = Image.open(io.BytesIO(raw))
    assert shown.size == (SIDE, SIDE)  # enlarged five times, and the frame with it
    assert [shown.getpixel((x, SIDE // 2)) for x in (80, 240)] == [(255, 0, 255)] * 2
    assert shown.getpixel((SIDE // 4 - 4, SIDE // 2)) != (255, 0, 255)


def test_metrics_have_estimates_of_their_own():
    rows = [Sample(str(k), 0, "t", "", 1.0, 1.0, metrics={"cer": k}) for k in range(4)]
    rows.append(Sample("x", 0, "t", "", None, None))
    found = {r["metric"]: r for r in table("t", "key", "set@1", rows)}
    assert (found[""]["value"], found[""]["unscored"]) == (1.0, 1)
    assert (found["cer"]["value"], found["cer"]["n"], found["cer"]["unscored"]) == (1.5, 4, 1)


def test_a_prompts_best_picture_is_a_scored_one():
    values = {"a": [None, 0.0, 1.0], "b": [0.0, None], "c": [None]}
    samples = [Sample(p, k, "t", p, v, v) for p, row in values.items() for k, v in enumerate(row)]
    (row,) = [r for r in table("t", "key", "set@1", samples) if r["metric"] == "any"]
    assert (row["value"], row["n"], row["unscored"]) == (0.5, 2, 1)


def test_rows_do_not_depend_on_the_order_of_a_file(words, tmp_path):
    lines = words.read_text().split("\n")
    first = evaluate_pictures(words, {"ocr": OCR()}, tmp_path / "a")
    other = write_rows(words.with_name("back.jsonl"), [json.loads(line) for line in lines[::-1]])
    second = evaluate_pictures(other, {"ocr": OCR()}, tmp_path / "b")
    assert [r["metric"] for r in first] == [r["metric"] for r in second]
    assert [r["value"] for r in first] == pytest.approx([r["value"] for r in second], abs=1e-12)
    assert [r["se"] for r in first] == pytest.approx([r["se"] for r in second], abs=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "absent", "expected a folder in GenEval's layout"),
        (lambda root: root, "no picture in"),
        (lambda root: write_rows(root / "a.jsonl", [{"prompt": "x"}]), "expected a string 'image'"),
        (lambda root: write_rows(root / "a.jsonl", [{"image": "x.png"}]), "expected an object with a string 'prompt'"),
        (lambda root: write_rows(root / "a.jsonl", [{"image": "x.png", "prompt": "x"}]), "cannot read picture"),
    ],
)
def test_bad_places_are_one_clear_line(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        read_pictures(make(tmp_path))


def test_a_jpeg_in_genevals_layout_is_not_silently_left_out(folder, tmp_path):
    samples = tmp_path / "00000" / "samples"
    samples.mkdir(parents=True)
    (samples.parent / "metadata.jsonl").write_text(json.dumps(by_tag(1)[0].spec))
    with pytest.raises(UserError, match=r"no picture in .*samples"):
        read_pictures(tmp_path)
    Image.new("RGB", (9, 9)).save(samples / "00000.jpg")
    with pytest.raises(UserError, match="is not PNG"):
        read_pictures(tmp_path)


def test_bad_options_are_one_clear_line(folder, tmp_path):
    for args, message in (
        (["--pictures", folder, "--limit", "3"], "brings its own prompts"),
        (["--share", "0/2"], "--share needs --pictures"),
        (["--pictures", folder, "--share", "2/2"], "bad --share"),
        (["--tasks", "pickscor"], "did you mean 'pickscore'"),
        (["--source", "ocr"], "bad --source"),
        (["--tasks", "ocr", "--source", "ocr=x"], "comes with its weights"),
        (["--tasks", "ocr", "--prompts", "absent.txt"], "no prompts 'absent.txt'"),
        (["--pictures", folder, "--tasks", "ocr"], "needs the wanted text"),
    ):
        done = opdbench("eval", *args, cwd=tmp_path)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_model_is_scored_on_the_prompts_of_a_file(tmp_path):
    (tmp_path / "mine.txt").write_text('the word "HFC"\nthe word "TKN"\nthe word "HFC"\n')
    args = ["eval", "--prompts", "mine.txt", "--tasks", "ocr", "--steps", "1", "--format", "json"]
    done = opdbench(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole = json.loads(done.stdout)[0]
    assert (whole["n"], whole["clusters"], whole["metric"]) == (3, 2, "")
    assert whole["prompts"].startswith("mine@")
    row = json.loads(next((tmp_path / "runs" / "evals").glob("*.jsonl")).read_text().split("\n")[0])
    assert row["prompt"] == "mine/0000"
    assert row["details"]["recognized"] is not None
    assert row["metrics"]["cer"] >= 0
    assert opdbench(*args, cwd=tmp_path).stdout == done.stdout
