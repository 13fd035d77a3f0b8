"""Adapters of other tools: the same weights as PEFT, the same picture as diffusers, or one line that names why not."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from opdbench.diffusion.adapter_files import CONFIG, PEFT_PREFIX, WEIGHTS, check, fetch
from opdbench.diffusion.adapters import ATTENTION, Adapter, fold
from opdbench.diffusion.sources import tiny_folder
from opdbench.errors import UserError

LAYER = "transformer_blocks.1.attn.to_q"


def matrices(network, rank=4, seed=0, only=""):
    """Random matrices of every adapted layer; a rank that is a function gets the layer's name."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and any(name.endswith(f".{t}") for t in ATTENTION) and only in name:
            out, into = module.weight.shape
            own = rank(name) if callable(rank) else rank
            tensors[f"{name}.lora_A.weight"] = 0.1 * torch.randn(own, into, generator=generator)
            tensors[f"{name}.lora_B.weight"] = 0.1 * torch.randn(out, own, generator=generator)
    return tensors


def write_peft(folder, tensors, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({PEFT_PREFIX + name: tensor for name, tensor in tensors.items()}, folder / WEIGHTS)
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "target_modules": sorted(ATTENTION)}
    (folder / CONFIG).write_text(json.dumps(plain | settings))
    return folder


def by_peft(base, folder):
    """Weights of plain PEFT."""
    merged = PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).merge_and_unload()
    return {name: m.weight.detach() for name, m in merged.named_modules() if isinstance(m, nn.Linear)}


def by_us(base, origin):
    network = copy.deepcopy(base)
    fold(network, base, check(fetch(str(origin)), base, str(origin)))
    return {name: m.weight.detach() for name, m in network.named_modules() if isinstance(m, nn.Linear)}


def mixed(name):
    return 2 if name.endswith("to_q") else 4


