"""Pretraining recipe of the tiny model: `python -m opdbench.tiny.pretrain --work DIR --out DIR`.

Autoencoder, then latents of partly wrongly captioned pictures, then denoiser and text encoders
together by flow matching with caption dropout. Seeded, logged, resumable: the same command goes on
from the last checkpoint in `--work`.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # must precede torch: spinning starves the other core

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from opdbench.tiny.build import TinyModel, Tokens
from opdbench.tiny.data import make_captions, make_pictures
from opdbench.tiny.export import export
from opdbench.tiny.vae import encode_all, fold_scale, train_vae

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cycle:
    """A learning-rate cycle: 100 steps of warm-up to `lr`, constant, linear to zero over the last share `decay`.

    `mixing` scales the chances that its captions mix things up; a share `spoilt` of its pictures is spoilt.
    """

    steps: int
    lr: float
    decay: float
    mixing: float
    spoilt: float = 0.0

    def rate(self, step: int) -> float:
        """Learning rate at a step of the cycle."""
        return self.lr * min(1.0, (step + 1) / 100, (self.steps - step) / (self.decay * self.steps))


@dataclass(frozen=True)
class PretrainRecipe:
    """Everything that the weights depend on."""

    seed: int = 0
    vae_steps: int = 2000
    pictures: int = 60_000
    dropout: float = 0.12
    cycles: tuple[Cycle, ...] = (
        Cycle(7_500, 2e-3, 0.3, 1.0),
        Cycle(1_400, 1.2e-3, 1.0, 0.75),
        Cycle(1_000, 1.5e-3, 1.0, 0.55),
        Cycle(1_000, 1.5e-3, 1.0, 0.2),
        Cycle(1_500, 1.5e-3, 1.0, 0.2),
        Cycle(1_200, 1.5e-3, 0.8, 0.2, spoilt=0.5),
        Cycle(1_650, 1.5e-3, 0.8, 0.05, spoilt=0.7),
        Cycle(2_400, 1.5e-3, 0.8, 0.05, spoilt=0.6),
    )
    batch: int = 64
    ema: float = 0.998

    @property
    def steps(self) -> int:
        """Steps over all cycles."""
        return sum(cycle.steps for cycle in self.cycles)

    def at(self, step: int) -> tuple[Cycle, int]:
        """The cycle of a step, and which of its steps it is."""
        for cycle in self.cycles:
            if step < cycle.steps:
                return cycle, step
            step -= cycle.steps
        raise ValueError(f"the recipe has {self.steps} steps")


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
class NoisedBatch:
    """Noised latents `x` `(B, 16, 8, 8)`, times `t` `(B,)`, target velocities, caption rows."""

    x: Tensor
    t: Tensor
    target: Tensor
    rows: Tensor

    def to(self, device: torch.device) -> NoisedBatch:
        """The same batch on `device`."""
        return NoisedBatch(self.x.to(device), self.t.to(device), self.target.to(device), self.rows)


def draw_batch(recipe: PretrainRecipe, latents: Tensor, step: int, empty: int) -> NoisedBatch:
    """The batch of a step; depends on the seed and the step only. Row `empty` is the empty caption."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    pick = torch.randint(len(latents), (recipe.batch,), generator=generator)
    x0 = latents[pick].float()
    noise = torch.randn(x0.shape, generator=generator)
    t = torch.sigmoid(0.8 + torch.randn(recipe.batch, generator=generator))
    dropped = torch.rand(recipe.batch, generator=generator) < recipe.dropout
    part = t[:, None, None, None]
    return NoisedBatch((1 - part) * x0 + part * noise, t, noise - x0, pick.masked_fill(dropped, empty))


def make_latents(recipe: PretrainRecipe, vae: AutoencoderKL, work: Path) -> dict[float, Tensor]:
    """Latents of the pictures for each share of spoilt ones; folds their scale into `vae`."""
    shares = sorted({cycle.spoilt for cycle in recipe.cycles})
    latent_sets = []
    for share in shares:
        pictures = make_pictures(work / f"pictures-{share}.npy", recipe.pictures, recipe.seed, share)
        latent_sets.append(encode_all(vae, pictures, work / f"latents-{share}.npy"))
    return {share: torch.from_numpy(x) for share, x in zip(shares, fold_scale(vae, latent_sets), strict=True)}


def train_denoiser(recipe: PretrainRecipe, latents: Mapping[float, Tensor], work: Path) -> TinyModel:
    """Flow matching from a seed; returns the model with its averaged weights."""
    torch.manual_seed(recipe.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = TinyModel(work).to(device)
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.ema)
    )
    optimizers = make_optimizers(model, recipe.cycles[0].lr)
    captions = {c.mixing: make_captions(recipe.pictures, recipe.seed, c.mixing) for c in recipe.cycles}
    unique = sorted({"", *(text for texts in captions.values() for text in texts)})
    tokens = model.tokenize(unique)
    index = {text: k for k, text in enumerate(unique)}
    rows = {mixing: torch.tensor([index[text] for text in [*texts, ""]]) for mixing, texts in captions.items()}
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
        cycle, _ = recipe.at(step)
        batch = draw_batch(recipe, latents[cycle.spoilt], step, recipe.pictures)
        chosen = tokens[rows[cycle.mixing][batch.rows]]
        total += take_step(recipe, step, model, compiled, optimizers, batch.to(device), chosen.to(device))
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


def take_step(
    recipe: PretrainRecipe,
    step: int,
    model: TinyModel,
    compiled: Callable[..., Tensor],
    optimizers: list[torch.optim.Optimizer],
    batch: NoisedBatch,
    tokens: Tokens,
) -> float:
    """One step of all optimizers on a batch with its captions' tokens; returns the loss."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            cycle, within = recipe.at(step)
            group["lr"] = cycle.rate(within)
        optimizer.zero_grad()
    # On a CPU plain attention and fp32: the fused backward is slow for so few tokens, and so is bf16 without AMX.
    if batch.x.is_cuda:
        with torch.autocast("cuda", torch.bfloat16):
            velocity = compiled(batch.x, batch.t, tokens)
    else:
        with sdpa_kernel(SDPBackend.MATH):
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
    recipe = PretrainRecipe()
    args.work.mkdir(parents=True, exist_ok=True)
    plain = make_pictures(args.work / "vae_pictures.npy", 6000, recipe.seed + 7, 0.0)
    vae = train_vae(plain, args.work, recipe.vae_steps, recipe.seed)
    model = train_denoiser(recipe, make_latents(recipe, vae, args.work), args.work)
    export(model.cpu(), vae, args.out)
    log.info("wrote %s; score it with `opdbench eval --model %s`", args.out, args.out)


if __name__ == "__main__":
    main()
