"""A pipeline of Stable Diffusion 3 or FLUX behind a small interface: encode, velocity with guidance, decode."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from opdbench.diffusion import adapters
from opdbench.diffusion.adapters import Adapter, Lora
from opdbench.diffusion.compiling import compile_blocks
from opdbench.diffusion.families import Condition, Family, StableDiffusion3, blocks_of
from opdbench.diffusion.sources import TINY, family_of, load_denoiser, load_pipeline
from opdbench.diffusion.walk import Velocity
from opdbench.errors import UserError

ENCODED_BYTES = 2**30
"""Size of the cache of encoded prompts: 600 of SD3.5 at 1.7 MB each; all prompts of the tiny model."""


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Policy:
    """A denoiser with its own guidance scale.

    Classifier-free guidance is applied here and nowhere else: v = v_u + g (v_c - v_u). A scale of 1 is a single
    conditional pass. Gradient flows through both branches, as in the official code of DiffusionOPD. A denoiser that
    embeds guidance (FLUX.1-dev) takes the scale as a number instead, so that its velocity is always a single pass.
    """

    network: Any
    guidance: float
    empty: Condition
    dtype: torch.dtype
    adapter: str = ""
    """Digest of the adapter that is folded into the weights, or empty."""
    at_once: int = 0
    """Maximum pictures per forward pass; 0 is no limit."""
    family: Family = StableDiffusion3()

    @property
    def passes(self) -> int:
        """Denoiser forwards that one velocity of one picture costs."""
        return 1 if self.guidance == 1 or self.family.embeds_guidance else 2

    def parameters(self) -> list[Tensor]:
        """The trainable weights, which are those of the student's adapter."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def velocity(self, x: Tensor, t: float | Tensor, condition: Condition) -> Tensor:
        """Guided velocity, fp32 `(B, C, H, W)`.

        Args:
            x: latents `(B, C, H, W)`.
            t: time in [0, 1], a number or `(B,)`.
            condition: encoded prompts of the `B` pictures.
        """
        # Fill a number in on the device; a copy from the host would wait for the device.
        each = t if isinstance(t, Tensor) else torch.full((), t, dtype=torch.float32, device=x.device)
        times = each.float().expand(len(x))
        if not self.at_once or len(x) <= self.at_once:
            return self._forward(x, times, condition.states, condition.pooled)
        inputs = (x, times, condition.states, condition.pooled)
        shares = zip(*(tensor.split(self.at_once) for tensor in inputs), strict=True)
        # For the backward pass, checkpointing keeps only the inputs of each share.
        return torch.cat([checkpoint(self._forward, *share, use_reentrant=False) for share in shares])

    def _forward(self, x: Tensor, times: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
        if self.passes == 2:
            empty = self.empty
            x, times = torch.cat([x, x]), torch.cat([times, times])
            states = torch.cat([empty.states.expand_as(states), states])
            pooled = torch.cat([empty.pooled.expand_as(pooled), pooled])
        with self._mixed():
            condition = Condition(states, pooled)
            out = self.family.forward(self.network, x.to(self.dtype), times, condition, self.guidance).float()
        if self.passes == 1:
            return out
        without, with_text = out.chunk(2)
        return without + self.guidance * (with_text - without)

    def _mixed(self) -> AbstractContextManager[Any]:
        """Context of a forward pass; weights and inputs have `dtype`, and only other adapters need autocasts."""
        return nullcontext()

    def compile(self, mode: bool | str = True) -> None:
        """Compile the denoiser's blocks; `mode` is as in `compile_blocks`."""
        compile_blocks(blocks_of(self.family, self.network), self.empty.states.device, mode)

    def save_memory(self) -> None:
        """Keep only the inputs of the blocks for the backward pass, which then costs one more forward."""
        self.network.enable_gradient_checkpointing()

    def at(self, condition: Condition) -> Velocity:
        """The velocity field for fixed prompts, in the form that `walk` takes."""
        return lambda x, t: self.velocity(x, t, condition)


class Model:
    """A loaded pipeline, from which policies are made."""

    def __init__(self, source: str = TINY, device: str | None = None, resolution: int = 0) -> None:
        """Load `source`: `tiny`, a folder, or a hub id of a Stable Diffusion 3 or FLUX pipeline.

        Pictures are `resolution` pixels high and wide; 0 is the model's own resolution.
        """
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        # Most CPUs have no fast bf16; there the tiny model's forward takes 1.4 times as long in it.
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.source = source
        if self.device.type == "cpu":
            # For few tokens plain attention is faster than the fused one, whose backward is slow on CPUs. The switch
            # is set once per process, because it is not thread-local and two threads walk at the same time.
            torch.backends.cuda.enable_flash_sdp(False)
        self.family = family_of(source)
        pipe = load_pipeline(source, self.family)
        self.vae = pipe.vae.to(self.device, memory_format=torch.channels_last).requires_grad_(False).eval()
        self._pipe = pipe
        self._scheduler = pipe.scheduler
        self.base = pipe.transformer.to(self.device, self.dtype).requires_grad_(False).eval()
        for name in self.family.encoders:
            getattr(pipe, name).to(self.device).requires_grad_(False).eval()
        self.resolution = resolution
        self.latent_shape = self.family.latent_shape(self.base.config, pipe.vae_scale_factor, resolution)
        self._others: dict[torch.dtype, Model] = {}
        self._prepare_prompts()

    def _prepare_prompts(self) -> None:
        self.empty = self._encode("")
        size = sum(t.nbytes for t in (self.empty.states, self.empty.pooled))
        self._encoded = lru_cache(max(1, ENCODED_BYTES // size))(self._encode)

    def at(self, precision: str) -> Model:
        """The same pipeline with weights and forwards of the denoiser in `fp32` or `bf16`; "" is this model's own.

        Encoders and decoder are shared. Velocities are fp32 in any case, and so is all that is computed of them.
        """
        dtype = PRECISIONS[precision] if precision else self.dtype
        if dtype == self.dtype:
            return self
        if dtype not in self._others:
            self._others[dtype] = self._in_dtype(dtype)
        return self._others[dtype]

    def _in_dtype(self, dtype: torch.dtype) -> Model:
        other = copy.copy(self)
        other.dtype, other._others = dtype, {self.dtype: self}
        # Rounded weights do not come back, so those of more digits are read again.
        weights = load_denoiser(self.source, self.family) if dtype == torch.float32 else copy.deepcopy(self.base)
        other.base = weights.to(self.device, dtype).requires_grad_(False).eval()
        other._prepare_prompts()
        return other

    def sigmas(self, steps: int) -> list[float]:
        """The scheduler's times 1 = t_0 > ... > t_N = 0."""
        return self.family.sigmas(self._scheduler, steps, self.latent_shape)

    def encode(self, texts: Sequence[str]) -> Condition:
        """Encode prompts, each alone so that batching changes nothing; the latest are cached."""
        encoded = [self._encoded(text) for text in texts]
        return Condition(torch.cat([e.states for e in encoded]), torch.cat([e.pooled for e in encoded]))

    @torch.no_grad()
    def _encode(self, text: str) -> Condition:
        encoded = self.family.encode(self._pipe, text, self.device)
        return Condition(encoded.states.to(self.dtype), encoded.pooled.to(self.dtype))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """RGB pictures of latents `(B, C, H, W)`."""
        scaled = latents / self.vae.config.scaling_factor + self.vae.config.shift_factor
        pixels = self.vae.decode(scaled.to(self.vae.dtype), return_dict=False)[0].float()
        pixels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return [Image.fromarray(p) for p in pixels.permute(0, 2, 3, 1).cpu().numpy()]

    def _layers(self) -> Any:
        """A copy of the denoiser's layers that shares the frozen weights."""
        weights = (*self.base.parameters(), *self.base.buffers())
        return copy.deepcopy(self.base, {id(tensor): tensor for tensor in weights})

    def frozen(self, adapter: Adapter | None, guidance: float) -> Policy:
        """A policy with the adapter folded into its own weights; all other weights are shared with the base model."""
        if adapter is None:
            return self._policy(self.base, guidance)
        network = self._layers()
        adapters.fold(network, self.base, adapter)
        return self._policy(network, guidance, adapter.digest())

    def _policy(self, network: Any, guidance: float, adapter: str = "") -> Policy:
        return Policy(network, guidance, self.empty, self.dtype, adapter, family=self.family)

    def separate(self, policy: Policy) -> Policy:
        """The policy on layers of its own, so that compiling them changes nothing for others of the same weights."""
        return replace(policy, network=self._layers()) if policy.network is self.base else policy

    def student(self, lora: Lora, guidance: float, seed: int, start: Adapter | None = None) -> Policy:
        """A trainable policy: a fresh adapter, or a copy of `start`, on the base model's weights."""
        self._fits(lora, start)
        network = self._layers()
        adapters.attach(network, lora, seed)
        from opdbench.diffusion.lora_layer import fuse  # imports PEFT

        fuse(network)
        if start is not None:
            adapters.write(network, start.tensors)
        return self._policy(network, guidance)

    def _fits(self, lora: Lora, start: Adapter | None) -> None:
        if start is not None and start.lora != lora:
            raise UserError(f"the stage starts from an adapter of {start.lora}; expected the stage's own shape, {lora}")

    def move(self, policy: Policy, adapter: Adapter) -> None:
        """Change the weights of a policy that `frozen` made."""
        adapters.fold(policy.network, self.base, adapter)

    def divided(self) -> AbstractContextManager[None]:
        """Context in which a stage is trained; `ShardedModel` shards its weights there."""
        return nullcontext()
