"""The judges behind a server, against a real HTTP server on this machine."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from opdbench.core import Prompt, judge_failed, metric_key
from opdbench.errors import UserError
from opdbench.evaluators.vlm import endpoint
from opdbench.evaluators.vlm.judges import VLM, spellings
from opdbench.registry import evaluator, names


class Server(ThreadingHTTPServer):
    """Answers with what `answer(path, body, picture)` returns: (status, object)."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.asked = None, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def reply(self, status, value):
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self.reply(200, {"data": [{"id": "judge-7b"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        parts = body["messages"][0]["content"]
        raw = base64.b64decode(parts[0]["image_url"]["url"].removeprefix("data:image/png;base64,"))
        self.server.asked.append((self.path, body))
        self.reply(*self.server.answer(self.path, parts[1]["text"], Image.open(io.BytesIO(raw))))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(endpoint, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()


def says(text):
    return 200, {"choices": [{"message": {"content": text}}]}


def thinks(**chances):
    top = [{"token": token.replace("_", " "), "logprob": math.log(chance)} for token, chance in chances.items()]
    return 200, {"choices": [{"message": {"content": "x"}, "logprobs": {"content": [{"top_logprobs": top}]}}]}


def pictures(number):
    return [Image.new("RGB", (64, 48), (k, 0, 0)) for k in range(number)]


def prompt(k, **spec):
    return Prompt(f"p/{k}", f"caption {k}", "x", spec)


def test_unifiedreward_reads_the_last_final_score(server):
    sizes = []

    def answer(path, text, picture):
        sizes.append((path, picture.size, "[caption" in text))
        return says(f"Final Score: 5? No. Final Score: {1 + picture.getpixel((0, 0))[0] / 10}.")

    server.answer = answer
    judge = evaluator("unifiedreward", server.url)
    scores = judge.score(pictures(20), [prompt(k) for k in range(20)])
    assert [s.value for s in scores] == pytest.approx([1 + k / 10 for k in range(20)])
    assert [s.reward for s in scores] == pytest.approx([(1 + k / 10) / 5 for k in range(20)])
    assert set(sizes) == {("/v1/chat/completions", (512, 512), True)}
    assert {body["temperature"] for _, body in server.asked} == {0}
    assert metric_key(judge) == "unifiedreward@2[judge-7b]"
    back = judge.score(pictures(20)[::-1], [prompt(k) for k in range(20)][::-1])
    assert [s.value for s in back] == [s.value for s in scores][::-1]


def answers(path, text, picture):
    """A reply to each judge that depends on the picture and on the caption or question alone."""
    shade = (1 + picture.getpixel((0, 0))[0] + len(text)) / 200
    if path == "/pooling":
        return 200, {"data": [{"data": [shade, 0.1]}]}
    return thinks(Yes=shade, no=1 - shade) if "one word" in text else says(f"Final Score: {1 + shade:.3f}")


@pytest.mark.parametrize("name", ["unifiedreward", "geneval2", "hpsv3"])
def test_order_and_batch_do_not_matter(server, name):
    server.answer = answers
    judge, images = VLM(name, server.url), pictures(20)
    rows = [prompt(k, vqa_list=[["Is it?", "Yes"], [f"Is it {'very ' * (k % 3)}dark?", "Yes"]]) for k in range(20)]
    together = judge.score(images, rows)
    assert len({score.value for score in together}) == 20
    order = [7 * k % 20 for k in range(20)]
    assert judge.score([images[k] for k in order], [rows[k] for k in order]) == [together[k] for k in order]
    for size in (1, 3):
        parts = [judge.score(images[k : k + size], rows[k : k + size]) for k in range(0, 20, size)]
        assert [score for part in parts for score in part] == together


@pytest.mark.parametrize("text", ["Final Score: 7", "I like it.", "", "Final score 4"])
def test_a_reply_without_a_score_is_unscored(server, text):
    server.answer = lambda path, question, picture: says(text)
    (score,) = VLM("unifiedreward", server.url).score(pictures(1), [prompt(0)])
    assert (score.value, score.reward, score.metrics) == (None, None, {"parsed": 0.0})
    assert "1 to 5" in score.reason
    assert not judge_failed(score)


def test_soft_tifa_is_the_geometric_mean_of_first_token_probabilities(server):
    atoms = [["How many dogs are in the image?", "two"], ["Are the dogs red?", "Yes"]]

    def answer(path, text, picture):
        assert text.endswith(" Answer in one word.")
        return thinks(two=0.4, **{"2": 0.1, "_Two": 0.2, "three": 0.2}) if "many" in text else thinks(Yes=0.5, _yes=0.1)

    server.answer = answer
    (score,) = evaluator("geneval2", server.url).score(pictures(1), [prompt(0, vqa_list=atoms)])
    assert score.value == pytest.approx(math.sqrt(0.7 * 0.6))
    assert score.metrics == {"am": pytest.approx(0.65), "parsed": 1.0}
    assert all(body["max_tokens"] == 1 and body["top_logprobs"] == 20 for _, body in server.asked)
    server.answer = lambda path, text, picture: thinks(No=0.9)
    assert VLM("geneval2", server.url).score(pictures(1), [prompt(0, vqa_list=atoms)])[0].value == 0
    server.answer = lambda path, text, picture: says("Yes")
    (blind,) = VLM("geneval2", server.url).score(pictures(1), [prompt(0, vqa_list=atoms)])
    assert blind.value is None
    assert "lacks 'logprobs'" in blind.reason


def test_spellings():
    assert spellings("How many cows are there?", "three") == {"three", "Three", "3", " three", " Three", " 3"}
    assert spellings("Are they red?", "Yes") == {"yes", "Yes", " yes", " Yes"}


def test_hpsv3_takes_the_mean(server):
    server.answer = lambda path, text, picture: (200, {"data": [{"data": [7.5, 0.3]}]})
    (score,) = evaluator("hpsv3", server.url).score(pictures(1), [prompt(0)])
    assert (score.value, score.reward, score.metrics["spread"]) == (7.5, 0.5, 0.3)
    assert server.asked[0][0] == "/pooling"
    for strange in ([1.0], [float("nan"), 1.0], "x"):
        server.answer = lambda path, text, picture, strange=strange: (200, {"data": [{"data": strange}]})
        assert VLM("hpsv3", server.url).score(pictures(1), [prompt(0)])[0].value is None


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(server):
    statuses = [503, 429, 200]
    server.answer = lambda path, text, picture: (statuses.pop(0), says("Final Score: 4")[1])
    assert VLM("unifiedreward", server.url).score(pictures(1), [prompt(0)])[0].value == 4
    server.asked.clear()
    server.answer = lambda path, text, picture: (400, {})
    (score,) = VLM("unifiedreward", server.url).score(pictures(1), [prompt(0)])
    assert (score.value, len(server.asked)) == (None, 1)
    assert "HTTP 400" in score.reason


def test_no_server_and_bad_prompts_are_one_clear_line(server):
    for name in ("unifiedreward", "geneval2", "hpsv3"):
        assert name in names("judges")
        with pytest.raises(UserError, match=f"--source {name}=http"):
            evaluator(name)
    free = f"http://127.0.0.1:{server.server_port}/v2"
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="is it running"):
        evaluator("hpsv3", free)


def test_questions_are_checked(server):
    judge = VLM("geneval2", server.url)
    for spec in ({}, {"vqa_list": []}, {"vqa_list": ["x"]}):
        with pytest.raises(UserError, match="p/0"):
            judge.check(prompt(0, **spec))
    judge.check(prompt(0, vqa_list=[["Is it?", "Yes"]]))
