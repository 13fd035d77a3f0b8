"""What Stable Diffusion 3 and FLUX do in different ways: text, times, and the call of the denoiser.

Walks, losses, adapters and judges see latents `(B, C, H, W)`, a `Condition` and a velocity, whatever the family. The
layers that a LoRA adapts have the same names in both families.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from opdbench.errors import UserError

CLIP_TEXT, MAX_TEXT = 77, 128
"""Tokens of CLIP, and the maximum of T5, as in the official code; a tokenizer may set fewer."""
CELL = 2
"""Side of the square of latents that FLUX packs into one token."""


@dataclass(frozen=True)
class Condition:
    """Encoded prompts: token states `(B, L, D)` and pooled states `(B, P)`."""

    states: Tensor
    pooled: Tensor

    def __getitem__(self, rows: Tensor | slice) -> Condition:
        return Condition(self.states[rows], self.pooled[rows])


class Family(Protocol):
    """A kind of pipeline that opdbench trains.

    Attributes:
        pipeline, denoiser: names of classes of diffusers, which is not imported until one of them is loaded.
        encoders: names of the pipeline's text encoders.
        stacks: names of the denoiser's lists of blocks.
        tokens: text tokens of a condition, at most.
    """

    pipeline: ClassVar[str]
    denoiser: ClassVar[str]
    encoders: ClassVar[tuple[str, ...]]
    stacks: ClassVar[tuple[str, ...]]
    tokens: ClassVar[int]

    @property
    def embeds_guidance(self) -> bool:
        """Whether the denoiser takes the guidance scale as a number, so that a guided velocity is one forward.

        Otherwise guidance is classifier-free and doubles the forwards.
        """
        ...

    def latent_shape(self, config: Any, scale: int, resolution: int) -> tuple[int, int, int]:
        """Shape `(C, H, W)` of the latents of square pictures.

        Args:
            config: the denoiser's configuration.
            scale: pixels per entry of the latent.
            resolution: height and width in pixels; 0 is the model's own.

        Raises:
            UserError: the denoiser cannot make pictures of that size.
        """
        ...

    def sigmas(self, scheduler: Any, steps: int, shape: tuple[int, int, int]) -> list[float]:
        """The scheduler's times 1 = t_0 > ... > t_N = 0 for latents of `shape`."""
        ...

    def encode(self, pipe: Any, text: str, device: torch.device) -> Condition:
        """One encoded prompt."""
        ...

    def forward(self, network: Any, x: Tensor, times: Tensor, condition: Condition, guidance: float) -> Tensor:
        """The denoiser's velocity `(B, C, H, W)`.

        Args:
            network: the denoiser.
            x: latents `(B, C, H, W)`.
            times: `(B,)` in [0, 1].
            condition: encoded prompts of the `B` pictures.
            guidance: scale, read only where `embeds_guidance` is true.
        """
        ...


@dataclass(frozen=True)
class StableDiffusion3:
    """Stable Diffusion 3 and 3.5: classifier-free guidance, latents as they are."""

    pipeline: ClassVar[str] = "StableDiffusion3Pipeline"
    denoiser: ClassVar[str] = "SD3Transformer2DModel"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2", "text_encoder_3")
    stacks: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    tokens: ClassVar[int] = CLIP_TEXT + MAX_TEXT
    embeds_guidance: bool = False

    def latent_shape(self, config: Any, scale: int, resolution: int) -> tuple[int, int, int]:
        """As in `Family`. SD3.5-M's own resolution is 1024; the papers use 512."""
        side, most = resolution // scale or config.sample_size, config.pos_embed_max_size * config.patch_size
        if resolution % (scale * config.patch_size) or side > most:
            unit = scale * config.patch_size
            raise UserError(f"resolution is {resolution}; expected a multiple of {unit}, at most {most * scale}")
        return config.in_channels, side, side

    def sigmas(self, scheduler: Any, steps: int, shape: tuple[int, int, int]) -> list[float]:
        """As in `Family`."""
        scheduler = copy.deepcopy(scheduler)
        scheduler.set_timesteps(steps)
        return [float(sigma) for sigma in scheduler.sigmas]

    def encode(self, pipe: Any, text: str, device: torch.device) -> Condition:
        """As in `Family`."""
        states, _, pooled, _ = pipe.encode_prompt(
            prompt=text,
            prompt_2=None,
            prompt_3=None,
            device=device,
            do_classifier_free_guidance=False,
            max_sequence_length=min(pipe.tokenizer_3.model_max_length, MAX_TEXT),
        )
        return Condition(states, pooled)

    def forward(self, network: Any, x: Tensor, times: Tensor, condition: Condition, guidance: float) -> Tensor:
        """As in `Family`."""
        velocity: Tensor = network(
            hidden_states=x,
            timestep=1000 * times,
            encoder_hidden_states=condition.states,
            pooled_projections=condition.pooled,
            return_dict=False,
        )[0]
        return velocity


