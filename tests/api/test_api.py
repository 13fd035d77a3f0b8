"""The Python interface, on real pipelines with random weights, callables and a training loop."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process
from PIL import Image
from pipelines import FAMILIES, build
from transformers import Trainer, TrainingArguments

import opdbench
from opdbench.errors import UserError
from opdbench.registry import evaluator
from opdbench.tiny.render import render
from opdbench.tiny.scenes import draw_scene

README = Path(__file__).resolve().parents[2] / "opdbench" / "README.md"
SETTINGS = {
    "sdxl": {"height": 32, "width": 32},
    "flux": {"height": 32, "width": 32, "max_sequence_length": 32},
    "sana": {"height": 64, "width": 64, "use_resolution_binning": False, "complex_human_instruction": None},
}


def test_the_import_is_light():
    probe = "import sys, opdbench; print(opdbench.__version__, sorted({'torch', 'pandas', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1)[1].strip() == "[]"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pipeline_of_any_family(family, tmp_path):
    pipeline = build(family)
    settings = {"num_inference_steps": 2, **SETTINGS[family]}
    for module in (p for p in pipeline.components.values() if isinstance(p, torch.nn.Module)):
        module.train()
    result = opdbench.evaluate(pipeline, tasks=["ocr", "geneval"], limit=2, out=tmp_path, settings=settings)
    assert {sample.task for sample in result.samples} == {"ocr", "geneval"}
    assert len(result.samples) == len(list(tmp_path.rglob("*.png"))) >= 4
    assert all(p.training for p in pipeline.components.values() if isinstance(p, torch.nn.Module))
    assert json.loads((tmp_path / "result.json").read_text())["estimates"] == [dict(r) for r in result.estimates]


def test_pictures_depend_on_neither_batch_size_nor_the_random_stream_but_on_the_seed():
    pipeline, settings = build("sdxl"), {"num_inference_steps": 1, **SETTINGS["sdxl"]}

    def pictures(**changes):
        torch.manual_seed(len(changes))
        arguments = {"tasks": ["ocr"], "limit": 3, "settings": settings} | changes
        return [np.asarray(p.image).astype(int) for p in opdbench.evaluate(pipeline, **arguments).pictures]

    first = pictures()
    assert len(first) == 6
    for same in (pictures(batch_size=1), pictures(batch_size=2, limit=3)):
        assert max(abs(a - b).max() for a, b in zip(first, same, strict=True)) <= 1
    assert max(abs(a - b).max() for a, b in zip(first, pictures(seed=1), strict=True)) > 5


def test_a_callable_that_draws_what_is_asked_scores_above_one_that_does_not():
    from random import Random

    by_text = {p.text: p for p in evaluator("geneval").prompts("test")}
    rng = Random(0)
    seen = []

    def right(prompts, seeds):
        seen.extend(seeds)
        return [render(draw_scene(by_text[text].spec, rng)) for text in prompts]

    def wrong(prompts):
        return [np.zeros((64, 64, 3), np.uint8) for _ in prompts]

    result = opdbench.evaluate(right, tasks=["geneval"], limit=12)
    other = opdbench.evaluate(wrong, tasks=["geneval"], limit=12)
    assert result.scores["geneval"] > 0.8
    assert other.scores["geneval"] == 0
    assert len(set(seen)) == len(result.samples)
    frame = result.to_pandas()
    assert len(frame[frame.metric == "score"]) == len(result.samples)
    assert set(frame.text) <= set(by_text)
    tasks = result.to_pandas("tasks")
    total = tasks[(tasks.group == "") & (tasks.metric == "")]
    assert total.value.tolist() == [result.scores["geneval"]]
    assert re.search(rf"^geneval +all +{result.scores['geneval']:.3f}", result.table(), re.MULTILINE)


def test_existing_pictures_are_scored():
    folder = files("opdbench.evaluators.reference")
    sign = Image.open(str(folder / "sign.png"))
    blank = Image.new("RGB", sign.size)
    prompt = 'a sign that says "OPEN 24"'
    result = opdbench.score([sign, blank, blank], [prompt, prompt, 'a sign that says "SHOP"'], tasks=["ocr"])
    values = {(s.prompt, s.index): s.value for s in result.samples}
    assert values == {("score/0000", 0): 1.0, ("score/0000", 1): 0.0, ("score/0001", 0): 0.0}
    known = evaluator("geneval").prompts("test")[0]
    result = opdbench.score([blank], [known.text], tasks=["geneval"])  # its fields are those of the known prompt
    assert result.samples[0].prompt == known.id


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: opdbench.evaluate(3), "cannot evaluate a int; expected a diffusers pipeline or a callable"),
        (lambda: opdbench.evaluate(lambda prompts: [], ["ocr"], limit=2), "0 pictures for 4 prompts"),
        (lambda: opdbench.evaluate(lambda prompts: [1] * len(prompts), ["ocr"], limit=2), "a picture is a int"),
        (lambda: opdbench.evaluate(lambda prompts: [], ["orc"]), "did you mean 'ocr'"),
        (lambda: opdbench.evaluate(lambda prompts: [], "ocr"), "expected a list of names"),
        (lambda: opdbench.evaluate(lambda prompts: [], ["ocr"], settings={"x": 1}), "are for a pipeline"),
        (lambda: opdbench.evaluate(build("sdxl"), ["ocr"], limit=1, settings={"widht": 1}), "did you mean 'width'"),
        (lambda: opdbench.score([], ["a"], ["ocr"]), "0 pictures for 1 prompts"),
        (lambda: opdbench.score([Image.new("RGB", (8, 8))], ["a cat"], ["geneval"]), "metadata needs a string 'tag'"),
        (lambda: opdbench.EvaluationCallback(print, every=0), "every is 0"),
    ],
)
def test_a_mistake_is_one_clear_line(call, message):
    with pytest.raises(UserError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


class Memory(GeneralTracker):
    """A tracker of accelerate's that remembers."""

    name, requires_logging_directory = "memory", False

    def __init__(self):
        super().__init__()
        self.numbers, self.images = {}, {}

    @property
    def tracker(self):
        return self.numbers

    @on_main_process
    def store_init_configuration(self, values):
        pass

    @on_main_process
    def log(self, values, step=None, **kwargs):
        self.numbers.setdefault(step, {}).update(values)

    @on_main_process
    def log_images(self, values, step=None, **kwargs):
        self.images[step] = values


