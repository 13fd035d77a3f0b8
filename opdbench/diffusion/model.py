"""The SD3 pipeline behind one small interface: encode, velocity with guidance, decode."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache

import torch
from diffusers import SD3Transformer2DModel
from PIL import Image
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from opdbench.diffusion import adapters
from opdbench.diffusion.adapters import Adapter, Lora
from opdbench.diffusion.sources import MAX_TEXT, TINY, _load, latent_shape
from opdbench.diffusion.walk import Velocity
from opdbench.errors import UserError

ENCODED_BYTES = 2**30
"""Encoded prompts that are kept: 600 of SD3.5, where one takes 1.7 MB; all of the tiny model."""


@dataclass(frozen=True)
class Condition:
    """Encoded prompts: token states `(B, L, D)` and pooled states `(B, P)`."""

    states: Tensor
    pooled: Tensor

    def __getitem__(self, rows: Tensor | slice) -> Condition:
        return Condition(self.states[rows], self.pooled[rows])


@dataclass(frozen=True)
class Policy:
    """A denoiser with its own guidance scale.

    The only place where classifier-free guidance is applied: v = v_u + g (v_c - v_u); a scale of 1 is
    a single conditional pass. With gradient, it flows through both branches, as in the official code.
    """

    network: SD3Transformer2DModel
    guidance: float
    empty: Condition
    dtype: torch.dtype
    adapter: str = ""
    """Digest of the adapter that is folded in, if there is one."""
    at_once: int = 0
    """Most pictures that a forward takes; 0 is any number."""

    @property
    def passes(self) -> int:
        """Denoiser forwards that one velocity of one picture costs."""
        return 1 if self.guidance == 1 else 2

    def velocity(self, x: Tensor, t: float | Tensor, condition: Condition) -> Tensor:
        """Guided velocity, fp32 `(B, C, H, W)`.

        Args:
            x: latents `(B, C, H, W)`.
            t: time in [0, 1], one for all or `(B,)`.
            condition: encoded prompts of the `B` pictures.
        """
        # A number is filled in on the device, since a copy from the host would wait for it.
        each = t if isinstance(t, Tensor) else torch.full((), t, dtype=torch.float32, device=x.device)
        times = each.float().expand(len(x))
        if not self.at_once or len(x) <= self.at_once:
            return self._forward(x, times, condition.states, condition.pooled)
        parts = zip(*(part.split(self.at_once) for part in (x, times, condition.states, condition.pooled)), strict=True)
        # With gradient only what goes into a part is kept for the backward.
        return torch.cat([checkpoint(self._forward, *part, use_reentrant=False) for part in parts])

    def _forward(self, x: Tensor, times: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
        if self.passes == 2:
            empty = self.empty
            x, times = torch.cat([x, x]), torch.cat([times, times])
            states = torch.cat([empty.states.expand_as(states), states])
            pooled = torch.cat([empty.pooled.expand_as(pooled), pooled])
        mixed = nullcontext() if self.dtype == torch.float32 else torch.autocast(x.device.type, self.dtype)
        with mixed:
            out = self.network(
                hidden_states=x,
                timestep=1000 * times,
                encoder_hidden_states=states,
                pooled_projections=pooled,
                return_dict=False,
            )[0].float()
        if self.passes == 1:
            return out
        without, with_text = out.chunk(2)
        return without + self.guidance * (with_text - without)

    def save_memory(self) -> None:
        """Keep only the blocks' inputs for the backward, and walk each block again there: one forward more."""
        self.network.enable_gradient_checkpointing()

    def at(self, condition: Condition) -> Velocity:
        """The velocity field for fixed prompts, as `walk` wants it."""
        return lambda x, t: self.velocity(x, t, condition)


