"""Exported adapters draw the same pictures in diffusers and PEFT, and kohya's layout holds the same weights."""

from __future__ import annotations

import json
import os
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from command import apart, opdbench
from diffusers import StableDiffusion3Pipeline
from peft import PeftModel
from records import make_run
from safetensors.torch import load_file

from opdbench.diffusion.adapters import Adapter
from opdbench.diffusion.sources import tiny_folder
from opdbench.records.run import RunRecord
from opdbench.records.store import shipped

STAGE = "fb95fc8f277daecc"
TEXTS = ["a photo of a red circle", "a photo of two blue squares"]
CALL = {"num_inference_steps": 2, "guidance_scale": 1.0, "max_sequence_length": 14, "output_type": "np"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose student is a shipped stage."""
    folder = make_run(tmp_path_factory.mktemp("runs"))
    record = RunRecord.load(folder)
    last = replace(record.stages[-1], digest=STAGE)
    replace(record, stages=(*record.stages[:-1], last)).save(folder)
    return folder


@pytest.fixture(scope="module")
def adapter():
    return Adapter.load(shipped() / "stages" / STAGE / "adapter.safetensors")


def pipeline(folder=None):
    pipe = StableDiffusion3Pipeline.from_pretrained(folder or tiny_folder())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe):
    return pipe(TEXTS, generator=[torch.Generator().manual_seed(k) for k in range(2)], **CALL).images


@pytest.fixture(scope="module")
def pictures(adapter):
    """Of the adapter, folded by hand; the base model's are others."""
    pipe = pipeline()
    base = draw(pipe)
    layers = dict(pipe.transformer.named_modules())
    for name in (name for name in adapter.tensors if name.endswith("lora_A.weight")):
        layer = name.removesuffix(".lora_A.weight")
        delta = adapter.tensors[f"{layer}.lora_B.weight"] @ adapter.tensors[name]
        layers[layer].weight.data += adapter.lora.alpha / adapter.lora.rank * delta
    expected = draw(pipe)
    assert abs(expected - base).max() > 0.05
    return expected


def test_diffusers_and_peft_and_the_fused_pipeline_draw_the_same(run, tmp_path, pictures):
    for kind in ("diffusers", "peft", "fused"):
        done = opdbench("export", run, "--format", kind, "--to", tmp_path / kind)
        assert done.returncode == 0, done.stderr
        assert all(line.startswith(str(tmp_path / kind)) for line in done.stdout.split())
    by_diffusers = pipeline()
    by_diffusers.load_lora_weights(tmp_path / "diffusers", weight_name="pytorch_lora_weights.safetensors")
    by_peft = pipeline()
    by_peft.transformer = PeftModel.from_pretrained(by_peft.transformer, str(tmp_path / "peft")).merge_and_unload()
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    for pipe in (by_diffusers, by_peft, pipeline(tmp_path / "fused")):
        assert abs(draw(pipe) - pictures).max() < 1e-3


def test_kohyas_layout_has_its_keys_alphas_and_the_same_weights(run, tmp_path, adapter):
    done = opdbench("export", run, "--format", "kohya", "--to", tmp_path / "kohya")
    assert done.returncode == 0, done.stderr
    tensors = load_file(tmp_path / "kohya" / "lora.safetensors")
    names = {name.rpartition(".lora_")[0] or name.removesuffix(".alpha") for name in tensors}
    assert {name + ".alpha" for name in names} == {name for name in tensors if name.endswith(".alpha")}

    def delta(layer):
        down, up = tensors[f"{layer}.lora_down.weight"], tensors[f"{layer}.lora_up.weight"]
        return tensors[f"{layer}.alpha"] / len(down) * up @ down

    def ours(block, layer):
        name = f"transformer_blocks.{block}.{layer}"
        scale = adapter.lora.alpha / adapter.lora.rank
        return scale * adapter.tensors[f"{name}.lora_B.weight"] @ adapter.tensors[f"{name}.lora_A.weight"]

    blocks = {name.split(".")[1] for name in adapter.tensors}
    for block in blocks:
        joint = f"lora_unet_joint_blocks_{block}"
        for mine, theirs in (("to_q to_k to_v", "x"), ("add_q_proj add_k_proj add_v_proj", "context")):
            rows = torch.cat([ours(block, f"attn.{name}") for name in mine.split()])
            torch.testing.assert_close(delta(f"{joint}_{theirs}_block_attn_qkv"), rows, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(delta(f"{joint}_x_block_attn_proj"), ours(block, "attn.to_out.0"))
    assert len(names) * 3 == len(tensors)
    assert sum("context_block_attn_proj" in name for name in names) == len(blocks) - 1  # the last block has none


def test_an_exported_folder_is_not_overwritten_and_mistakes_are_one_line(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    for args, message in [
        (["export", run, "--to", tmp_path / "full"], "is not an empty folder; choose another --to"),
        (["export", tmp_path / "absent", "--to", tmp_path / "x"], "is absent"),
        (["push", run, "name"], "bad repository 'name'; expected owner/name"),
        (["show", tmp_path / "full"], "not finished"),
    ]:
        done = opdbench(*args)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert (tmp_path / "full" / "mine.txt").read_text() == "kept"


def test_eval_and_sample_take_a_stage_a_run_and_every_export(run, tmp_path):
    stage = shipped() / "stages" / STAGE
    places = [stage, run]
    for kind in ("diffusers", "peft"):
        opdbench("export", stage, "--format", kind, "--to", tmp_path / kind)
        places.append(tmp_path / kind)
    rows = []
    for place in places:
        done = opdbench(
            "eval",
            "--adapter",
            place,
            "--limit",
            "4",
            "--tasks",
            "geneval",
            "--out",
            tmp_path / "runs",
            "--format",
            "json",
        )
        assert done.returncode == 0, done.stderr
        rows.append(json.loads(done.stdout))
    assert all(row == rows[0] for row in rows)
    drawn = []
    for k, place in enumerate(places):
        done = opdbench("sample", TEXTS[0], "--adapter", place, "--steps", "2", "--to", tmp_path / f"{k}.png")
        assert done.returncode == 0, done.stderr
        from PIL import Image

        drawn.append(np.asarray(Image.open(tmp_path / f"{k}.png")).astype(int))
    assert max(abs(image - drawn[0]).max() for image in drawn) <= 1
    opdbench("sample", TEXTS[0], "--steps", "2", "--to", tmp_path / "base.png")
    assert abs(np.asarray(Image.open(tmp_path / "base.png")).astype(int) - drawn[0]).max() > 10


def test_show_says_what_a_run_was(run):
    text = opdbench("show", run).stdout
    record = RunRecord.load(run)
    for word in (record.command, STAGE, "student", "ocr", f"{record.policies[0].cells[0].estimate.value:.3f}"):
        assert word in text
    assert json.loads(opdbench("show", run, "--format", "json").stdout)["digest"] == record.digest


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a commit needs; it keeps what it was sent."""

    def log_message(self, *args):
        pass

    def do_POST(self):
        import base64

        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server, answer = self.server, {}
        if self.path == "/api/repos/create":
            server.created.append(json.loads(body))
            answer = {"url": f"{server.address}/someone/student"}
        elif "/preupload/" in self.path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            answer = {"files": files}
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            answer = {"success": True, "commitOid": "0" * 40, "commitUrl": f"{server.address}/someone/student/commit/0"}
        server.tokens.add(self.headers.get("authorization"))
        reply = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)


@contextmanager
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.created, server.tokens = {}, [], set()
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def test_push_sends_adapter_card_and_record(run, adapter, tmp_path):
    with hub() as server:
        env = {**os.environ, "HF_ENDPOINT": server.address, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0"}
        env["HF_HUB_DISABLE_XET"] = "1"
        done = apart("push", run, "someone/student", env=env)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().endswith("/someone/student")
        assert server.tokens == {"Bearer hf_test"}
        assert server.created[0]["name"] == "student"
    sent = server.files
    assert {"README.md", "record.json", "pytorch_lora_weights.safetensors", "adapter_config.json"} <= set(sent)
    (tmp_path / "a.safetensors").write_bytes(sent["pytorch_lora_weights.safetensors"])
    assert Adapter.load(tmp_path / "a.safetensors").digest() == adapter.digest()
    card, record = sent["README.md"].decode(), RunRecord.load(run)
    assert record.command in card
    assert f"{record.policies[-1].cells[0].estimate.value:.3f}" in card
    assert card.startswith("---\nlibrary_name: diffusers")
    assert json.loads(sent["record.json"])["digest"] == record.digest


def test_a_hub_that_cannot_be_reached_is_one_line(run):
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0"}
    done = apart("push", run, "someone/student", env=env)
    assert done.returncode == 2
    assert done.stderr.startswith("opdbench: cannot push to 'someone/student'")
    assert "Traceback" not in done.stderr