def test_the_callback_in_an_accelerate_loop_disturbs_nothing():
    def train(evaluates):
        torch.manual_seed(3)
        pipeline, memory = build("flux"), Memory()
        accelerator = Accelerator(cpu=True, log_with=memory)
        accelerator.init_trackers("test")
        settings = {"num_inference_steps": 1, **SETTINGS["flux"]}
        layer = pipeline.transformer.proj_out
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        pipeline.transformer, optimizer = accelerator.prepare(pipeline.transformer, optimizer)
        callback = opdbench.EvaluationCallback(
            pipeline, ["ocr"], every=2, limit=2, tracker=accelerator, settings=settings
        )
        torch.manual_seed(4)
        pipeline.transformer.train()
        for step in range(1, 5):
            loss = layer(torch.randn(2, layer.in_features)).square().mean()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            if evaluates:
                callback(step)
                assert pipeline.transformer.training
        return layer.weight.detach().clone(), memory, callback.results

    weights, memory, results = train(True)
    assert sorted(results) == sorted(memory.numbers) == sorted(memory.images) == [2, 4]
    assert memory.numbers[4] == {"opdbench/ocr": results[4].scores["ocr"]}
    assert memory.images[4]["opdbench/ocr"].shape == (4, 32, 32, 3)
    before, after = (np.asarray(results[step].pictures[0].image).astype(int) for step in (2, 4))
    assert abs(before - after).max() > 0  # the same seed and prompt: training made the difference
    assert torch.equal(weights, train(False)[0])


class Painter(torch.nn.Module):
    """A module in training that draws: one colour for all prompts."""

    def __init__(self):
        super().__init__()
        self.colour = torch.nn.Parameter(torch.tensor([0.9, 0.5, 0.5]))

    def forward(self, target):
        return {"loss": (self.colour - target).square().mean()}

    def draw(self, prompts):
        pixel = tuple(int(255 * value) for value in self.colour.detach().clamp(0, 1))
        return [Image.new("RGB", (64, 64), pixel)] * len(prompts)


def fit(folder, evaluates):
    """Six optimizer steps by transformers' trainer."""
    painter = Painter()
    settings = TrainingArguments(
        folder,
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=0.05,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        seed=3,
    )
    data = [{"target": torch.rand(3, generator=torch.Generator().manual_seed(k))} for k in range(24)]
    trainer = Trainer(painter, settings, train_dataset=data)
    callback = opdbench.EvaluationCallback(painter.draw, ["geneval"], every=3, limit=2)
    if evaluates:
        trainer.add_callback(callback.for_trainer(trainer))
    trainer.train()
    return painter.colour.detach(), callback.results, trainer.state.log_history


def test_the_callback_in_the_trainer_of_transformers_logs_there_and_disturbs_nothing(tmp_path):
    colour, results, history = fit(tmp_path, evaluates=True)
    assert sorted(results) == [3, 6]  # optimizer steps, of two batches each
    logged = {line["step"]: line["opdbench/geneval"] for line in history if "opdbench/geneval" in line}
    assert logged == {step: result.scores["geneval"] for step, result in results.items()}
    first, last = (np.asarray(results[step].pictures[0].image).astype(int) for step in (3, 6))
    assert abs(first - last).max() > 0
    assert torch.equal(colour, fit(tmp_path, evaluates=False)[0])


def test_the_callback_in_a_trainer_of_trl(tmp_path):
    trl = pytest.importorskip("trl", reason="TRL is no dependency; pip install trl runs this test")
    from datasets import Dataset
    from transformers import CLIPTokenizer, GPT2Config, GPT2LMHeadModel

    from opdbench.diffusion.sources import tiny_folder

    tokenizer = CLIPTokenizer.from_pretrained(tiny_folder(), subfolder="tokenizer", model_max_length=77)
    sizes = {"vocab_size": len(tokenizer), "n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 2}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    settings = trl.SFTConfig(
        str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
        max_length=16,
    )
    data = Dataset.from_list([{"text": "a photo of a red star"}] * 16)
    trainer = trl.SFTTrainer(GPT2LMHeadModel(config), args=settings, train_dataset=data, processing_class=tokenizer)
    painter = Painter()
    callback = opdbench.EvaluationCallback(painter.draw, ["geneval"], every=2, limit=2)
    trainer.add_callback(callback.for_trainer(trainer))
    trainer.train()
    assert sorted(callback.results) == [2, 4]
    assert [line["step"] for line in trainer.state.log_history if "opdbench/geneval" in line] == [2, 4]


def test_the_readme_examples_run(tmp_path, monkeypatch, capsys):
    section = README.read_text().split("## Python API")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) >= 4
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks:
        exec(block, names)
    assert (tmp_path / "eval" / "samples.jsonl").exists()
    assert (tmp_path / "elsewhere" / "result.json").exists()
    assert "geneval" in capsys.readouterr().out
    assert sorted(names["callback"].results) == [100, 200]
