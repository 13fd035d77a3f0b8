"""Mask2Former's way from logits to boxes against another one in float64, and the real loader on a random model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opdbench.core import Prompt, metric_key
from opdbench.errors import UserError
from opdbench.evaluators.geneval.colors import BACKGROUND, cut_out
from opdbench.evaluators.geneval.judge import on_photos
from opdbench.evaluators.geneval.mask2former import OBJECTS, Frame, Mask2Former, frame, postprocess, prepare
from opdbench.evaluators.geneval.spec import Detection

NAMES = Path(__file__).resolve().parents[3] / "shared" / "prompts" / "geneval_object_names.txt"
RED_DOG = {"tag": "colors", "prompt": "a photo of a red dog", "include": [{"class": "dog", "count": 1, "color": "red"}]}


def axis(size, target):
    """Bilinear weights `(target, size)` with half-pixel centres and clamped edges, in float64."""
    weights = np.zeros((target, size))
    for k in range(target):
        place = max((k + 0.5) * size / target - 0.5, 0)
        low = int(place)
        weights[k, low] += 1 - (place - low)
        weights[k, min(low + 1, size - 1)] += place - low
    return weights


def resize(grid, target):
    return axis(grid.shape[0], target[0]) @ grid @ axis(grid.shape[1], target[1]).T


def reference(classes, masks, sizes):
    """The 100 best pairs as (query, label, score, box, mask), one pixel loop at a time."""
    exp = np.exp(classes - classes.max(1, keepdims=True))
    probabilities = (exp / exp.sum(1, keepdims=True))[:, :-1]
    pairs = sorted(np.ndindex(probabilities.shape), key=lambda pair: -probabilities[pair])[:100]
    for query, label in pairs:
        padded = resize(masks[query], sizes.padded)[: sizes.scaled[0], : sizes.scaled[1]]
        logits = resize(padded, sizes.original)
        mask = logits > 0
        sigmoid = 1 / (1 + np.exp(-logits))
        score = probabilities[query, label] * sigmoid[mask].sum() / (mask.sum() + 1e-6)
        ys, xs = np.nonzero(mask)
        box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else (0, 0, 0, 0)
        yield query, label, score, box, mask


@pytest.mark.parametrize(
    "sizes", [frame(48, 64), Frame((30, 20), (96, 64), (96, 64)), Frame((40, 40), (50, 33), (64, 64))]
)
def test_postprocessing_equals_float64(sizes):
    rng = np.random.default_rng(0)
    classes, masks = 3 * rng.standard_normal((12, 11)), rng.standard_normal((12, 16, 16))
    masks[3] = -5.0  # an empty mask: box of zeros, score 0
    if sizes.padded[0] > 500:
        masks, classes = masks[:4], classes[:4]
    got = postprocess(torch.tensor(classes).float(), torch.tensor(masks).float(), sizes)
    want = list(reference(classes, masks, sizes))
    assert len(got) == len(want) == min(100, classes[:, :-1].size)
    for one, (_, label, score, box, mask) in zip(got, want, strict=True):
        assert one.label == label
        assert one.score == pytest.approx(score, abs=2e-5)
        assert (one.mask != mask).sum() <= 1e-3 * mask.size  # float32 at logits of 0
        assert np.abs(np.subtract(one.box, box)).max() <= 1
        ys, xs = np.nonzero(one.mask)
        assert one.box == ((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else (0, 0, 0, 0))
    assert any(one.score == 0 for one in got) == (len(masks) > 3)


def test_what_is_left_out_could_not_have_been_kept():
    generator = torch.Generator().manual_seed(1)
    classes, masks = 4 * torch.randn(8, 5, generator=generator), torch.randn(8, 8, 8, generator=generator)
    sizes = Frame((16, 16), (16, 16), (16, 16))
    everything, fewer = postprocess(classes, masks, sizes), postprocess(classes, masks, sizes, 0.3)
    assert 0 < len(fewer) < len(everything)
    assert [o.score for o in everything if o.score > 0.3] == [o.score for o in fewer if o.score > 0.3]


def test_sizes_are_mmdets():
    assert frame(512, 512) == Frame((512, 512), (800, 800), (800, 800))
    assert frame(1024, 1024).scaled == (800, 800)
    assert frame(600, 1500) == Frame((600, 1500), (533, 1333), (544, 1344))


def test_pixels_are_scaled_padded_and_normalised():
    pixels, sizes = prepare(Image.new("RGB", (1500, 600), (255, 0, 0)))
    assert pixels.shape == (1, 3, *sizes.padded)
    want = [(255 - 123.675) / 58.395, -116.28 / 57.12, -103.53 / 57.375]
    assert pixels[0, :, 0, 0].tolist() == pytest.approx(want, abs=1e-5)
    grey = [(128 - 123.675) / 58.395, (128 - 116.28) / 57.12, (128 - 103.53) / 57.375]
    assert pixels[0, :, -1, -1].tolist() == pytest.approx(grey, abs=1e-5)


@pytest.mark.skipif(not NAMES.exists(), reason="no copy of GenEval's object names")
def test_names_are_genevals():
    assert tuple(NAMES.read_text().splitlines()) == OBJECTS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random Mask2Former of the real classes, saved as transformers does."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    swin = SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=10,
        num_labels=80,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mask2former")
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    return folder


def test_a_checkpoint_is_loaded_and_its_boxes_do_not_depend_on_company(checkpoint):
    detector = Mask2Former(str(checkpoint))
    noise = np.random.default_rng(2).integers(0, 256, (2, 64, 80, 3), np.uint8)
    images = [Image.fromarray(pixels) for pixels in noise]
    alone = [detector.instances(image) for image in images]
    again = [detector.instances(image) for image in reversed(images)][::-1]
    assert all(len(found) == 100 for found in alone)
    for one, two in zip([*alone[0], *alone[1]], [*again[0], *again[1]], strict=True):
        assert (one.label, one.score, one.box) == (two.label, two.score, two.box)
    assert alone[0][0].mask.shape == (64, 80)


def test_order_and_batch_do_not_matter(checkpoint):
    noise = np.random.default_rng(3).integers(0, 256, (4, 64, 80, 3), np.uint8)
    images = [Image.fromarray(pixels[: 64 - 8 * k]) for k, pixels in enumerate(noise)]
    spec = {"tag": "counting", "prompt": "a photo of two dogs", "include": [{"class": "dog", "count": 2}]}
    judge, rows = on_photos(str(checkpoint)), [Prompt(f"g/{k}", spec["prompt"], "geneval", spec) for k in range(4)]
    with torch.no_grad():
        judge._detector._model.class_predictor.weight.mul_(30)  # so that random weights are sure of something
    together = judge.score(images, rows)
    assert len({str(score.details) for score in together}) == 4
    assert judge.score(images[::-1], rows) == together[::-1]
    assert [judge.score([i], [p])[0] for i, p in zip(images, rows, strict=True)] == together


def test_a_missing_or_alien_key_is_refused(checkpoint, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    state = load_file(path)
    gone = next(key for key in state if key.endswith("class_predictor.weight"))
    save_file({k: v for k, v in state.items() if k != gone}, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"1 missing .*class_predictor.weight") as error:
        Mask2Former(str(tmp_path / "m")).instances(Image.new("RGB", (64, 64)))
    assert "\n" not in str(error.value)
    save_file({**state, "alien.weight": torch.zeros(1)}, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"1 left over .*alien.weight"):
        Mask2Former(str(tmp_path / "m")).instances(Image.new("RGB", (64, 64)))


def test_absent_weights_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="cannot load the GenEval detector"):
        Mask2Former(str(tmp_path)).instances(Image.new("RGB", (64, 64)))


class Found(Mask2Former):
    """A detector that has found what it is given."""

    def __init__(self, instances, classify):
        super().__init__(classify=classify)
        self._found = instances

    def instances(self, image, least=0.0):
        return self._found


def test_only_kept_boxes_of_an_asked_class_are_classified():
    from opdbench.evaluators.geneval.judge import GenEval
    from opdbench.evaluators.geneval.mask2former import Instance

    dog, cat = OBJECTS.index("dog"), OBJECTS.index("cat")
    mask = np.ones((10, 10), bool)
    found = [
        Instance(dog, 0.2, (0, 0, 1, 1), mask),
        Instance(dog, 0.6, (0, 0, 2, 2), mask),
        Instance(dog, 0.9, (0, 0, 3, 3), mask),
        Instance(cat, 0.9, (0, 0, 4, 4), mask),
    ]
    asked = []

    def classify(image, boxes, masks, name):
        asked.append((name, list(boxes)))
        return ["red"] * len(boxes)

    prompt = Prompt("g/0", RED_DOG["prompt"], "geneval", RED_DOG)
    (score,) = GenEval(Found(found, classify)).score([Image.new("RGB", (10, 10))], [prompt])
    assert asked == [("dog", [(0, 0, 3, 3)])]
    assert (score.value, score.metrics["strict"]) == (1.0, 0.0)  # two dogs are one too many
    assert score.metrics["dense-fixed"] == pytest.approx(0.0)  # count 1 - |1 - 2| / 1, then 0 for the colour
    assert Detection("dog", (0, 0, 3, 3), 0.9, "red").name in str(score.details)


def test_the_cut_out_is_grey_outside_its_mask():
    image = Image.new("RGB", (8, 8), "red")
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:4] = True
    crop = cut_out(image, (2.0, 2.0, 6.0, 6.0), mask)
    assert crop.size == (4, 4)
    grey = Image.new("RGB", (1, 1), BACKGROUND).getpixel((0, 0))
    assert (crop.getpixel((0, 0)), crop.getpixel((3, 0))) == ((255, 0, 0), grey)


def test_the_key_names_the_backend_and_unknown_things_are_refused():
    judge = on_photos("somewhere")
    assert metric_key(judge) == "geneval@1[mask2former-hf]"
    judge.check(Prompt("g/0", "x", "geneval", RED_DOG))
    star = {**RED_DOG, "include": [{"class": "star", "count": 1}]}
    with pytest.raises(UserError, match="asks for 'star'"):
        judge.check(Prompt("g/1", "x", "geneval", star))
