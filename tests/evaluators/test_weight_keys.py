"""The key of a judge follows the contents of its weights, not their address."""

from __future__ import annotations

import json
import os
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from command import apart
from PIL import Image
from safetensors.torch import load_file, save_file

from opdbench.core import metric_key
from opdbench.evaluators.diversity import Diversity
from opdbench.evaluators.geneval.colors import ClipColors
from opdbench.evaluators.geneval.judge import on_photos
from opdbench.evaluators.ocr.judge import OCR
from opdbench.evaluators.preference.judge import Preference
from opdbench.registry import evaluator

SHIPPED = Path(str(files("opdbench.tiny.preference_model")))


def copy_model(folder: Path) -> Path:
    shutil.copytree(SHIPPED, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return folder


def change_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    state["visual_projection.weight"] *= -1
    save_file(state, path, {"format": "pt"})


@pytest.mark.parametrize("name", ["pickscore", "clipscore", "diversity", "diversity-clip"])
def test_changed_weights_make_another_key_and_copies_make_the_same(tmp_path, name):
    first, second = copy_model(tmp_path / "a"), copy_model(tmp_path / "elsewhere")
    (second / "README.md").write_text("a copy")
    before = metric_key(evaluator(name, str(first)))
    assert str(first) not in before
    assert before == metric_key(evaluator(name, str(second)))
    change_weights(first)
    assert metric_key(evaluator(name, str(first))) != before


def test_a_changed_tokenizer_and_a_changed_shard_make_another_key(tmp_path):
    folder = copy_model(tmp_path / "a")
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, own in shards.items():
        save_file({name: state[name] for name in own}, folder / shard, {"format": "pt"})
    index = {"weight_map": {name: shard for shard, own in shards.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    keys = [metric_key(evaluator("pickscore", str(folder)))]
    save_file({name: state[name] + 1 for name in names[1::2]}, folder / "model-2.safetensors", {"format": "pt"})
    keys.append(metric_key(evaluator("pickscore", str(folder))))
    (folder / "tokenizer_config.json").write_text("{}")
    keys.append(metric_key(evaluator("pickscore", str(folder))))
    assert len(set(keys)) == 3


def test_another_snapshot_behind_a_hub_name_makes_another_key(tmp_path):
    """A hub cache on disk, whose `main` is moved to a second snapshot between two processes."""
    root = tmp_path / "hub" / "models--someone--judge"
    for commit in ("a" * 40, "b" * 40):
        copy_model(root / "snapshots" / commit)
    change_weights(root / "snapshots" / ("b" * 40))
    (root / "refs").mkdir()
    rows = [{"image": "x.png", "prompt": "a picture of a red circle"}]
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    values, keys = [], []
    for commit in ("a" * 40, "b" * 40, "a" * 40):
        (root / "refs" / "main").write_text(commit)
        offline = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
        done = apart(
            "eval",
            "--pictures",
            "rows.jsonl",
            "--tasks",
            "pickscore",
            "--source",
            "pickscore=someone/judge",
            "--format",
            "json",
            cwd=tmp_path,
            env=os.environ | offline,
        )
        assert done.returncode == 0, done.stderr
        row = json.loads(done.stdout)[0]
        values.append(row["value"])
        keys.append(row["key"])
    assert values[0] == -values[1] == values[2] != 0
    assert keys[0] == keys[2] != keys[1]
    assert metric_key(evaluator("pickscore", str(root / "snapshots" / ("a" * 40)))) in keys[0]


def test_the_detectors_key_holds_its_own_weights_and_the_colours(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    keys = []
    for content in (b"one", b"two"):
        (tmp_path / "model.safetensors").write_bytes(content)
        keys.append(metric_key(on_photos(str(tmp_path))))
    assert len(set(keys)) == 2
    weights = tmp_path / "clip.pt"
    weights.write_bytes(b"red")
    red = ClipColors("ViT-L-14-quickgelu", str(weights)).weights_hash()
    weights.write_bytes(b"blue")
    assert ClipColors("ViT-L-14-quickgelu", str(weights)).weights_hash() != red
    assert len(red) == 8


def test_the_shipped_judges_keep_their_keys():
    assert metric_key(evaluator("preference")) == "preference@1[tiny-clip]"
    assert metric_key(evaluator("geneval")) == "geneval@1[shapes]"
    assert metric_key(evaluator("diversity")) == "diversity@1[tiny-clip]"
    assert metric_key(OCR()).startswith("ocr@1[ppocr-v6-onnx/rapidocr-")
    given = Preference(source=str(SHIPPED))
    assert metric_key(given).startswith("preference@1[clip/")
    assert metric_key(Diversity(str(SHIPPED), "clip", given.prompts)).startswith("diversity@1[clip/")
