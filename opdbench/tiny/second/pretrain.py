"""Pretraining of the second edition: `python -m opdbench.tiny.second.pretrain --work DIR --out DIR`.

It goes on from the first edition's weights, which know letters, shapes and colours, with flow matching on sharp
pictures, a part of which have their kind's fault (`faults`). Autoencoder and tokenizers stay as they are. Seeded,
logged, resumable: the same command goes on from the last checkpoint in `--work`.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from importlib.resources import files
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # must precede torch: spinning starves the other core

import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from opdbench.files import read_json, write_json
from opdbench.tiny.build import TinyModel
from opdbench.tiny.export import export
from opdbench.tiny.pretrain import Cycle, PretrainRecipe, draw_batch, make_optimizers, take_step
from opdbench.tiny.second.data import make_pictures
from opdbench.tiny.vae import encode_all

log = logging.getLogger(__name__)

FIRST = Path(str(files("opdbench.tiny.model")))
"""The first edition's folder."""

RECIPE = PretrainRecipe(seed=2, vae_steps=0, pictures=40_000, cycles=(Cycle(3_600, 1e-3, 0.6, 0.0),))
"""Only `seed`, `pictures`, `dropout`, `batch`, `ema` and the cycles' steps and rates are read."""

STOP = 3_600
"""Steps of the cycle that were done for the shipped weights: all of them."""


def load_first(work: Path) -> tuple[TinyModel, AutoencoderKL]:
    """The first edition's trained parts, and its autoencoder."""
    pipe = StableDiffusion3Pipeline.from_pretrained(FIRST, torch_dtype=torch.float32, use_safetensors=True)
    model = TinyModel(work)
    model.clip_tokenizer, model.t5_tokenizer = pipe.tokenizer, pipe.tokenizer_3
    model.clip_1, model.clip_2, model.t5 = pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3
    model.transformer = pipe.transformer
    return model.requires_grad_(True).train(), pipe.vae.eval().requires_grad_(False)


def make_latents(recipe: PretrainRecipe, vae: AutoencoderKL, work: Path) -> tuple[Tensor, list[str]]:
    """Latents `(N, 16, 8, 8)` as the denoiser sees them, and captions."""
    pictures, texts = make_pictures(work / "pictures.npy", recipe.pictures, recipe.seed)
    encoded = torch.from_numpy(encode_all(vae, pictures, work / "latents.npy")).float()
    return (encoded - vae.config.shift_factor) * vae.config.scaling_factor, texts


def train_denoiser(
    recipe: PretrainRecipe, model: TinyModel, latents: Tensor, texts: list[str], work: Path, stop: int
) -> TinyModel:
    """Flow matching from the weights of `model` to step `stop`; returns the model with its averaged weights."""
    torch.manual_seed(recipe.seed)
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.ema)
    )
    optimizers = make_optimizers(model, recipe.cycles[0].lr)
    unique = sorted({"", *texts})
    index = {text: k for k, text in enumerate(unique)}
    tokens, rows = model.tokenize(unique), torch.tensor([index[text] for text in [*texts, ""]])
    state, first = work / "denoiser.pt", 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        averaged.load_state_dict(saved["averaged"])
        for optimizer, part in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(part)
        first = saved["step"]
    compiled, total = torch.compile(model), 0.0
    for step in range(first, stop):
        batch = draw_batch(recipe, latents, step, recipe.pictures)
        total += take_step(recipe, step, model, compiled, optimizers, batch, tokens[rows[batch.rows]])
        averaged.update_parameters(model)
        if (step + 1) % 50 == 0:
            log.info("denoiser step %d loss %.4f", step + 1, total / 50)
            total = 0.0
        if (step + 1) % 250 == 0 or step + 1 == stop:
            parts = [o.state_dict() for o in optimizers]
            saved = {"model": model.state_dict(), "averaged": averaged.state_dict()}
            torch.save({**saved, "optimizers": parts, "step": step + 1}, work / "denoiser.partial")
            (work / "denoiser.partial").rename(state)
    final = averaged.module
    assert isinstance(final, TinyModel)
    return final


def as_half(folder: Path) -> None:
    """Keep all weights of a pipeline folder as fp16; they are loaded as fp32 again."""
    for path in folder.rglob("*.safetensors"):
        save_file({k: v.half() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})


def without_origin(folder: Path) -> None:
    """Drop the folder that a part was loaded from: it names a machine, and it would be in the hash of the weights."""
    for path in folder.rglob("config.json"):
        write_json(path, {k: v for k, v in read_json(path).items() if k != "_name_or_path"})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for data and checkpoints")
    parser.add_argument("--steps", type=int, default=STOP, help="steps to do of the recipe's")
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished pipeline")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.work.mkdir(parents=True, exist_ok=True)
    model, vae = load_first(args.work)
    trained = train_denoiser(RECIPE, model, *make_latents(RECIPE, vae, args.work), args.work, args.steps)
    export(trained, vae, args.out)
    as_half(args.out)
    without_origin(args.out)
    for part in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        shutil.copytree(FIRST / part, args.out / part, dirs_exist_ok=True)
    log.info("wrote %s; score it with `opdbench eval --model %s`", args.out, args.out)


if __name__ == "__main__":
    main()