@dataclass(frozen=True)
class Flux:
    """FLUX.1: each square of `CELL` x `CELL` latents is one token.

    FLUX.1-dev takes the guidance scale as a number that it was distilled with; a scale of 1 is then a value like any
    other. FLUX.1-schnell takes none, and a scale other than 1 is classifier-free guidance, which diffusers calls
    `true_cfg_scale`.
    """

    pipeline: ClassVar[str] = "FluxPipeline"
    denoiser: ClassVar[str] = "FluxTransformer2DModel"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    stacks: ClassVar[tuple[str, ...]] = ("transformer_blocks", "single_transformer_blocks")
    tokens: ClassVar[int] = MAX_TEXT
    own_side: ClassVar[int] = 128
    embeds_guidance: bool = True

    def latent_shape(self, config: Any, scale: int, resolution: int) -> tuple[int, int, int]:
        """As in `Family`. The own side is diffusers' default, 128 latents; positions have no upper limit."""
        unit = scale * CELL
        if resolution % unit:
            raise UserError(f"resolution is {resolution}; expected a multiple of {unit}")
        side = resolution // scale or self.own_side
        return config.in_channels // CELL**2, side, side

    def sigmas(self, scheduler: Any, steps: int, shape: tuple[int, int, int]) -> list[float]:
        """As in `Family`: equal steps, shifted more for larger pictures if the scheduler says so."""
        scheduler, settings = copy.deepcopy(scheduler), scheduler.config
        tokens = shape[1] * shape[2] // CELL**2
        low, high = settings.get("base_image_seq_len", 256), settings.get("max_image_seq_len", 4096)
        first, last = settings.get("base_shift", 0.5), settings.get("max_shift", 1.15)
        slope = (last - first) / (high - low)
        shift = tokens * slope + (first - slope * low)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift)
        return [float(sigma) for sigma in scheduler.sigmas]

    def encode(self, pipe: Any, text: str, device: torch.device) -> Condition:
        """As in `Family`: T5's states, and CLIP's pooled state."""
        most = min(pipe.tokenizer_2.model_max_length, MAX_TEXT)
        states, pooled, _ = pipe.encode_prompt(prompt=text, prompt_2=None, device=device, max_sequence_length=most)
        return Condition(states, pooled)

    def forward(self, network: Any, x: Tensor, times: Tensor, condition: Condition, guidance: float) -> Tensor:
        """As in `Family`; the denoiser multiplies time and guidance by 1,000 itself."""
        _, _, height, width = x.shape
        rows, columns = (torch.arange(side // CELL, device=x.device).float() for side in (height, width))
        scale = torch.full((), guidance, device=x.device).expand(len(x)) if self.embeds_guidance else None
        tokens: Tensor = network(
            hidden_states=pack(x),
            timestep=times,
            guidance=scale,
            encoder_hidden_states=condition.states,
            pooled_projections=condition.pooled,
            txt_ids=rows.new_zeros(condition.states.shape[1], 3),
            img_ids=torch.cartesian_prod(rows.new_zeros(1), rows, columns),
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)


def blocks_of(family: Family, network: Any) -> list[Any]:
    """The blocks of a denoiser, in order."""
    return [block for stack in family.stacks for block in getattr(network, stack)]


def pack(x: Tensor) -> Tensor:
    """Latents `(B, C, H, W)` as tokens `(B, H/2 W/2, 4 C)`, a square of `CELL` x `CELL` latents each."""
    count, channels, height, width = x.shape
    cells = x.view(count, channels, height // CELL, CELL, width // CELL, CELL).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(count, height * width // CELL**2, channels * CELL**2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`."""
    count, _, size = tokens.shape
    cells = tokens.view(count, height // CELL, width // CELL, size // CELL**2, CELL, CELL).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(count, size // CELL**2, height, width)


FAMILIES: Mapping[str, type[StableDiffusion3] | type[Flux]] = {kind.pipeline: kind for kind in (StableDiffusion3, Flux)}
"""By name of the pipeline's class."""


def of_denoiser(config: Mapping[str, Any]) -> Family | None:
    """The family of a denoiser's configuration; None for others."""
    if config.get("_class_name") == StableDiffusion3.denoiser:
        return StableDiffusion3()
    if config.get("_class_name") == Flux.denoiser:
        return Flux(bool(config.get("guidance_embeds")))
    return None