CASES = {
    "plain": (4, {}),
    "float alpha": (4, {"lora_alpha": 5.6}),
    "half alpha": (4, {"lora_alpha": 0.5}),
    "rslora": (4, {"use_rslora": True}),
    "mixed ranks": (mixed, {"rank_pattern": {"to_q": 2}}),
    "mixed alphas": (4, {"alpha_pattern": {"attn.to_k": 3, "transformer_blocks.1.attn.to_v": 7.5}}),
    "mixed rslora": (mixed, {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_k": 3}, "use_rslora": True}),
    "regex": (4, {"target_modules": rf".*({'|'.join(t.replace('.', '[.]') for t in ATTENTION)})"}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("as_file", [False, True])
def test_weights_are_those_of_plain_peft(case, as_file, model, tmp_path):
    rank, settings = CASES[case]
    folder = write_peft(tmp_path / "adapter", matrices(model.base, rank), **settings)
    expected, found = by_peft(model.base, folder), by_us(model.base, folder / WEIGHTS if as_file else folder)
    assert any(not torch.equal(expected[name], dict(model.base.named_parameters())[f"{name}.weight"]) for name in found)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6, msg=name)


def test_settings_beside_a_peft_file_count_whatever_its_tensors_are_called(model, tmp_path):
    expected = by_us(model.base, write_peft(tmp_path / "peft", matrices(model.base)))
    folder = write_peft(tmp_path / "names", matrices(model.base))
    save_file(layout(matrices(model.base)), folder / WEIGHTS)
    found = by_us(model.base, folder / WEIGHTS)
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


def test_a_setting_of_null_is_one_that_is_absent(model, tmp_path):
    """PEFT itself ends with a traceback."""
    absent = by_us(model.base, write_peft(tmp_path / "absent", matrices(model.base)))
    null = write_peft(tmp_path / "null", matrices(model.base), rank_pattern=None, alpha_pattern=None)
    assert all(torch.equal(weight, absent[name]) for name, weight in by_us(model.base, null).items())


def test_blocks_of_a_pattern_are_those_of_peft(model, tmp_path):
    tensors = matrices(model.base, only="transformer_blocks.0.")
    settings = {"layers_to_transform": [0], "layers_pattern": "transformer_blocks"}
    folder = write_peft(tmp_path / "adapter", tensors, **settings)
    expected, found = by_peft(model.base, folder), by_us(model.base, folder)
    assert all(torch.allclose(found[name], weight, atol=1e-6) for name, weight in expected.items())
    (folder / CONFIG).write_text(json.dumps({"r": 4, "lora_alpha": 16, "target_modules": sorted(ATTENTION)}))
    with pytest.raises(UserError, match="lacks layers"):
        by_us(model.base, folder)


def picture(pipe):
    generator = torch.Generator().manual_seed(0)
    call = {"num_inference_steps": 2, "guidance_scale": 1.0, "generator": generator, "output_type": "np"}
    return torch.from_numpy(pipe("a photo of a red ring", **call).images[0])


def layout(tensors):
    return {f"transformer.{name}": tensor for name, tensor in tensors.items()}


def older(tensors):
    """The names that diffusers wrote before PEFT's."""
    return {k.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up."): t for k, t in tensors.items()}


@pytest.mark.parametrize(
    ("only", "rank", "names"),
    [("", 4, dict), ("transformer_blocks.0.", 4, dict), ("", mixed, dict), ("", 4, older)],
    ids=["whole", "one block", "mixed ranks", "older names"],
)
def test_a_file_without_settings_draws_the_picture_of_plain_diffusers(only, rank, names, model, tmp_path):
    path = tmp_path / "bare.safetensors"
    save_file(names(layout(matrices(model.base, rank, only=only))), path)
    theirs = StableDiffusion3Pipeline.from_pretrained(tiny_folder())
    plain = picture(theirs)
    theirs.load_lora_weights(str(tmp_path), weight_name=path.name)
    expected = picture(theirs)
    ours = StableDiffusion3Pipeline.from_pretrained(tiny_folder())
    fold(ours.transformer, copy.deepcopy(ours.transformer), check(fetch(str(path)), ours.transformer, "x"))
    assert (expected - plain).abs().max() > 0.01
    assert (picture(ours) - expected).abs().max() < 1e-3


def test_what_is_kept_of_a_mixed_adapter_is_the_same_for_diffusers(model, tmp_path):
    path = tmp_path / "bare.safetensors"
    save_file(layout(matrices(model.base, mixed, only="transformer_blocks.0.")), path)
    adapter = check(fetch(str(path)), model.base, "x")
    adapter.save(tmp_path / "kept.safetensors")
    pictures = []
    for name in ("bare.safetensors", "kept.safetensors"):
        pipe = StableDiffusion3Pipeline.from_pretrained(tiny_folder())
        pipe.load_lora_weights(str(tmp_path), weight_name=name)
        pictures.append(picture(pipe))
    assert (pictures[0] - pictures[1]).abs().max() < 1e-3
    assert Adapter.load(tmp_path / "kept.safetensors").digest() == adapter.digest()


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "unheard of"])
def test_adapters_that_change_the_base_weights_are_refused(start, model, tmp_path):
    folder = write_peft(tmp_path / "adapter", matrices(model.base), init_lora_weights=start)
    with pytest.raises(UserError, match=f"init_lora_weights '{start}', which changes the base weights") as error:
        fetch(str(folder))
    assert "\n" not in str(error.value)


def test_a_real_pissa_adapter_is_refused(model, tmp_path):
    config = LoraConfig(r=4, lora_alpha=4, init_lora_weights="pissa", target_modules=["to_q"])
    get_peft_model(copy.deepcopy(model.base), config).save_pretrained(tmp_path / "pissa")
    with pytest.raises(UserError, match="pissa"):
        fetch(str(tmp_path / "pissa"))


def kohya(tensors):
    def name(key):
        layer, side = key.removesuffix(".weight").rsplit(".lora_", 1)
        return f"lora_unet_{layer.replace('.', '_')}.lora_{'down' if side == 'A' else 'up'}.weight"

    return {name(key): tensor for key, tensor in tensors.items()}


def test_diffusers_itself_takes_nothing_of_kohyas_names_and_no_alpha_tensor(model, tmp_path):
    """So that refusing them by name is the most that an evaluation can do."""
    theirs, tensors = StableDiffusion3Pipeline.from_pretrained(tiny_folder()), matrices(model.base)
    plain = picture(theirs)
    save_file(kohya(tensors), tmp_path / "kohya.safetensors")
    theirs.load_lora_weights(str(tmp_path), weight_name="kohya.safetensors")
    assert torch.equal(picture(theirs), plain)
    save_file(layout(tensors) | {f"transformer.{LAYER}.alpha": torch.tensor(16.0)}, tmp_path / "alpha.safetensors")
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        theirs.load_lora_weights(str(tmp_path), weight_name="alpha.safetensors")


REFUSED = {
    "kohya": (lambda t: kohya(t), "Kohya's names"),
    "kohya with alphas": (lambda t: {"lora_unet_x.alpha": torch.tensor(2.0)} | kohya(t), "Kohya's names"),
    "alpha tensors": (lambda t: layout(t) | {f"transformer.{LAYER}.alpha": torch.tensor(16.0)}, r"\.alpha"),
    "nan": (lambda t: layout(t | {f"{LAYER}.lora_A.weight": t[f"{LAYER}.lora_A.weight"] * float("nan")}), "not finite"),
    "inf": (lambda t: layout(t | {f"{LAYER}.lora_B.weight": t[f"{LAYER}.lora_B.weight"] / 0}), "not finite"),
    "int": (lambda t: {k: v.int() for k, v in layout(t).items()}, "expected a floating matrix"),
    "three": (lambda t: {k: v[..., None] for k, v in layout(t).items()}, "expected a floating matrix"),
    "scalar": (lambda t: {k: torch.zeros(()) for k in layout(t)}, "expected a floating matrix"),
    "empty": (lambda t: {}, "has no LoRA matrices"),
    "default": (lambda t: {k.replace(".weight", ".default.weight"): v for k, v in layout(t).items()}, "LoRA matrices"),
    "text": (lambda t: layout(t) | {"text_encoder.x.lora_A.weight": torch.zeros(4, 4),
                                    "text_encoder.x.lora_B.weight": torch.zeros(4, 4)}, "unknown layers"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_diffusers_does_not_load_is_refused_by_name(case, model, tmp_path):
    change, message = REFUSED[case]
    save_file({k: v.contiguous() for k, v in change(matrices(model.base)).items()}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=message) as error:
        by_us(model.base, tmp_path / "a.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"modules_to_save": ["x"]},
        {"lora_bias": True},
        {"fan_in_fan_out": True},
        {"peft_type": "LOHA"},
        {"r": "4"},
        {"r": 0},
        {"lora_alpha": "x"},
        {"lora_alpha": float("nan")},
        {"lora_alpha": [1]},
        {"lora_alpha": 10**400},
        {"rank_pattern": [1]},
        {"alpha_pattern": {"to_q": "x"}},
        {"alpha_pattern": ""},
        {"alpha_pattern": {"(": 3}},
        {"exclude_modules": 1e308},
        {"layers_to_transform": "x", "layers_pattern": "("},
        {"target_modules": [1, 2]},
        {"target_modules": "(["},
        {"target_modules": [["a"]]},
        {"r": 8},
        {"layer_replication": [[0, 1]]},
        {"target_parameters": ["x"]},
    ],
)
def test_settings_that_are_not_followed_are_one_clear_line(settings, model, tmp_path):
    folder = write_peft(tmp_path / "adapter", matrices(model.base), **settings)
    with pytest.raises(UserError, match=r"adapter .*adapter") as error:
        by_us(model.base, folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[1]", '"x"', "{", "[" * 100_000, '{"transformer.lora_alpha": NaN}'])
def test_metadata_that_is_no_table_is_one_clear_line(text, model, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(layout(matrices(model.base)), path, metadata={"lora_adapter_metadata": text})
    for read in (lambda: fetch(str(path)), lambda: Adapter.load(path)):
        with pytest.raises(UserError, match=r"a\.safetensors"):
            read()


def test_a_peft_file_without_its_settings_is_refused(model, tmp_path):
    folder = write_peft(tmp_path / "adapter", matrices(model.base))
    (folder / CONFIG).unlink()
    with pytest.raises(UserError, match=f"cannot read .*{CONFIG}.*needs it"):
        fetch(str(folder / WEIGHTS))


def test_an_adapter_that_changes_nothing_is_known(model, tmp_path):
    tensors = matrices(model.base)
    zero = {k: torch.zeros_like(t) if "lora_B" in k else t for k, t in tensors.items()}
    assert fetch(str(write_peft(tmp_path / "zero", zero))).changes_nothing()
    assert fetch(str(write_peft(tmp_path / "alpha", tensors, lora_alpha=0))).changes_nothing()
    assert not fetch(str(write_peft(tmp_path / "plain", tensors))).changes_nothing()


def test_weights_that_are_not_finite_are_never_kept_or_read(model, tmp_path):
    adapter = check(fetch(str(write_peft(tmp_path / "a", matrices(model.base)))), model.base, "x")
    adapter.save(tmp_path / "whole.safetensors")
    broken = Adapter(adapter.tensors | {f"{LAYER}.lora_A.weight": torch.full((4, 128), float("inf"))}, adapter.lora)
    with pytest.raises(UserError, match="not finite"):
        broken.save(tmp_path / "broken.safetensors")
    assert not (tmp_path / "broken.safetensors").exists()
    tensors = load_file(tmp_path / "whole.safetensors")
    tensors[f"transformer.{LAYER}.lora_A.weight"] *= float("nan")
    settings = {"transformer.r": 4, "transformer.lora_alpha": 16, "transformer.target_modules": list(ATTENTION)}
    metadata = {"lora_adapter_metadata": json.dumps(settings)}
    save_file(tensors, tmp_path / "edited.safetensors", metadata=metadata)
    with pytest.raises(UserError, match="not finite; it is not evaluated"):
        Adapter.load(tmp_path / "edited.safetensors")
