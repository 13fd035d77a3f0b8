"""Fuzzed pictures and adapters, and judges' servers that fail or lie: unscored or one line, never a wrong number."""

from __future__ import annotations

import io
import json
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random

import numpy as np
import pytest
import torch
from campaign_commands import until
from command import opdbench
from PIL import Image
from safetensors.torch import save_file

from opdbench.diffusion.adapter_files import CONFIG, WEIGHTS, check, fetch
from opdbench.diffusion.adapters import ATTENTION
from opdbench.diffusion.sources import outline
from opdbench.errors import UserError
from opdbench.evaluation.picture_pixels import open_picture
from opdbench.evaluators.vlm import endpoint

pytestmark = pytest.mark.campaign
PICTURES, ADAPTERS, REPLIES = 20_000, 600, 60


def pictures():
    """Small files of every kind, by suffix."""
    grey = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    colour = Image.fromarray(np.stack([grey % 251] * 3, -1).astype(np.uint8))
    images = {
        "png": [colour, Image.fromarray(grey * 16), colour.convert("RGBA"), colour.quantize(16)],
        "tif": [colour, Image.fromarray(grey.astype(np.float32) / 4096), Image.fromarray(grey * 16)],
        "gif": [colour],
        "jpg": [colour, colour.convert("CMYK"), colour.convert("L")],
        "webp": [colour, colour.convert("RGBA")],
    }
    kinds = {"tif": "TIFF", "jpg": "JPEG"}
    for suffix, sources in images.items():
        for image in sources:
            stream = io.BytesIO()
            image.save(stream, kinds.get(suffix, suffix.upper()))
            yield suffix, stream.getvalue()


def damaged(content: bytes, rng: Random) -> bytes:
    """A few bytes changed, above all in the header, or the file cut, or bytes put in."""
    result = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        way, size = rng.random(), len(result)
        if way < 0.7:
            result[min(size - 1, int(rng.expovariate(1 / (size / 6 + 20))))] = rng.randrange(256)
        elif way < 0.85:
            del result[rng.randrange(1, size) :]
        else:
            first = rng.randrange(size)
            result[first : first + rng.randint(1, 8)] = bytes(rng.randrange(256) for _ in range(rng.randint(0, 8)))
        result = result or bytearray(b"x")
        if len(result) < 2:
            break
    return bytes(result)


def test_fuzzed_pictures_are_read_or_unscored(rng, seconds, tally, tmp_path):
    sources = list(pictures())
    for _ in until(min(seconds, 120), PICTURES):
        suffix, content = rng.choice(sources)
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(damaged(content, rng))
        try:
            image = open_picture(path)
            tally.add("fuzzed pictures read", "" if image.mode == "RGB" else f"mode {image.mode}")
        except OSError:
            tally.add("fuzzed pictures refused")
    assert not tally.wrong


def adapter(network):
    """A plain LoRA of PEFT's layout, and its settings."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear) and any(name.endswith(f".{t}") for t in ATTENTION):
            out, into = module.weight.shape
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(2, into, generator=generator)
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, 2, generator=generator)
    return tensors, {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": sorted(ATTENTION)}


VALUES = (None, True, -1, 0, 1e308, float("nan"), float("inf"), "x", "", [], {}, [1], {"a": 1}, 10**400, "(", "pissa")
SETTINGS = ("r", "lora_alpha", "target_modules", "peft_type", "rank_pattern", "alpha_pattern", "use_rslora", "bias",
            "init_lora_weights", "layers_to_transform", "layers_pattern", "exclude_modules", "use_dora")  # fmt: skip


def test_fuzzed_adapters_are_finite_or_refused_in_one_line(rng, seconds, tally, tmp_path):
    network = outline("tiny")
    tensors, settings = adapter(network)
    save_file(tensors, tmp_path / WEIGHTS)
    whole = (tmp_path / WEIGHTS).read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    for _ in until(min(seconds, 240), ADAPTERS):
        content, changed = bytearray(whole), dict(settings)
        if rng.random() < 0.6:
            for _ in range(rng.randint(1, 4)):
                content[rng.randrange(header + 8 if rng.random() < 0.8 else len(content))] = rng.randrange(256)
        else:
            changed[rng.choice(SETTINGS)] = rng.choice(VALUES)
        (tmp_path / WEIGHTS).write_bytes(content)
        (tmp_path / CONFIG).write_text(json.dumps(changed))
        try:
            taken = check(fetch(str(tmp_path)), network, "x")
            finite = all(tensor.isfinite().all() for tensor in taken.tensors.values())
            tally.add("fuzzed adapters taken", "" if finite else f"not finite: {changed}")
        except UserError as error:
            tally.add("fuzzed adapters refused", "several lines" if "\n" in str(error) else "")
    assert not tally.wrong


class Hostile(BaseHTTPRequestHandler):
    """Answers each question in the way that the server's `mode` says."""

    def log_message(self, *args):
        pass

    def reply(self, content: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content) if length is None else length), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        self.reply(json.dumps({"data": [{"id": "judge"}]}).encode())

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        REPLY[self.server.mode](self)
        self.close_connection = True


