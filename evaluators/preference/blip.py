"""ImageReward v1.0 (Xu et al. 2023, arXiv 2304.05977): BLIP-large and a linear head, by transformers' classes.

The text's first token, after a BERT that attends to the picture's patches, goes through five linear layers;
the score is (x - m) / s with the authors' constants, about N(0, 1) on their data. The text ends after 35
tokens. Pairs are scored each by itself; the package's `inference_rank` mixes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from opdbench.evaluators.loading.pictures import Look, cropped
from opdbench.evaluators.loading.weights import default_device, fetch, load_strictly, processor, read_state
from opdbench.evaluators.preference.clip import make_head, rename
from opdbench.files import read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS, TEXT_CONFIG = "ImageReward.pt", "med_config.json"
CENTRE, SPREAD = 0.16717362830052426, 1.0333394966054072
CONTEXT = 35
HEAD_WIDTH = 64
"""Width of an attention head of the picture's transformer."""

_VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    r"blocks.(\d+).norm1": r"encoder.layers.\1.layer_norm1",
    r"blocks.(\d+).norm2": r"encoder.layers.\1.layer_norm2",
    r"blocks.(\d+).attn.qkv": r"encoder.layers.\1.self_attn.qkv",
    r"blocks.(\d+).attn.proj": r"encoder.layers.\1.self_attn.projection",
    r"blocks.(\d+).mlp": r"encoder.layers.\1.mlp",
    "norm": "post_layernorm",
}
"""The checkpoint's names of the picture's transformer, and transformers'; those of the text are the same."""


@dataclass(frozen=True)
class ImageReward:
    """Scores of pairs by both towers and the head."""

    vision: Any
    text: Any
    head: nn.Module
    tokenizer: Any
    look: Look

    def values(self, images: Sequence[Image], texts: Sequence[str]) -> list[float]:
        """One score per pair."""
        import torch

        device = next(self.head.parameters()).device
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt"
        ).to(device)
        with torch.inference_mode():
            patches = self.vision(cropped(images, self.look).to(device)).last_hidden_state
            read = self.text(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, encoder_hidden_states=patches
            ).last_hidden_state[:, 0]
            scores: list[float] = ((self.head(read).squeeze(-1) - CENTRE) / SPREAD).tolist()
        return scores

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Texts of more than 35 tokens."""
        return [len(ids) > CONTEXT for ids in self.tokenizer(list(texts), verbose=False).input_ids]


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def load_imagereward(what: str, source: str, tokenizer: str) -> ImageReward:
    """Both towers and the head from the authors' checkpoint; the picture's sizes are read off its tensors."""
    from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    state = read_state(what, fetch(what, source, WEIGHTS))
    raw = read_json(fetch(what, source, TEXT_CONFIG))
    seen = rename(_below(state, "blip.visual_encoder."), _VISION)
    read = _below(state, "blip.text_encoder.")
    patch, positions = seen["embeddings.patch_embedding.weight"], seen["embeddings.position_embedding"]
    width, side = patch.shape[0], patch.shape[-1] * round((positions.shape[1] - 1) ** 0.5)
    vision = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=width,
            intermediate_size=seen["encoder.layers.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=len({k.split(".")[2] for k in seen if k.startswith("encoder.layers.")}),
            num_attention_heads=width // HEAD_WIDTH,
            image_size=side,
            patch_size=patch.shape[-1],
            layer_norm_eps=1e-6,
        )
    )
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "max_position_embeddings", "layer_norm_eps", "pad_token_id", "hidden_act")  # fmt: skip
    config = BlipTextConfig(**{k: raw[k] for k in sizes}, encoder_hidden_size=width, is_decoder=True)
    text = BlipTextModel(config, add_pooling_layer=False)
    for module, own in ((vision, seen), (text, read)):
        load_strictly(module, own, what, source)
        module.eval().to(default_device())
    head = make_head(config.hidden_size, _below(state, "mlp."), what, source)
    return ImageReward(vision, text, head, processor(BertTokenizer, tokenizer, what), Look(side))
