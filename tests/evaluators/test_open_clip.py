"""What needs open_clip: GenEval's colours, and the conversion of its checkpoints. Run in an environment of its own."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from command import apart
from PIL import Image

if importlib.util.find_spec("open_clip") is None:
    pytest.skip("open_clip is not installed (pip install -e '.[clip]')", allow_module_level=True)

import torchvision_shim

torchvision_shim.mend()

import open_clip  # noqa: E402

from opdbench.errors import UserError  # noqa: E402
from opdbench.evaluators.geneval.colors import TEMPLATES, ClipColors, cut_out  # noqa: E402
from opdbench.evaluators.geneval.rules import PALETTE  # noqa: E402
from opdbench.evaluators.loading.pictures import letterboxed  # noqa: E402
from opdbench.evaluators.preference.clip import TEXT_HEAD, VISION_HEAD, features, load_open_clip  # noqa: E402

SMALL = "ViT-B-32-quickgelu"


def test_without_the_shim_a_broken_torchvision_is_one_clear_line(tmp_path):
    """The commands have no shim: beside a CPU build of torch each says what is wrong, and what to do."""
    if subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode == 0:
        pytest.skip("this torchvision belongs to this torch")
    found, done = apart("doctor"), apart("run", "--limit", "2", "--out", tmp_path)
    assert (found.returncode, done.returncode) == (1, 2)
    for text in (found.stdout, done.stderr):
        assert len(text.splitlines()) == 1
        assert "cannot be imported (operator torchvision::nms does not exist): uninstall it, or install both" in text


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip") / "random.pt"
    torch.save(open_clip.create_model(SMALL).state_dict(), path)
    return path


def test_colors_are_the_nearest_mean_of_templates(checkpoint):
    colors = ClipColors(SMALL, str(checkpoint))
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (60, 60, 3), np.uint8))
    boxes = [(0.0, 0.0, 30.0, 60.0), (10.0, 5.0, 55.0, 40.0), (20.0, 20.0, 60.0, 60.0)]
    masks = [rng.random((60, 60)) < 0.7 for _ in boxes]
    got = colors(image, boxes, masks, "dog")
    assert colors(image, boxes[::-1], masks[::-1], "dog") == got[::-1]
    assert [colors(image, [b], [m], "dog")[0] for b, m in zip(boxes, masks, strict=True)] == got
    model, _, transform = open_clip.create_model_and_transforms(SMALL, pretrained=str(checkpoint))
    tokenizer, vectors = open_clip.get_tokenizer(SMALL), []
    with torch.no_grad():
        for color in PALETTE:
            texts = [template.format(color=color, name="dog") for template in TEMPLATES]
            one = model.eval().encode_text(tokenizer(texts)).double().numpy()
            mean = (one / np.linalg.norm(one, axis=1, keepdims=True)).mean(0)
            vectors.append(mean / np.linalg.norm(mean))
        for box, mask, name in zip(boxes, masks, got, strict=True):
            seen = model.encode_image(transform(cut_out(image, box, mask))[None])[0].double().numpy()
            assert PALETTE[int((np.array(vectors) @ seen).argmax())] == name


def test_quickgelu_is_what_the_default_architecture_has():
    from inspect import signature

    name = signature(ClipColors).parameters["architecture"].default
    assert open_clip.get_model_config(name)["quick_gelu"] is True


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    torch.save({"alien": torch.zeros(1)}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="cannot load GenEval's colour classifier"):
        ClipColors(SMALL, str(tmp_path / "bad.pt"))(Image.new("RGB", (9, 9)), [(0, 0, 9, 9)], [np.ones((9, 9))], "dog")


def test_conversion_keeps_every_feature(tmp_path):
    """A random ViT of open_clip with ViT-H's head widths, loaded as HPSv2 is, on the same pixels and tokens."""
    tokenizer = Path(str(files("opdbench.tiny.preference_model")))
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, tmp_path)
    look = {"size": 32, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(look))
    words = len(json.loads((tmp_path / "vocab.json").read_text()))
    vision = {"image_size": 32, "layers": 2, "width": 2 * VISION_HEAD, "head_width": VISION_HEAD, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": words, "width": 2 * TEXT_HEAD, "heads": 2, "layers": 2}
    torch.manual_seed(1)
    theirs = open_clip.model.CLIP(24, vision, text).eval()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "model.pt")
    ours = load_open_clip("a model", str(tmp_path), "model.pt", str(tmp_path), letterboxed)
    ids = ours.tokenizer(["a red circle", "star"], padding="max_length", max_length=16, return_tensors="pt").input_ids
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(features(ours.model.get_image_features(pixels)), theirs.encode_image(pixels))
        ends = (ids == ours.tokenizer.eos_token_id).int().argmax(1)
        ids = torch.where(torch.arange(16) > ends[:, None], 0, ids)  # open_clip looks for the largest id, pads with 0
        want = theirs.encode_text(ids)
        torch.testing.assert_close(features(ours.model.get_text_features(ids)), want)