def say(text):
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def raw(content):
    def send(handler):
        handler.wfile.write(content)

    return send


REPLY = {
    "four": lambda h: h.reply(say("Final Score: 4")),
    "ten": lambda h: h.reply(say("Final Score: 10")),
    "5.9": lambda h: h.reply(say("Final Score: 5.9")),
    "45/100": lambda h: h.reply(say("Final Score: 45/100")),
    "minus": lambda h: h.reply(say("Final Score: -3")),
    "1e308": lambda h: h.reply(say("Final Score: 1e308")),
    "thought": lambda h: h.reply(say("<think>Final Score: 2</think> nothing more")),
    "no text": lambda h: h.reply(json.dumps({"choices": [{"message": {"content": None}}]}).encode()),
    "list": lambda h: h.reply(b"[1, 2]"),
    "text": lambda h: h.reply(b'"x"'),
    "table": lambda h: h.reply(b'{"choices": {"0": 1}}'),
    "no choices": lambda h: h.reply(b'{"choices": []}'),
    "no JSON": lambda h: h.reply(b'{"a":'),
    "no UTF-8": lambda h: h.reply(b'"\xff\xfe"'),
    "deep": lambda h: h.reply(b"[" * 200_000),
    "cut": lambda h: h.reply(say("Final Score: 4")[:20], length=1000),
    "too long": lambda h: h.reply(b" " * (9 << 20)),
    "error": lambda h: h.reply(b"{}", 500),
    "busy": lambda h: h.reply(b"{}", 503),
    "no key": lambda h: h.reply(b"{}", 401),
    "elsewhere": lambda h: h.reply(b"{}", 302, Location="http://localhost:9/x"),
    "file": lambda h: h.reply(b"{}", 302, Location="file:///etc/passwd"),
    "loop": lambda h: h.reply(b"{}", 302, Location=h.path),
    "bad chunk": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n"),
    "bad status": raw(b"HTP/9 what\r\n\r\n"),
    "long line": raw(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n"),
    "many headers": raw(b"HTTP/1.1 200 OK\r\n" + b"".join(b"X%d: a\r\n" % k for k in range(200)) + b"\r\n"),
    "nothing": raw(b""),
}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(endpoint, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    with ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as made:
        made.daemon_threads = True
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def test_hostile_servers_give_no_number_and_are_asked_again_where_they_failed(server, rng, seconds, tally, tmp_path):
    rows = []
    for k in range(3):
        Image.new("RGB", (32, 32), (k, 0, 0)).save(tmp_path / f"{k}.png")
        rows.append(json.dumps({"image": f"{k}.png", "prompt": "a cat"}))
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    source = f"unifiedreward=http://127.0.0.1:{server.server_port}/v1"
    modes = [mode for mode in REPLY if mode != "four"]
    answers = {"ten", "5.9", "45/100", "minus", "1e308", "thought", "no text"}
    for k in until(seconds, REPLIES):
        mode, start = modes[k] if k < len(modes) else rng.choice(modes), time.monotonic()
        words = ["eval", "--pictures", tmp_path / "rows.jsonl", "--tasks", "unifiedreward", "--source", source]
        ends = []
        for server.mode in (mode, "four"):
            done = opdbench(*words, "--out", tmp_path / f"runs{k}", "--format", "json")
            value = json.loads(done.stdout)[0] if done.returncode != 2 else {"value": None, "n": 0}
            ends.append((done.returncode, value["value"], value["n"]))
        wanted = (1, None, 0) if mode in answers else (0, 4.0, 3)
        wrong = ends[0][1] is not None or ends[0][0] == 0 or ends[1] not in (wanted, (0, 4.0, 3))
        slow = time.monotonic() - start > 200
        tally.add("hostile replies", f"{mode}: {ends}" if wrong or slow else "")
    assert not tally.wrong