class Model:
    """A loaded pipeline; denoisers with adapters are made from it."""

    def __init__(self, source: str = TINY, device: str | None = None, resolution: int = 0) -> None:
        """Load `source`: `tiny`, a folder, or a hub id of a Stable Diffusion 3 pipeline.

        Pictures have sides of `resolution` pixels, the model's own if 0.
        """
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        # Most CPUs have no fast bf16: the tiny model's forward takes 1.4 times as long in it.
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.source = source
        if self.device.type == "cpu":
            # For few tokens plain attention beats the fused one, whose backward is slow on CPUs. For the whole
            # process, as the switch is not a thread's own and two threads walk at once.
            torch.backends.cuda.enable_flash_sdp(False)
        pipe = _load(source)
        self.vae = pipe.vae.to(self.device, memory_format=torch.channels_last).requires_grad_(False).eval()
        self._pipe = pipe
        self._scheduler = pipe.scheduler
        self.base = pipe.transformer.to(self.device, self.dtype).requires_grad_(False).eval()
        for encoder in (pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3):
            encoder.to(self.device).requires_grad_(False).eval()
        self.resolution = resolution
        self.latent_shape = latent_shape(self.base.config, pipe.vae_scale_factor, resolution)
        self.empty = Condition(*self._encode(""))
        size = sum(t.nbytes for t in (self.empty.states, self.empty.pooled))
        self._encoded = lru_cache(max(1, ENCODED_BYTES // size))(self._encode)

    def sigmas(self, steps: int) -> list[float]:
        """The scheduler's times 1 = t_0 > ... > t_N = 0."""
        scheduler = copy.deepcopy(self._scheduler)
        scheduler.set_timesteps(steps)
        return [float(s) for s in scheduler.sigmas]

    def encode(self, texts: Sequence[str]) -> Condition:
        """Encode prompts; each text is encoded alone, so that batching changes nothing, and the latest are kept."""
        found = [self._encoded(text) for text in texts]
        return Condition(torch.cat([s for s, _ in found]), torch.cat([p for _, p in found]))

    @torch.no_grad()
    def _encode(self, text: str) -> tuple[Tensor, Tensor]:
        states, _, pooled, _ = self._pipe.encode_prompt(
            prompt=text,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=min(self._pipe.tokenizer_3.model_max_length, MAX_TEXT),
        )
        return states.to(self.dtype), pooled.to(self.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """RGB pictures of latents `(B, C, H, W)`."""
        scaled = latents / self.vae.config.scaling_factor + self.vae.config.shift_factor
        pixels = self.vae.decode(scaled.to(self.vae.dtype), return_dict=False)[0].float()
        pixels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return [Image.fromarray(p) for p in pixels.permute(0, 2, 3, 1).cpu().numpy()]

    def _layers(self) -> SD3Transformer2DModel:
        """The denoiser's layers again, over the very same weights, which nobody changes."""
        weights = (*self.base.parameters(), *self.base.buffers())
        return copy.deepcopy(self.base, {id(tensor): tensor for tensor in weights})

    def frozen(self, adapter: Adapter | None, guidance: float) -> Policy:
        """A policy whose adapter is folded into weights of its own; all others are the base model's."""
        if adapter is None:
            return Policy(self.base, guidance, self.empty, self.dtype)
        network = self._layers()
        adapters.fold(network, self.base, adapter)
        return Policy(network, guidance, self.empty, self.dtype, adapter.digest())

    def student(self, lora: Lora, guidance: float, seed: int, start: Adapter | None = None) -> Policy:
        """A trainable policy: a fresh adapter, or `start`'s, on the base model's weights."""
        self._fits(lora, start)
        network = self._layers()
        adapters.attach(network, lora, seed)
        if start is not None:
            adapters.write(network, start.tensors)
        return Policy(network, guidance, self.empty, self.dtype)

    def _fits(self, lora: Lora, start: Adapter | None) -> None:
        if start is not None and start.lora != lora:
            raise UserError(f"the start is an adapter of {start.lora}; expected the stage's own, {lora}")

    def move(self, policy: Policy, adapter: Adapter) -> None:
        """Change the weights of a policy that `frozen` made."""
        adapters.fold(policy.network, self.base, adapter)

    def divided(self) -> AbstractContextManager[None]:
        """While a stage is trained; `ShardedModel` divides its weights then."""
        return nullcontext()
