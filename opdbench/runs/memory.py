"""What an update needs of a GPU, computed from a denoiser's configuration alone: no weights, nothing measured.

The denoiser is built without data (on the meta device) in bf16, and one forward of one picture with gradient says how
many operations it has and how many bytes autograd keeps for the backward pass. Both grow linearly with the pictures.
Left out are the attention's matrices of tokens by tokens, which a GPU's fused attention does not keep, the text
encoders, the autoencoder, and what a kernel needs for a moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from opdbench.diffusion import adapters
from opdbench.diffusion.adapters import Lora
from opdbench.diffusion.families import Condition
from opdbench.diffusion.sources import family_of, outline
from opdbench.recipes.config import Recipe, Stage

SCALE = 8
"""Pixels per entry of the latent of an autoencoder of SD3 or FLUX."""
PEAK, SHARE = 989e12, 0.4
"""An H100's dense bf16 operations a second as its maker states them, and the share of them that is assumed."""
BATCHES = (1, 2, 4, 8, 24, 72)
GIB = 2**30


@dataclass(frozen=True)
class Sizes:
    """Of a denoiser with an adapter.

    Attributes:
        parameters, adapted, trained: numbers of the denoiser's, of those in layers with an adapter, of the adapter's.
        flops: of the matrix products of a forward of one picture.
        kept: bytes that autograd keeps of it.
    """

    parameters: int
    adapted: int
    trained: int
    flops: float
    kept: int

    def update_bytes(self, pictures: int, passes: int, teachers: int) -> int:
        """Memory of one step of a walk with gradient.

        bf16 weights of the denoiser, and each teacher's own of the adapted layers; fp32 adapter, gradient and two
        moments; and what autograd keeps.
        """
        return 2 * (self.parameters + teachers * self.adapted) + 16 * self.trained + pictures * passes * self.kept


def sizes(source: str, lora: Lora, resolution: int, tokens: int = 0) -> Sizes:
    """The sizes of the model at `source` for pictures of `resolution` pixels and texts of `tokens` (0: the most)."""
    family, network = family_of(source), outline(source)
    parameters = sum(p.numel() for p in network.parameters())
    adapters.attach(network, lora, 0)
    trained = sum(p.numel() for p in adapters.trainable(network).values())
    adapted = sum(p.numel() for name, p in network.named_parameters() if name.endswith("base_layer.weight"))
    for parameter in network.parameters():
        parameter.data = parameter.data.bfloat16()
    config, owned, seen = network.config, {_place(p) for p in network.parameters()}, dict[int, Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        square = tensor.dim() > 2 and tensor.shape[-1] == tensor.shape[-2]
        if not square and _place(tensor) not in owned:
            seen[_place(tensor)] = tensor
        return tensor

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta", dtype=torch.bfloat16)

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        states = empty(1, tokens or family.tokens, config.joint_attention_dim)
        condition = Condition(states, empty(1, config.pooled_projection_dim))
        x = empty(1, *family.latent_shape(config, SCALE, resolution))
        family.forward(network, x, torch.empty(1, device="meta"), condition, 1.0)
    kept = sum(tensor.untyped_storage().nbytes() for tensor in seen.values())
    return Sizes(parameters, adapted, trained, float(counter.get_total_flops()), kept)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def describe(source: str, recipe: Recipe, stage: Stage, whole: int) -> Iterator[str]:
    """Lines on an update of `stage`, a recipe's last, and on the recipe of `whole` forwards."""
    net = sizes(source, Lora(stage.rank, stage.alpha, stage.targets or adapters.ATTENTION), recipe.resolution)
    single = stage.sampler.guidance == 1 or family_of(source).embeds_guidance
    passes, teachers = 1 if single else 2, len({name for _, name in stage.teachers} - {"base"})
    yield f"computed from the model's configuration, not measured: {net.parameters / 1e9:.2f} G parameters,"
    yield f"  {net.trained / 1e6:.1f} M trained, {net.flops / 1e12:.2f} TFLOP per forward; bf16 weights, and those of"
    yield f"  the adapted layers, {net.adapted / 1e9:.2f} G, {teachers} times more for the teachers"
    memory = (f"{n}: {net.update_bytes(n, passes, teachers) / GIB:.1f}" for n in BATCHES)
    yield f"  GiB of an update of {stage.name} by pictures at once: {', '.join(memory)}"
    hours = whole * net.flops / (PEAK * SHARE) / 3600
    yield f"  {hours:,.1f} GPU hours for all forwards at {SHARE:.0%} of {PEAK / 1e12:.0f} TFLOP/s (an H100's bf16)"
