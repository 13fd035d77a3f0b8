"""Prompt sets: fetched from a real server on this machine, refused if they are not the pinned ones."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from opdbench import prompt_sets
from opdbench.errors import UserError
from opdbench.evaluators.geneval.judge import on_photos
from opdbench.evaluators.ocr.judge import OCR
from opdbench.prompt_sets import SETS, PromptSet, load, local_path, pull, pulled, read_prompts

SHARED = Path(__file__).resolve().parents[2] / "shared" / "prompts"
TEXT = b'a sign "A"\na sign "B"\na sign "A"\n'


@pytest.fixture
def server(monkeypatch, tmp_path):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/good" else 404)
            self.end_headers()
            self.wfile.write(TEXT)

        def log_message(self, *args):
            pass

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{made.server_port}"
        monkeypatch.setattr(PromptSet, "url", property(lambda self: f"{address}/{self.path.split('.')[0]}"))
        yield
        made.shutdown()


def pin(monkeypatch, path, content=TEXT):
    one = replace(SETS["ocr"], path=path, sha256=hashlib.sha256(content).hexdigest(), images=2)
    monkeypatch.setattr(prompt_sets, "SETS", {"signs": one})


def test_a_pulled_set_is_read_and_equal_lines_are_one_prompt(server, monkeypatch):
    pin(monkeypatch, "good.txt")
    with pytest.raises(UserError, match="opdbench data pull signs"):
        load("signs", "ocr")
    path = pull("signs")
    assert path == local_path("signs")
    assert path.read_bytes() == TEXT
    assert pull("signs") == path
    assert [(p.id, p.text, p.images) for p in load("signs", "ocr")] == [
        ("signs/0000", 'a sign "A"', 4),
        ("signs/0001", 'a sign "B"', 2),
    ]


def test_a_file_that_was_changed_later_is_refused(server, monkeypatch):
    pin(monkeypatch, "good.txt")
    pull("signs").write_text("other")
    with pytest.raises(UserError, match="has sha256"):
        load("signs", "ocr")


def test_another_file_is_refused_and_nothing_is_kept(server, monkeypatch):
    pin(monkeypatch, "good.txt", b"other")
    with pytest.raises(UserError, match="has sha256"):
        pull("signs")
    assert not local_path("signs").exists()


def test_an_unreachable_source_is_one_clear_line(server, monkeypatch):
    pin(monkeypatch, "gone.txt")
    with pytest.raises(UserError, match=r"cannot fetch prompt set 'signs'.*--prompts") as error:
        pull("signs")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="unknown prompt set 'sings'"):
        pull("sings")
    with pytest.raises(UserError, match="test prompts alone"):
        pulled("signs")("train")


def test_every_format_is_read(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n two \n", encoding="utf-8")
    (tmp_path / "a.tsv").write_text("Prompt\tCategory\none\tX\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "one", "tag": "t"}) + "\n", encoding="utf-8")
    assert [p.text for p in read_prompts(tmp_path / "a.txt", "x")] == ["one", "two"]
    assert read_prompts(tmp_path / "a.tsv", "x")[0].spec == {"prompt": "one", "category": "X"}
    assert read_prompts(tmp_path / "a.jsonl", "x")[0].spec["tag"] == "t"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "no prompt in it"),
        ("a.jsonl", "{", "line 1 is not JSON"),
        ("a.jsonl", "[1]", "expected an object"),
        ("a.jsonl", '{"tag": 1}', "line 1: no text"),
        ("a.tsv", "Text\nx", "line 2: no text"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_prompts(tmp_path / name, "x")
    with pytest.raises(UserError, match="cannot read prompts"):
        read_prompts(tmp_path / "absent.txt", "x")


@pytest.mark.skipif(not SHARED.exists(), reason="no copies of the prompt sets")
@pytest.mark.parametrize(
    ("name", "file", "number"),
    [
        ("geneval", "geneval_evaluation_metadata.jsonl", 553),
        ("ocr", "ocr_test.txt", 1018),
        ("parti", "parti_prompts.tsv", 1632),
    ],
)
def test_real_sets_have_their_hash_and_number_and_fit_their_evaluators(name, file, number):
    assert hashlib.sha256((SHARED / file).read_bytes()).hexdigest() == SETS[name].sha256
    prompts = read_prompts(SHARED / file, name, name, SETS[name].images)
    assert len(prompts) == number
    judges = {"geneval": on_photos("nowhere"), "ocr": OCR()}
    for prompt in prompts if name in judges else ():
        judges[name].check(prompt)
    if name == "geneval":
        assert {judges[name].group(p) for p in prompts} == {"single_object", "two_object", "counting", "colors",
                                                            "position", "color_attr"}  # fmt: skip
        assert sum(p.images for p in prompts) == 2212
