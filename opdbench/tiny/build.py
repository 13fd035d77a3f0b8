"""Parts of the tiny pipeline before training: tokenizers, text encoders, denoiser, scheduler."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from opdbench.tiny.scenes import COLORS, LETTERS, NUMBERS, PLURALS, RELATIONS, SHAPES

CONTEXT = 14
"""Tokens per text encoder; the longest prompt of the grammar takes 13."""

WIDTH, LAYERS = 128, 6

_GRAMMAR = "a an the photo picture drawing image poster sign word text of with that says and showing next to in on"
WORDS = sorted(
    {*_GRAMMAR.split(), *SHAPES, *PLURALS.values(), *COLORS, *NUMBERS.values()}
    | {word for relation in RELATIONS for word in relation.split()}
)


def _byte_symbols() -> list[str]:
    """CLIP's 256 printable stand-ins for bytes, in its own order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + k) for k in range(len(others))]


def _merges(word: str) -> list[tuple[str, str]]:
    """Merges that build `word` outwards from its first vowel."""
    symbols = [*word[:-1], word[-1] + "</w>"]
    at = next(k for k, c in enumerate(word) if c in "aeiou")
    piece, pairs = symbols[at], []
    for right in symbols[at + 1 :]:
        pairs.append((piece, right))
        piece += right
    for left in reversed(symbols[:at]):
        pairs.append((left, piece))
        piece = left + piece
    return pairs


def build_clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer in which every grammar word is one token and other letters stay single."""
    merges = list(dict.fromkeys(p for w in sorted(WORDS, key=len, reverse=True) for p in _merges(w)))
    symbols = _byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(p) for p in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: k for k, t in enumerate(tokens)}))
    lines = ["#version: 0.2", *(" ".join(p) for p in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder, model_max_length=CONTEXT)


def build_t5_tokenizer() -> T5TokenizerFast:
    """A Unigram tokenizer with the grammar's words and single characters."""
    singles = sorted({*map(chr, range(33, 127))} | set(LETTERS))
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{w}", -1.0) for w in WORDS] + [('▁"', -2.0), ("▁", -6.0)]
    pieces += [(c, -5.0 if c in LETTERS or c == '"' else -8.0) for c in singles]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=CONTEXT)


def build_clip(
    tokenizer: CLIPTokenizer, width: int = WIDTH // 2, layers: int = 2, context: int = CONTEXT
) -> CLIPTextModelWithProjection:
    """A CLIP text encoder with random weights."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 4,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def build_t5(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    """A two-layer T5 encoder as wide as the denoiser."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=32,
        d_ff=WIDTH * 2,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config)


def build_transformer() -> SD3Transformer2DModel:
    """The denoiser: 8 x 8 latents of 16 channels, patch 2, so 16 picture tokens."""
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=LAYERS,
        attention_head_dim=32,
        num_attention_heads=WIDTH // 32,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=4,
        qk_norm="rms_norm",
    )


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """SD3's scheduler with its shift of 3."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


@dataclass
class Tokens:
    """Token ids of captions: `clip` and `t5`, both `(N, CONTEXT)`."""

    clip: Tensor
    t5: Tensor

    def __getitem__(self, rows: Tensor) -> Tokens:
        return Tokens(self.clip[rows], self.t5[rows])

    def to(self, device: torch.device) -> Tokens:
        """The same ids on `device`."""
        return Tokens(self.clip.to(device), self.t5.to(device))


class TinyModel(nn.Module):
    """The trained parts together: two CLIP encoders, T5 and the denoiser.

    `encode` does what `StableDiffusion3Pipeline.encode_prompt` does, with gradient.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.clip_tokenizer = build_clip_tokenizer(folder / "tokenizer")
        self.t5_tokenizer = build_t5_tokenizer()
        self.clip_1 = build_clip(self.clip_tokenizer)
        self.clip_2 = build_clip(self.clip_tokenizer)
        self.t5 = build_t5(self.t5_tokenizer)
        self.transformer = build_transformer()

    def tokenize(self, texts: list[str]) -> Tokens:
        """Token ids, padded and cut to `CONTEXT`."""
        settings = {
            "padding": "max_length",
            "max_length": CONTEXT,
            "truncation": True,
            "return_tensors": "pt",
        }
        return Tokens(
            self.clip_tokenizer(texts, **settings).input_ids,
            self.t5_tokenizer(texts, **settings).input_ids,
        )

    def encode(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Token states `(B, 2 * CONTEXT, WIDTH)` and pooled states `(B, WIDTH)`."""
        outputs = [m(tokens.clip, output_hidden_states=True) for m in (self.clip_1, self.clip_2)]
        clip = torch.cat([o.hidden_states[-2] for o in outputs], -1)
        pooled = torch.cat([o.text_embeds for o in outputs], -1)
        return torch.cat([clip, self.t5(tokens.t5)[0]], 1), pooled

    def forward(self, x: Tensor, t: Tensor, tokens: Tokens) -> Tensor:
        """Velocity at `x` `(B, 16, 8, 8)` and time `t` `(B,)` in [0, 1]."""
        states, pooled = self.encode(tokens)
        return self.transformer(
            hidden_states=x, timestep=1000 * t, encoder_hidden_states=states, pooled_projections=pooled
        ).sample
