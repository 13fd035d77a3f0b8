"""A judge's server that fails, lies or hangs: nothing is scored wrong, and what failed is asked again."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from command import opdbench
from PIL import Image

from opdbench.core import Prompt, Sample, judge_failed
from opdbench.errors import UserError
from opdbench.evaluation.evaluate import score_failed_again
from opdbench.evaluators.vlm import endpoint
from opdbench.evaluators.vlm.answers import final_score
from opdbench.evaluators.vlm.endpoint import AnswerError
from opdbench.evaluators.vlm.judges import VLM
from opdbench.records.rows import read_samples, write_samples


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def send(self, content, status=200, length=None, headers=()):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        self.server.seen.append(dict(self.headers))
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            return self.send(b"{}", 401)
        return self.send(json.dumps({"data": [{"id": self.server.model}]}).encode())

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append(dict(self.headers))
        self.server.answer(self)


def answer(text):
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(endpoint, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.daemon_threads = True
        made.key, made.model, made.seen = "", "judge-7b", []
        made.url = f"http://127.0.0.1:{made.server_port}/v1"
        made.answer = lambda handler: handler.send(answer("Final Score: 4"))
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def score(server):
    image, prompt = Image.new("RGB", (64, 64)), Prompt("p", "a cat", "x")
    return VLM("unifiedreward", server.url).score([image], [prompt])[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Final Score: 4", 4),
        ("Final Score: 4.5.", 4.5),
        ("**Final Score:** 4", 4),
        ("**Final Score: 4**", 4),
        ("final score: 4", 4),
        ("FINAL SCORE:\n\n4", 4),
        ("Final Score: [4]", 4),
        ("Final Score: 4/5", 4),
        ("Final Score: 4 out of 5.", 4),
        ("Final Score: 1 to 5 is asked. Final Score: 4", 4),
        ("<think>maybe Final Score: 2? no.</think> Final Score: 4", 4),
        ("Final Score: 4 <think>or Final Score: 2?</think>", 4),
        ("maybe Final Score: 2?</think>Final Score: 4", 4),
        ("Final Score: 4\n\nMy final score rests on the colours.", 4),
        ("Final Score: 5.0", 5),
        ("Final Score: 4, since it is good", 4),
    ],
)
def test_the_last_whole_number_outside_think_blocks_is_read(text, value):
    assert final_score(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "Final Score: 10",
        "Final Score: 5.9",
        "Final Score: 45/100",
        "Final Score: 4/10",
        "Final Score: 4 out of 10",
        "Final Score: 0",
        "Final Score: -4",
        "Final Score: 1 to 5",
        "Final Score: 1-5",
        "Final Score: 80%",
        "Final Score: 4%",
        "Final Score: four",
        "Final Score:",
        "Final Score: 4,5",
        "Final Score: 1e0",
        "Final Score: 3.4.5",
        "Final Score: " + "4" * 5000,
        "<think>Final Score: 4",
        "<think>Final Score: 4</think> no idea",
        "4",
        "",
        "Final Score: 4. On reflection, Final Score: unclear",
    ],
)
def test_what_is_no_number_of_the_scale_is_no_score(text):
    with pytest.raises(AnswerError):
        final_score(text)


def cut(handler):
    handler.send(answer("Final Score: 4")[:20], length=500)
    handler.close_connection = True


def test_a_failure_of_the_server_is_told_from_an_answer_without_a_score(server):
    server.answer = lambda handler: handler.send(answer("no idea"))
    silent = score(server)
    assert (silent.value, judge_failed(silent), silent.metrics) == (None, False, {"parsed": 0.0})
    failures = {
        "HTTP 500": lambda handler: handler.send(b"CUDA OOM", 500),
        "IncompleteRead": cut,
        "longer than": lambda handler: handler.send(b'"' + b"x" * endpoint.LARGEST_REPLY + b'"'),
        "Expecting": lambda handler: handler.send(b"<html>"),
        "recursion": lambda handler: handler.send(b"[" * 200_000),
        "lacks": lambda handler: handler.send(b'{"choices": []}'),
        "another host": lambda handler: handler.send(b"", 302, headers=[("Location", "http://localhost:1/v1")]),
    }
    for reason, reply in failures.items():
        server.answer = reply
        failed = score(server)
        assert (failed.value, judge_failed(failed), failed.metrics) == (None, True, {}), reason
        assert reason in failed.reason
        assert "\n" not in failed.reason


def test_a_dripping_server_has_a_limit_in_time(server, monkeypatch):
    monkeypatch.setattr(endpoint, "TIMEOUT", 1.0)
    monkeypatch.setattr(endpoint, "TRIES", 1)

    def drip(handler):
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
        for _ in range(40):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.25)

    judge, start = VLM("unifiedreward", server.url), time.monotonic()
    server.answer = drip
    (failed,) = judge.score([Image.new("RGB", (64, 64))], [Prompt("p", "a cat", "x")])
    assert time.monotonic() - start < 8
    assert "within 1 s" in failed.reason
    assert judge_failed(failed)


def test_a_key_comes_from_the_environment_and_is_nowhere_stored(server, monkeypatch, tmp_path):
    server.key = "se-cret-key"
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    (tmp_path / "rows.jsonl").write_text('{"image": "x.png", "prompt": "a cat"}')
    args = ["eval", "--pictures", "rows.jsonl", "--tasks", "hpsv3,unifiedreward"]
    args += [word for task in ("hpsv3", "unifiedreward") for word in ("--source", f"{task}={server.url}")]
    done = opdbench(*args, cwd=tmp_path)
    assert (done.returncode, endpoint.KEY_VARIABLE in done.stderr) == (2, True)
    monkeypatch.setenv(endpoint.KEY_VARIABLE, server.key)
    done = opdbench(*args, cwd=tmp_path)
    assert done.returncode == 1, done.stderr  # no reward head
    assert server.seen[-1]["Authorization"] == "Bearer se-cret-key"
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert files
    assert not any(b"se-cret" in path.read_bytes() for path in files)
    assert "se-cret" not in done.stdout + done.stderr


def test_credentials_in_an_address_are_refused_and_not_repeated(tmp_path):
    for url in ("http://me:se-cret@127.0.0.1:1/v1", "http://se-cret@h/v1", "http://h/v1?api_key=se-cret"):
        done = opdbench("eval", "--tasks", "hpsv3", "--source", f"hpsv3={url}", cwd=tmp_path)
        assert done.returncode == 2
        assert "se-cret" not in done.stderr
        assert endpoint.KEY_VARIABLE in done.stderr
    for url in ("http://h:port/v1", "http:///v1", "http://[::1/v1"):
        with pytest.raises(UserError, match="expected http://HOST:PORT/v1"):
            VLM("hpsv3", url)


@pytest.mark.parametrize("model", ["", "a\nb", "x" * 10_000, "nul\0"])
def test_a_models_name_that_no_key_can_hold_is_refused(server, model):
    server.model = model
    with pytest.raises(UserError, match="printable") as error:
        VLM("hpsv3", server.url)
    assert len(str(error.value)) < 400


def test_pictures_that_failed_by_the_server_are_asked_again(server, tmp_path):
    rows = []
    for k in range(3):
        Image.new("RGB", (64, 64), (k, 0, 0)).save(tmp_path / f"{k}.png")
        rows.append({"image": f"{k}.png", "prompt": f"caption {k}"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    args = ["eval", "--pictures", "rows.jsonl", "--tasks", "unifiedreward", "--source", f"unifiedreward={server.url}"]

    def run():
        done = opdbench(*args, "--format", "json", cwd=tmp_path)
        whole = json.loads(done.stdout)[0]
        return done.returncode, whole["n"], whole["unscored"], whole["value"]

    server.answer = lambda handler: handler.send(b"", 500)
    assert run() == (1, 0, 3, None)
    texts = ["Final Score: 3", "no idea", "Final Score: 5"]
    server.answer = lambda handler: handler.send(answer(texts.pop()))
    assert run() == (1, 2, 1, 4.0)
    server.answer = lambda handler: pytest.fail("asked again")
    asked = len(server.seen)
    assert run() == (1, 2, 1, 4.0)  # the answer without a score stays
    assert len(server.seen) == asked + 1  # its model alone was asked for


def test_a_models_rows_that_failed_are_made_again_with_the_same_noise(server, tmp_path):
    args = [
        "eval",
        "--limit",
        "2",
        "--steps",
        "1",
        "--tasks",
        "unifiedreward",
        "--prompts",
        "p.txt",
        "--format",
        "json",
    ]
    args += ["--source", f"unifiedreward={server.url}", "--keep-pictures"]
    (tmp_path / "p.txt").write_text("a photo of a red circle\na photo of a blue star\n")
    server.answer = lambda handler: handler.send(b"", 500)
    first = opdbench(*args, cwd=tmp_path)
    assert (first.returncode, json.loads(first.stdout)[0]["unscored"]) == (1, 2), first.stderr
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    assert len(before) == 2
    server.answer = lambda handler: handler.send(answer("Final Score: 4"))
    second = opdbench(*args, cwd=tmp_path)
    assert (second.returncode, json.loads(second.stdout)[0]["value"]) == (0, 4.0)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before


def test_other_rows_stay_as_they_are(tmp_path):
    rows = [Sample(str(k), 0, "t", "", None, None, "x", {}, {"judge_failed": True} if k == 1 else {}) for k in range(3)]
    write_samples(tmp_path / "a.jsonl", rows)
    new = Sample("1", 0, "t", "", 4.0, 4.0)
    assert score_failed_again(rows, tmp_path / "a.jsonl", lambda numbers: [new for _ in numbers]) == [
        rows[0],
        new,
        rows[2],
    ]
    assert read_samples(tmp_path / "a.jsonl")[1] == new
