"""The tiny autoencoder: 64x64 pictures to 16 x 8 x 8 latents and back, 0.8 M parameters."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

log = logging.getLogger(__name__)

KL_WEIGHT = 1e-3


def build_vae() -> AutoencoderKL:
    """A fresh autoencoder; normalising constants are set after training."""
    widths = (12, 24, 48, 64)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).to(memory_format=torch.channels_last)  # type: ignore[call-arg]


def to_unit(pictures: np.ndarray) -> Tensor:
    """uint8 `(B, H, W, 3)` to float `(B, 3, H, W)` in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def _loss(vae: AutoencoderKL, x: Tensor) -> tuple[Tensor, Tensor]:
    """L1 weighted towards what differs from the background, L1 on differences, small KL."""
    posterior = vae.encode(x).latent_dist
    y = vae.decode(posterior.sample()).sample
    weight = 1 + 4 * (x - x.mean((2, 3), keepdim=True)).abs().mean(1, keepdim=True).clamp(max=1)
    flat = (weight * (x - y).abs()).mean()
    edges = (x.diff(dim=2) - y.diff(dim=2)).abs().mean() + (x.diff(dim=3) - y.diff(dim=3)).abs().mean()
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return flat + edges + KL_WEIGHT * kl, kl


def train_vae(pictures: np.ndarray, out: Path, steps: int, seed: int, batch: int = 32) -> AutoencoderKL:
    """Train from a seed, resuming from `out/vae.pt` if there; log every 50 steps."""
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae = build_vae().to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    state, first = out / "vae.pt", 0
    if state.exists():
        saved = torch.load(state, weights_only=True, map_location=device)
        vae.load_state_dict(saved["vae"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    for step in range(first, steps):
        rate = 2e-3 * min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps) + 0.01)
        for group in optimizer.param_groups:
            group["lr"] = rate
        pick = np.random.default_rng((seed, step)).integers(0, len(pictures), batch)
        x = to_unit(pictures[pick]).to(device, memory_format=torch.channels_last)
        loss, kl = _loss(vae, x)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            log.info("vae step %d loss %.4f kl %.3f", step + 1, loss.item(), kl.item())
        if (step + 1) % 250 == 0 or step + 1 == steps:
            saved = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(saved, state)
    return vae.cpu()


@torch.no_grad()
def encode_all(vae: AutoencoderKL, pictures: np.ndarray, path: Path) -> np.ndarray:
    """Posterior means `(N, 16, 8, 8)` float16, made once and kept at `path`."""
    if not path.exists():
        parts = []
        for k in range(0, len(pictures), 256):
            x = to_unit(pictures[k : k + 256]).to(memory_format=torch.channels_last)
            parts.append(vae.encode(x).latent_dist.mean.half().numpy())
        partial = path.with_suffix(".partial.npy")
        np.save(partial, np.concatenate(parts))
        partial.rename(path)
    return np.load(path)


@torch.no_grad()
def fold_scale(vae: AutoencoderKL, sets: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Fold each channel's scale into the weights, so that latents have unit scale per channel.

    The pipeline knows one scaling factor for all channels; a per-channel scale commutes with the
    convolutions, so it moves into the encoder's last and the decoder's first one.

    Args:
        vae: changed in place.
        sets: latents `(N, 16, 8, 8)`; the first set's scale is taken.

    Returns:
        The sets in the new scale, shifted and scaled as the denoiser sees them, float32.
    """
    first = sets[0].astype(np.float32)
    scale = torch.from_numpy(first.std((0, 2, 3)))
    channels = len(scale)
    last = vae.encoder.conv_out
    last.weight[:channels] /= scale[:, None, None, None]
    last.bias[:channels] /= scale
    last.bias[channels:] -= 2 * scale.log()
    vae.decoder.conv_in.weight *= scale[None, :, None, None]
    factor = scale.numpy()[None, :, None, None]
    vae.register_to_config(scaling_factor=1.0, shift_factor=float((first / factor).mean()))
    return [latents.astype(np.float32) / factor - vae.config.shift_factor for latents in sets]
