"""Preference model of the tiny world: `python -m opdbench.tiny.preference --out DIR [--vae DIR]`.

A CLIP small enough to ship, with PickScore's classes and score (Kirstain et al. 2023, arXiv
2305.01569, section 4): s(x, y) = exp(logit_scale) * cos(image x, text y). Two losses over groups of
pictures and prompts (`preference_data`):

- Bradley-Terry (PickScore's eq. 2): cross-entropy of sigmoid(s_i - s_j) and sigmoid(U_i - U_j), so the
  score difference tends to the difference of the utilities U;
- contrastive over the batch, both ways, where every picture that fits a prompt counts as a positive.

Trained on content that no test prompt asks for, on rendered and on autoencoded pictures. Seeded and
logged.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # must precede torch: spinning starves the other core

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, normalize
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from opdbench.files import write_json
from opdbench.tiny.build import CONTEXT, build_clip_tokenizer
from opdbench.tiny.preference_data import StyledScene, draw_batch, draw_picture, near_miss
from opdbench.tiny.prompts import preference_prompts
from opdbench.tiny.render import render
from opdbench.tiny.scenes import SIZE

log = logging.getLogger(__name__)

HIGHEST_SCALE = 100.0
"""Of exp(logit_scale), as in CLIP."""


@dataclass(frozen=True)
class PreferenceRecipe:
    """Everything that the weights depend on, besides the autoencoder.

    Attributes:
        seed: of the initial weights and all data.
        steps, groups: optimiser steps and groups per step, of three pictures and two prompts each.
        lr, decay: peak learning rate, and the last share of the run in which it falls to zero.
        contrast: weight of the contrastive loss.
        reconstructed, plain: share of autoencoded pictures, after a first share of the run without.
    """

    seed: int = 0
    steps: int = 1000
    groups: int = 24
    lr: float = 2e-3
    decay: float = 0.5
    contrast: float = 0.5
    reconstructed: float = 0.3
    plain: float = 0.5


def to_pixels(pictures: Sequence[StyledScene]) -> Tensor:
    """Render pictures, `(B, 3, 64, 64)` in [-1, 1]."""
    pixels = np.stack([np.asarray(render(p.scene)) for p in pictures])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """Pictures `(B, 3, 64, 64)` as the autoencoder gives them back, in [-1, 1]."""
    latents = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist.mode()  # type: ignore[attr-defined]
    return vae.decode(latents).sample.clamp(-1, 1).contiguous()  # type: ignore[attr-defined]


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, jitter colours and add noise, mildly, per picture; `(B, 3, 64, 64)` in [-1, 1]."""
    count = len(x)

    def strength(channels: int = 1) -> Tensor:
        return torch.rand(count, channels, 1, 1, generator=generator)

    soft = avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    x = x + 0.8 * strength() * (soft - x)
    x = x * (0.9 + 0.2 * strength()) + 0.16 * (strength(3) - 0.5)
    return (x + 0.08 * strength() * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def preference_loss(scores: Tensor, utility: Tensor) -> Tensor:
    """Bradley-Terry within groups: every pair of a group's three pictures under its two prompts.

    Args:
        scores: `(3 groups, 2 groups)`.
        utility: same shape.
    """
    groups = len(scores) // 3
    own = torch.arange(groups)

    def differences(values: Tensor) -> Tensor:
        inside = values.view(groups, 3, groups, 2)[own, :, own]  # (groups, 3, 2)
        return torch.cat([inside[:, i] - inside[:, j] for i, j in ((0, 1), (0, 2), (1, 2))])

    return binary_cross_entropy_with_logits(differences(scores), differences(utility).sigmoid())


def contrastive_loss(scores: Tensor, match: Tensor) -> Tensor:
    """CLIP's loss with several positives: -log of the softmax mass on what fits, both ways."""
    right = scores.masked_fill(~match, -torch.inf)
    ways = [(scores.logsumexp(k) - right.logsumexp(k)).mean() for k in (0, 1)]
    return torch.stack(ways).mean()


def build_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Build a fresh CLIP: three vision layers on 8 x 8 patches, two text layers, 0.8 M parameters."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": 8,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=96, logit_scale_init_value=3.0)
    return CLIPModel(config)


