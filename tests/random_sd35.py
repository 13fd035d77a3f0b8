"""A pipeline of Stable Diffusion 3.5-M's shapes with random weights, to measure on a GPU what its denoiser costs.

    python tests/random_sd35.py /tmp/sd35 && opdbench bench --model /tmp/sd35 --preset sd35

Denoiser and autoencoder are whole (2.24 G and 84 M parameters, in bf16 5 GB on disk); the text encoders have one layer,
and states of the real widths and lengths. Shapes are those that the model's own configuration files publish.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import (
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from opdbench.diffusion.families import CLIP_TEXT, MAX_TEXT
from opdbench.diffusion.sources import tiny_folder
from opdbench.tiny.build import build_clip, build_scheduler

DENOISER = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}  # fmt: skip
AUTOENCODER = {
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16, "sample_size": 1024,
    "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
WIDTHS = (768, 1280)
"""Of the two CLIP encoders."""


def write(folder: Path, denoiser: Mapping[str, Any] = DENOISER, autoencoder: Mapping[str, Any] = AUTOENCODER) -> None:
    """Save the pipeline; the same weights every time."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(tiny_folder(), subfolder="tokenizer", model_max_length=CLIP_TEXT)
    t5_tokenizer = T5TokenizerFast.from_pretrained(tiny_folder(), subfolder="tokenizer_3", model_max_length=MAX_TEXT)
    t5 = T5Config(vocab_size=len(t5_tokenizer), d_model=denoiser["joint_attention_dim"], d_ff=64, num_layers=1)
    StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(**denoiser).bfloat16(),
        vae=AutoencoderKL(**autoencoder),
        scheduler=build_scheduler(),
        text_encoder=build_clip(tokenizer, WIDTHS[0], 1, CLIP_TEXT),
        text_encoder_2=build_clip(tokenizer, WIDTHS[1], 1, CLIP_TEXT),
        text_encoder_3=T5EncoderModel(t5),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=t5_tokenizer,
    ).save_pretrained(folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
