"""Pretraining recipe of the tiny model: `python -m opdbench.tiny.pretrain --work DIR --out DIR`.

Autoencoder, then latents of partly wrongly captioned pictures, then denoiser and text encoders
together by flow matching with caption dropout. Seeded, logged, resumable: the same command goes on
from the last checkpoint in `--work`.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # must precede torch: spinning starves the other core

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .build import TinyModel, Tokens
from .data import make_dataset
from .export import export
from .vae import encode_all, fold_scale, train_vae

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Everything that the weights depend on; `cycles` are lengths and peaks of the learning rate."""

    seed: int = 0
    vae_steps: int = 2000
    pictures: int = 60_000
    wrong: float = 0.2
    dropout: float = 0.12
    cycles: tuple[tuple[int, float], ...] = ((4200, 1.0), (1200, 0.6))
    batch: int = 64
    lr: float = 2e-3
    decay: tuple[float, ...] = (0.3, 1.0)
    ema: float = 0.998

    @property
    def steps(self) -> int:
        """Steps over all cycles."""
        return sum(length for length, _ in self.cycles)


def learning_rate(recipe: Recipe, step: int) -> float:
    """In each cycle: warm-up over 100 steps, constant, linear to zero over its last share `decay`."""
    for (length, peak), decay in zip(recipe.cycles, recipe.decay, strict=True):
        if step < length:
            return recipe.lr * peak * min(1.0, (step + 1) / 100, (length - step) / (decay * length))
        step -= length
    return 0.0


def make_optimizers(model: TinyModel, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the denoiser's blocks, AdamW for everything else."""
    named = dict(model.named_parameters())
    is_block = {k: "transformer_blocks" in k and p.ndim == 2 and "norm" not in k for k, p in named.items()}
    muon = torch.optim.Muon(
        [p for k, p in named.items() if is_block[k]],
        lr=lr,
        weight_decay=0.01,
        adjust_lr_fn="match_rms_adamw",
    )
    rest = [p for k, p in named.items() if not is_block[k]]
    return [muon, torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)]


@dataclass(frozen=True)
class Batch:
    """Noised latents `x` `(B, 16, 8, 8)`, times `t` `(B,)`, target velocities, caption rows."""

    x: Tensor
    t: Tensor
    target: Tensor
    rows: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return Batch(self.x.to(device), self.t.to(device), self.target.to(device), self.rows)


def draw_batch(recipe: Recipe, latents: Tensor, step: int, empty: int) -> Batch:
    """The batch of a step; depends on the seed and the step only. Row `empty` is the empty caption."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    pick = torch.randint(len(latents), (recipe.batch,), generator=generator)
    x0 = latents[pick].float()
    noise = torch.randn(x0.shape, generator=generator)
    t = torch.sigmoid(0.8 + torch.randn(recipe.batch, generator=generator))
    dropped = torch.rand(recipe.batch, generator=generator) < recipe.dropout
    part = t[:, None, None, None]
    return Batch((1 - part) * x0 + part * noise, t, noise - x0, pick.masked_fill(dropped, empty))


def train_denoiser(recipe: Recipe, latents: Tensor, texts: list[str], work: Path) -> TinyModel:
    """Flow matching from a seed; returns the model with its averaged weights."""
    torch.manual_seed(recipe.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = TinyModel(work).to(device)
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.ema)
    )
    optimizers = make_optimizers(model, recipe.lr)
    unique = sorted({*texts, ""})
    tokens = model.tokenize(unique)
    index = {text: k for k, text in enumerate(unique)}
    caption = torch.tensor([*(index[text] for text in texts), index[""]])
    state, first = work / "denoiser.pt", 0
    if state.exists():
        saved = torch.load(state, weights_only=True, map_location=device)
        model.load_state_dict(saved["model"])
        averaged.load_state_dict(saved["averaged"])
        for optimizer, part in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(part)
        first = saved["step"]
    compiled = torch.compile(model)
    total = 0.0
    for step in range(first, recipe.steps):
        batch = draw_batch(recipe, latents, step, len(texts))
        chosen = tokens[caption[batch.rows]]
        total += _update(recipe, step, model, compiled, optimizers, batch.to(device), chosen.to(device))
        averaged.update_parameters(model)
        if (step + 1) % 50 == 0:
            log.info("denoiser step %d loss %.4f", step + 1, total / 50)
            total = 0.0
        if (step + 1) % 250 == 0 or step + 1 == recipe.steps:
            parts = [o.state_dict() for o in optimizers]
            saved = {"model": model.state_dict(), "averaged": averaged.state_dict()}
            torch.save({**saved, "optimizers": parts, "step": step + 1}, work / "denoiser.partial")
            (work / "denoiser.partial").rename(state)
    final = averaged.module
    assert isinstance(final, TinyModel)
    return final


def _update(
    recipe: Recipe,
    step: int,
    model: TinyModel,
    compiled: Callable[..., Tensor],
    optimizers: list[torch.optim.Optimizer],
    batch: Batch,
    tokens: Tokens,
) -> float:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        optimizer.zero_grad()
    # Plain attention: the fused backward is slow for so few tokens on a CPU.
    kind = batch.x.device.type
    plain = sdpa_kernel(SDPBackend.MATH) if kind == "cpu" else nullcontext()
    with plain, torch.autocast(kind, torch.bfloat16):
        velocity = compiled(batch.x, batch.t, tokens)
    loss = (velocity.float() - batch.target).square().mean()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for data and checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished pipeline")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe = Recipe()
    args.work.mkdir(parents=True, exist_ok=True)
    pictures, texts = make_dataset(args.work / "data.npz", recipe.pictures, recipe.seed, recipe.wrong)
    plain, _ = make_dataset(args.work / "vae_data.npz", 6000, recipe.seed + 7, 0.0)
    vae = train_vae(plain, args.work, recipe.vae_steps, recipe.seed)
    latents = encode_all(vae, pictures, args.work / "latents.npy")
    scaled = torch.from_numpy(fold_scale(vae, latents))
    model = train_denoiser(recipe, scaled, texts, args.work)
    export(model.cpu(), vae, args.out)
    log.info("wrote %s; score it with `opdbench eval --model %s`", args.out, args.out)


if __name__ == "__main__":
    main()
