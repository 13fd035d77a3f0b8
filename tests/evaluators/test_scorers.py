"""Every preference scorer: real loaders on random checkpoints, arithmetic in float64, company that must not matter."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
import towers
from PIL import Image

from opdbench.core import Prompt, metric_key
from opdbench.errors import UserError
from opdbench.evaluators.loading.pictures import Look, cropped, cropped_bilinear, letterboxed
from opdbench.evaluators.loading.weights import read_state
from opdbench.evaluators.preference.blip import CENTRE, SPREAD
from opdbench.evaluators.preference.judge import SCORERS, Preference
from opdbench.registry import evaluator, names

REAL = sorted(SCORERS.keys() - {"preference"})
TEXTS = ["a red circle", "a blue star and a green ring", "two squares", "a picture of a cross", "star"]
CLIP_LOOK = Look(32)


def noise(number, seed=0):
    rng = np.random.default_rng(seed)
    sizes = [(48, 64), (64, 48), (64, 64), (40, 90), (33, 47)]
    return [Image.fromarray(rng.integers(0, 256, (*sizes[k % 5], 3), np.uint8)) for k in range(number)]


def prompts(number=5):
    return [Prompt(f"p/{k}", TEXTS[k % 5], "x") for k in range(number)]


def save_clip(folder: Path):
    """A random CLIP with the tiny world's tokenizer."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = Path(str(files("opdbench.tiny.preference_model")))
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder)
    look = {"size": {"shortest_edge": 32}, "image_mean": CLIP_LOOK.mean, "image_std": CLIP_LOOK.std}
    (folder / "preprocessor_config.json").write_text(json.dumps(look))
    words = json.loads((folder / "vocab.json").read_text())
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    end = words["<|endoftext|>"]
    torch.manual_seed(0)
    config = CLIPConfig(
        projection_dim=16, vision_config={**tower, "image_size": 32, "patch_size": 16},
        text_config={**tower, "vocab_size": len(words), "max_position_embeddings": 16, "eos_token_id": end,
                     "bos_token_id": words["<|startoftext|>"], "pad_token_id": end},
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    return len(words)


def to_torch(state):
    return {key: torch.from_numpy(np.asarray(value)) for key, value in state.items()}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder a scorer, with the files that its loader asks for."""
    found = {name: tmp_path_factory.mktemp(name) for name in REAL}
    for name in ("pickscore", "clipscore", "aesthetic", "hpsv2"):
        words = save_clip(found[name])
    head = towers.Random(2)
    head.head(16)
    torch.save(to_torch(head.state), found["aesthetic"] / "sac+logos+ava1-l14-linearMSE.pth")
    (found["hpsv2"] / "model.safetensors").unlink()
    state = towers.open_clip_state(words, 16)
    torch.save({"state_dict": to_torch(state)}, found["hpsv2"] / "HPS_v2.1_compressed.pt")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "and", "blue", "circle", "cross", "green", "of",
                  "picture", "red", "ring", "squares", "star", "two"]  # fmt: skip
    (found["imagereward"] / "vocab.txt").write_text("\n".join(vocabulary))
    text = {"vocab_size": len(vocabulary), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 40, "layer_norm_eps": 1e-12, "pad_token_id": 0,
            "hidden_act": "gelu"}  # fmt: skip
    (found["imagereward"] / "med_config.json").write_text(json.dumps(text))
    torch.save(to_torch(towers.imagereward_state(len(vocabulary))), found["imagereward"] / "ImageReward.pt")
    return found


@pytest.fixture(scope="module")
def judges(sources):
    return {name: evaluator(name, str(sources[name])) for name in REAL}


def values(judge, images, rows):
    return np.array([score.value for score in judge.score(images, rows)])


@pytest.mark.parametrize("name", REAL)
def test_a_score_depends_on_its_own_pair_only(judges, name):
    images, rows = noise(40), prompts(40)
    together = values(judges[name], images, rows)
    order = np.random.default_rng(1).permutation(40)
    permuted = values(judges[name], [images[k] for k in order], [rows[k] for k in order])
    alone = np.concatenate([values(judges[name], [i], [p]) for i, p in zip(images[:9], rows[:9], strict=True)])
    np.testing.assert_allclose(permuted, together[order], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(alone, together[:9], rtol=1e-4, atol=1e-5)
    assert together.std() > 1e-4


@pytest.mark.parametrize(("name", "pixels", "scaled"), [("pickscore", cropped, 1), ("clipscore", cropped_bilinear, 0)])
def test_clip_scores_are_float64_cosines_of_features(judges, name, pixels, scaled):
    images, rows = noise(5), prompts()
    judge = judges[name].judge
    model = judge.model
    for image, row, got in zip(images, rows, values(judges[name], images, rows), strict=True):
        ids = judge.tokenizer(row.text, return_tensors="pt").input_ids
        with torch.no_grad():
            out = model(input_ids=ids, pixel_values=pixels([image], CLIP_LOOK))
        x, y = out.image_embeds[0].double().numpy(), out.text_embeds[0].double().numpy()
        cosine = x @ y / np.sqrt((x @ x) * (y @ y))
        assert got == pytest.approx(cosine * np.exp(model.logit_scale.item() * scaled), rel=1e-4)


def test_aesthetic_is_a_linear_head_on_the_unit_vector(judges, sources):
    images = noise(5)
    judge = judges["aesthetic"].judge
    state = torch.load(sources["aesthetic"] / "sac+logos+ava1-l14-linearMSE.pth", weights_only=True)
    state = {key: value.double().numpy() for key, value in state.items()}
    model = judge.clip.model
    for image, got in zip(images, values(judges["aesthetic"], images, prompts()), strict=True):
        with torch.no_grad():
            seen = (
                model.visual_projection(model.vision_model(cropped([image], CLIP_LOOK)).pooler_output)[0]
                .double()
                .numpy()
            )
        assert got == pytest.approx(towers.head_score(state, seen / np.sqrt(seen @ seen)), rel=1e-4)
    other = values(judges["aesthetic"], images, prompts()[::-1])
    np.testing.assert_allclose(other, values(judges["aesthetic"], images, prompts()), rtol=1e-6)


def test_hpsv2_equals_open_clips_arithmetic_in_float64(judges):
    judge = judges["hpsv2"].judge
    state = {
        k: v.astype(np.float64)
        for k, v in towers.open_clip_state(judge.model.config.text_config.vocab_size, 16).items()
    }
    images, rows = noise(5), prompts()
    for image, row, got in zip(images, rows, values(judges["hpsv2"], images, rows), strict=True):
        pixels = letterboxed([image], CLIP_LOOK)[0].double().numpy()
        want = towers.open_clip_score(state, pixels, judge.tokenizer(row.text).input_ids)
        assert got == pytest.approx(want, abs=2e-5)


def test_imagereward_equals_its_arithmetic_in_float64(judges):
    judge = judges["imagereward"].judge
    state = {k: v.astype(np.float64) for k, v in towers.imagereward_state(18).items()}
    images, rows = noise(5), prompts()
    for image, row, got in zip(images, rows, values(judges["imagereward"], images, rows), strict=True):
        pixels = cropped([image], CLIP_LOOK)[0].double().numpy()
        raw = towers.imagereward_score(state, pixels, judge.tokenizer(row.text).input_ids)
        assert got == pytest.approx((raw - CENTRE) / SPREAD, rel=1e-4, abs=1e-5)


def unnormalised(pixels, look=CLIP_LOOK):
    return pixels[0].double().numpy() * np.array(look.std)[:, None, None] + np.array(look.mean)[:, None, None]


@pytest.mark.parametrize("image", noise(4), ids=lambda image: f"{image.width}x{image.height}")
def test_resizing_is_antialiased_and_keeps_what_it_should(image):
    source = np.asarray(image).astype(np.float64).transpose(2, 0, 1) / 255
    height, width = source.shape[1:]
    short = (32, int(32 * width / height)) if height <= width else (int(32 * height / width), 32)
    small = towers.shrink(source, *short, towers.triangle, 1)
    top, left = (short[0] - 32) // 2, (short[1] - 32) // 2
    want = small[:, top : top + 32, left : left + 32]
    np.testing.assert_allclose(unnormalised(cropped_bilinear([image], CLIP_LOOK)), want, atol=1e-5)
    long = round(height * 32 / max(height, width)), round(width * 32 / max(height, width))
    small = towers.shrink(source, *long, towers.cubic, 2)
    want = np.zeros((3, 32, 32))
    top, left = (32 - long[0]) // 2, (32 - long[1]) // 2
    want[:, top : top + long[0], left : left + long[1]] = small
    np.testing.assert_allclose(unnormalised(letterboxed([image], CLIP_LOOK)), want, atol=1e-5)


@pytest.mark.parametrize("image", noise(4), ids=lambda image: f"{image.width}x{image.height}")
def test_cropping_is_that_of_clips_processor(image):
    try:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as CLIPImageProcessor
    except ImportError:  # transformers 4 has PIL in the plain class
        from transformers import CLIPImageProcessor
    side = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = CLIPImageProcessor(**side, image_mean=CLIP_LOOK.mean, image_std=CLIP_LOOK.std)
    made = processor(images=image, return_tensors="pt").pixel_values
    torch.testing.assert_close(cropped([image], CLIP_LOOK), made, rtol=0, atol=2e-6)


def test_raw_values_rewards_and_truncation(judges):
    long = Prompt("p/long", " ".join(TEXTS * 4), "x")
    for name, judge in judges.items():
        short_score, long_score = judge.score(noise(2), [prompts()[0], long])
        assert short_score.reward == pytest.approx(short_score.value / (26 if name == "pickscore" else 1))
        assert short_score.metrics["truncated"] == 0
        assert long_score.metrics["truncated"] == (name != "aesthetic")


@pytest.mark.parametrize("name", REAL)
def test_files_that_do_not_match_are_refused(sources, tmp_path, name):
    shutil.copytree(sources[name], tmp_path / "m")
    path = next(p for p in sorted((tmp_path / "m").iterdir()) if p.suffix in (".pt", ".pth", ".safetensors"))
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file, save_file

        state = load_file(path)
        save_file({k: v for k, v in state.items() if k != "visual_projection.weight"}, path, {"format": "pt"})
    else:
        state = torch.load(path, weights_only=True)
        inner = state.get("state_dict", state)
        gone = next(k for k in inner if k.endswith(("mlp.c_fc.bias", "layers.7.bias")))
        torch.save({k: v for k, v in inner.items() if k != gone}, path)
    with pytest.raises(UserError, match=r"does not match its model: 1 missing") as error:
        evaluator(name, str(tmp_path / "m")).score(noise(1), prompts(1))
    assert "\n" not in str(error.value)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot load"):
        evaluator(name, str(tmp_path / "m")).score(noise(1), prompts(1))


def test_pickled_code_is_never_run(sources, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    shutil.copytree(sources["hpsv2"], tmp_path / "m")
    torch.save({"state_dict": Evil()}, tmp_path / "m" / "HPS_v2.1_compressed.pt")
    with pytest.raises(UserError, match="not a file of plain tensors") as error:
        evaluator("hpsv2", str(tmp_path / "m")).score(noise(1), prompts(1))
    assert "weights_only" not in str(error.value)  # torch's own text says how to run it
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"nothing", [1, 2], {"a": 1}, {"state_dict": [1]}], ids=str)
def test_a_file_without_tensors_is_one_line(content, tmp_path):
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=r"cannot load x from '.*w\.pth'") as error:
        read_state("x", path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file_is_read_or_refused(zipped, tmp_path):
    good, damaged, rng, refused = tmp_path / "good.pth", tmp_path / "w.pth", Random(0), 0
    torch.save({"a": torch.ones(3, 4)}, good, _use_new_zipfile_serialization=zipped)
    for _ in range(300):
        content = bytearray(good.read_bytes())
        for _ in range(3):
            content[rng.randrange(len(content))] = rng.randrange(256)
        damaged.write_bytes(content)
        try:
            read_state("x", damaged)
        except UserError:
            refused += 1
    assert refused > 30


def test_keys_name_the_version(tmp_path):
    keys = {metric_key(Preference(name)) for name in SCORERS}
    assert {"pickscore@1[PickScore_v1]", "hpsv2@1[HPS_v2.1]", "imagereward@1[ImageReward-v1.0]"} <= keys
    assert len(keys) == len(SCORERS)
    assert set(REAL) <= set(names("judges"))
    with pytest.raises(UserError, match="opdbench data pull drawbench"):
        evaluator("pickscore").prompts("test")
    save_clip(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"expected the file 'preprocessor_config.json'"):
        evaluator("pickscore", str(tmp_path)).score(noise(1), prompts(1))
