"""CLIP as a judge of pairs: cosine of picture and text, and heads on the picture alone.

Always for each pair by itself, where codes for RL take the diagonal of a batch's matrix, and in fp32.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from PIL.Image import Image

from opdbench.evaluators.loading.pictures import Look, Pixels, cropped, read_look
from opdbench.evaluators.loading.weights import default_device, fetch, load_strictly, pretrained, processor, read_state

if TYPE_CHECKING:
    from torch import Tensor, nn

HEAD = (1024, 128, 64, 16, 1)
HEAD_LAYERS = (0, 2, 4, 6, 7)
"""Widths of the aesthetic and of ImageReward's head, linear without activations, and where its layers lie
between the dropouts of training."""

VISION_HEAD, TEXT_HEAD = 80, 64
"""Width of an attention head in open_clip's ViT-H-14."""


class PairScorer(Protocol):
    """Raw scores of pairs, and which texts are longer than it reads."""

    def values(self, images: Sequence[Image], texts: Sequence[str]) -> list[float]:
        """One score per pair."""
        ...

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Whether the end of a text is not read."""
        ...


def features(output: Any) -> Tensor:
    """Projected features `(B, D)`: transformers returns the tensor before 5 and an output object since."""
    vectors: Tensor = getattr(output, "pooler_output", output)
    return vectors


@dataclass(frozen=True)
class Clip:
    """Cosine of a pair, times `exp(logit_scale)` if `scaled`."""

    model: Any
    tokenizer: Any
    look: Look
    pixels: Pixels
    scaled: bool

    @property
    def context(self) -> int:
        """Tokens that the text encoder reads."""
        return int(self.model.config.text_config.max_position_embeddings)

    def image_features(self, images: Sequence[Image]) -> Tensor:
        """Unit vectors `(B, D)`."""
        from torch.nn.functional import normalize

        pixels = self.pixels(images, self.look).to(self.model.device)
        return normalize(features(self.model.get_image_features(pixels)), dim=-1)

    def values(self, images: Sequence[Image], texts: Sequence[str]) -> list[float]:
        """Scores of pairs."""
        import torch
        from torch.nn.functional import normalize

        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.context, return_tensors="pt"
        )
        with torch.inference_mode():
            text = normalize(features(self.model.get_text_features(**tokens.to(self.model.device))), dim=-1)
            cosine = (self.image_features(images) * text).sum(-1)
            scores: list[float] = (self.model.logit_scale.exp() * cosine if self.scaled else cosine).tolist()
        return scores

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Texts of more tokens than `context`."""
        return [len(ids) > self.context for ids in self.tokenizer(list(texts), verbose=False).input_ids]


@dataclass(frozen=True)
class Aesthetic:
    """LAION's predictor: a linear head on the unit vector of a picture; the text is not read."""

    clip: Clip
    head: nn.Module

    def values(self, images: Sequence[Image], texts: Sequence[str]) -> list[float]:
        """Scores of the pictures."""
        import torch

        with torch.inference_mode():
            scores: list[float] = self.head(self.clip.image_features(images)).squeeze(-1).tolist()
        return scores

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Never."""
        return [False for _ in texts]


def load_clip(what: str, source: str, prepared: str, pixels: Pixels, scaled: bool) -> Clip:
    """A transformers `CLIPModel` from `source`; tokenizer and picture statistics from `prepared`."""
    from transformers import CLIPModel, CLIPTokenizer

    model = pretrained(CLIPModel, source, what).to(default_device())
    return Clip(model, processor(CLIPTokenizer, prepared, what), read_look(what, prepared), pixels, scaled)


def make_head(width: int, state: Mapping[str, Tensor], what: str, source: str) -> nn.Module:
    """The head of widths `HEAD` from a state dict with keys `layers.<n>.weight` and `.bias`."""
    from torch import nn

    layers = [nn.Linear(a, b) for a, b in zip((width, *HEAD), HEAD, strict=False)]
    head = nn.Sequential(*layers)
    names = {f"layers.{old}.": f"{new}." for new, old in enumerate(HEAD_LAYERS)}
    load_strictly(head, rename(state, names), what, source)
    return head.eval().to(default_device())


def rename(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Keys with the first pattern that matches their beginning replaced; keys that match none stay."""
    renamed = {}
    for key, value in state.items():
        new = next((re.sub(f"^{old}", by, key) for old, by in names.items() if re.match(old, key)), key)
        renamed[new] = value
    return renamed


def load_aesthetic(what: str, source: str, head_source: str, head_file: str) -> Aesthetic:
    """CLIP and the head's file."""
    clip = load_clip(what, source, source, cropped, scaled=False)
    state = read_state(what, fetch(what, head_source, head_file))
    width = clip.model.config.projection_dim
    return Aesthetic(clip, make_head(width, state, what, head_source))


_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OPEN_CLIP = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj$": "visual_projection.weight",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection$": "text_projection.weight",
    **{rf"visual.transformer.resblocks.(\d+).{a}": rf"vision_model.encoder.layers.\1.{b}" for a, b in _BLOCK.items()},
    **{rf"transformer.resblocks.(\d+).{a}": rf"text_model.encoder.layers.\1.{b}" for a, b in _BLOCK.items()},
}
"""Names of open_clip's parameters, and of the same ones in transformers."""


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An open_clip state dict with transformers' names: projections transposed, `in_proj` parted in three."""
    converted = {}
    for key, value in rename(state, _OPEN_CLIP).items():
        block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", key)
        if block:
            tower = "vision_model" if block[1] else "text_model"
            for letter, piece in zip("qkv", value.chunk(3), strict=True):
                converted[f"{tower}.encoder.layers.{block[2]}.self_attn.{letter}_proj.{block[3]}"] = piece
        elif key in ("visual_projection.weight", "text_projection.weight"):
            converted[key] = value.T.contiguous()
        else:
            converted[key] = value
    return converted


def load_open_clip(what: str, source: str, file: str, prepared: str, pixels: Pixels) -> Clip:
    """A ViT-H-14 of open_clip as a `CLIPModel`; sizes are read off the tensors, the activation is GELU."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    state = from_open_clip(read_state(what, fetch(what, source, file)))
    tokenizer, look = processor(CLIPTokenizer, prepared, what), read_look(what, prepared)
    patch = state["vision_model.embeddings.patch_embedding.weight"]
    words, places = (state[f"text_model.embeddings.{n}_embedding.weight"] for n in ("token", "position"))

    def tower(name: str, width: int, head: int) -> dict[str, Any]:
        layers = len({key.split(".")[3] for key in state if key.startswith(f"{name}.encoder.layers.")})
        inner = state[f"{name}.encoder.layers.0.mlp.fc1.weight"].shape[0]
        return {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
                "num_attention_heads": width // head, "hidden_act": "gelu"}  # fmt: skip

    config = CLIPConfig(
        projection_dim=state["text_projection.weight"].shape[0],
        vision_config={"image_size": look.size, "patch_size": patch.shape[-1],
                       **tower("vision_model", patch.shape[0], VISION_HEAD)},
        text_config={"vocab_size": words.shape[0], "max_position_embeddings": places.shape[0],
                     "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
                     **tower("text_model", words.shape[1], TEXT_HEAD)},
    )  # fmt: skip
    model = CLIPModel(config)
    load_strictly(model, state, what, source)
    return Clip(model.eval().to(default_device()), tokenizer, look, pixels, scaled=False)