def text_inputs(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> dict[str, Tensor]:
    """Token ids and mask, `(B, CONTEXT)` each."""
    settings = {"padding": "max_length", "max_length": CONTEXT, "truncation": True, "return_tensors": "pt"}
    return dict(tokenizer(list(texts), **settings))


def all_scores(model: CLIPModel, x: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """Scores of all pictures `x` `(B, 3, 64, 64)` in [-1, 1] under all texts, `(B, texts)`."""
    # Plain attention: the fused backward is slow for so few tokens on a CPU.
    with sdpa_kernel(SDPBackend.MATH):
        image = model.visual_projection(model.vision_model(x).pooler_output)
        text = model.text_projection(model.text_model(**inputs).pooler_output)
    return model.logit_scale.exp() * normalize(image, dim=-1) @ normalize(text, dim=-1).T


def make_optimizers(model: CLIPModel, recipe: PreferenceRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for everything else."""
    named = dict(model.named_parameters())
    blocks = [p for k, p in named.items() if "encoder.layers" in k and p.ndim == 2]
    rest = [p for k, p in named.items() if not ("encoder.layers" in k and p.ndim == 2)]
    muon = torch.optim.Muon(blocks, lr=recipe.lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.0)]


def learning_rate(recipe: PreferenceRecipe, step: int) -> float:
    """Warm-up over 50 steps, constant, linear to zero over the last `decay` of the run."""
    left = (recipe.steps - step) / (recipe.decay * recipe.steps)
    return recipe.lr * min(1.0, (step + 1) / 50, left)


def train(recipe: PreferenceRecipe, tokenizer: CLIPTokenizer, vae: AutoencoderKL | None) -> CLIPModel:
    """Train from a seed; log every 50 steps."""
    torch.manual_seed(recipe.seed)
    model = build_model(tokenizer)
    optimizers = make_optimizers(model, recipe)
    start = time.perf_counter()
    for step in range(recipe.steps):
        batch = draw_batch(recipe.groups, Random(f"preference {recipe.seed} {step}"))
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        x = to_pixels(batch.pictures)
        if vae is not None and step >= recipe.plain * recipe.steps:
            pick = torch.rand(len(x), generator=generator) < recipe.reconstructed
            x[pick] = reconstruct(vae, x[pick])
        scores = all_scores(model, augment(x, generator), text_inputs(tokenizer, batch.texts))
        preference, contrast = preference_loss(scores, batch.utility), contrastive_loss(scores, batch.fits)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, step)
            optimizer.zero_grad()
        (preference + recipe.contrast * contrast).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(HIGHEST_SCALE))
        if (step + 1) % 50 == 0 or step + 1 == recipe.steps:
            seconds = time.perf_counter() - start
            values = (step + 1, preference.item(), contrast.item(), model.logit_scale.exp().item(), seconds)
            log.info("step %d preference %.4f contrast %.4f scale %.1f, %.0f s", *values)
    return model.eval()


@torch.no_grad()
def rank_pairs(model: CLIPModel, tokenizer: CLIPTokenizer, vae: AutoencoderKL | None, pairs: int) -> dict[str, float]:
    """Share of pairs of which the better picture scores higher, for the test prompts in turn.

    Args:
        model: the preference model, fp32.
        tokenizer: its tokenizer.
        vae: judge pictures after a pass through this autoencoder.
        pairs: number of pairs of each sort.

    Returns:
        `right`: a picture of the prompt against a near miss, both of random style; `big`: bigness 0.8
        against 0.2, both of the prompt; `margin_right`, `margin_big`: mean score differences.
    """
    prompts, rng = preference_prompts("test"), Random("preference pairs")
    rows = []
    for k in range(pairs):
        prompt = prompts[k % len(prompts)]
        wrong = near_miss(prompt.spec, rng, train=False)
        pictures = [draw_picture(spec, rng) for spec in (prompt.spec, wrong)]
        pictures += [draw_picture(prompt.spec, rng, bigness) for bigness in (0.8, 0.2)]
        x = to_pixels(pictures)
        x = x if vae is None else reconstruct(vae, x)
        rows.append(all_scores(model, x, text_inputs(tokenizer, [prompt.text]))[:, 0])
    scores = torch.stack(rows)
    margins = {"right": scores[:, 0] - scores[:, 1], "big": scores[:, 2] - scores[:, 3]}
    shares = {name: (margin > 0).float().mean().item() for name, margin in margins.items()}
    return shares | {f"margin_{name}": margin.mean().item() for name, margin in margins.items()}


def save(model: CLIPModel, folder: Path) -> None:
    """Write what `CLIPModel` and `CLIPProcessor` load, weights as fp16."""
    build_clip_tokenizer(folder)
    model.half().save_pretrained(folder)
    sides = {"height": SIZE, "width": SIZE}
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": sides,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    write_json(folder / "preprocessor_config.json", settings)
    (folder / "__init__.py").touch()


def main() -> None:
    """Train, save and log the share of test pairs that are ranked as people would."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished model")
    parser.add_argument("--vae", type=Path, help="folder of an AutoencoderKL to pass some pictures through")
    parser.add_argument("--steps", type=int, default=PreferenceRecipe.steps, help="optimiser steps")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    vae = AutoencoderKL.from_pretrained(args.vae).eval() if args.vae else None
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = build_clip_tokenizer(Path(folder))
    save(train(PreferenceRecipe(steps=args.steps), tokenizer, vae), args.out)
    model = CLIPModel.from_pretrained(args.out, dtype=torch.float32)
    log.info("test pairs, rendered: %s", rank_pairs(model, tokenizer, None, 512))
    if vae is not None:
        log.info("test pairs, reconstructed: %s", rank_pairs(model, tokenizer, vae, 512))


if __name__ == "__main__":
    main()
