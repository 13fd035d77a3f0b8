"""A model whose frozen weights are divided among the processes of a run (FSDP), for denoisers that fill a GPU.

`accelerate launch --use_fsdp` asks for it. While a stage is trained each process keeps its share of the weights and
gathers a block's at a time; elsewhere all have them whole. Folded weights would be copies, so every policy is an
adapter on the one network, switched by name. Gathering takes all processes, so each must walk the same number of
times: a stage's prompts are a multiple of processes times tasks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist
from diffusers import SD3Transformer2DModel
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from opdbench.diffusion import adapters
from opdbench.diffusion.adapters import Adapter, Lora
from opdbench.diffusion.model import Model, Policy
from opdbench.diffusion.sources import TINY
from opdbench.errors import UserError

STUDENT = "default"
"""Name of the adapter that is trained."""


@dataclass(frozen=True)
class Switched(Policy):
    """A policy that is the adapter `name` of a network that others use too; the bare network if empty."""

    name: str = ""

    def _forward(self, x: Tensor, times: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
        _switch(self.network, self.name)
        try:
            return super()._forward(x, times, states, pooled)
        finally:
            _switch(self.network, STUDENT)  # a parameter that asks for no gradient at the backward gets none


def _switch(network: SD3Transformer2DModel, name: str) -> None:
    known = getattr(network, "peft_config", {})
    if name in known:
        network.enable_adapters()
        network.set_adapter(name)
    elif known and not name:
        network.disable_adapters()


class ShardedModel(Model):
    """A `Model` for a team of processes."""

    def __init__(self, source: str = TINY, device: str | None = None, resolution: int = 0) -> None:
        """Load as `Model` does, then divide every block of the denoiser among the processes."""
        super().__init__(source, device, resolution)
        mesh = init_device_mesh(self.device.type, (dist.get_world_size(),))
        self._parts: list[FSDPModule] = [
            fully_shard(part, mesh=mesh) for part in (*self.base.transformer_blocks, self.base)
        ]
        self._gather()

    @contextmanager
    def divided(self) -> Iterator[None]:
        """While a stage is trained, in all processes; what ends with an error ends the run."""
        for part in self._parts:
            part.set_reshard_after_forward(True)
            part.reshard()
        yield
        self._gather()

    def _gather(self) -> None:
        for part in self._parts:
            part.set_reshard_after_forward(False)
            part.unshard()

    def frozen(self, adapter: Adapter | None, guidance: float) -> Policy:
        """A policy whose adapter is one of the network's; of the same name as its weights' digest."""
        if adapter is None:
            return Switched(self.base, guidance, self.empty, self.dtype)
        name = adapter.digest()
        self._put(name, adapter.lora, 0, adapter)
        return Switched(self.base, guidance, self.empty, self.dtype, name, name=name)

    def student(self, lora: Lora, guidance: float, seed: int, start: Adapter | None = None) -> Policy:
        """A trainable policy, in place of the one before."""
        self._fits(lora, start)
        if STUDENT in getattr(self.base, "peft_config", {}):
            self.base.delete_adapters(STUDENT)
        self._put(STUDENT, lora, seed, start)
        return Switched(self.base, guidance, self.empty, self.dtype, name=STUDENT)

    def move(self, policy: Policy, adapter: Adapter) -> None:
        """Change the weights of a policy that `frozen` made."""
        assert isinstance(policy, Switched)
        self._put(policy.name, adapter.lora, 0, adapter)

    def _put(self, name: str, lora: Lora, seed: int, adapter: Adapter | None) -> None:
        if name not in getattr(self.base, "peft_config", {}):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there are several adapters is meant
                adapters.attach(self.base, lora, seed, name)
        if adapter is not None:
            self._write(name, adapter)
        _switch(self.base, STUDENT)

    def _write(self, name: str, adapter: Adapter) -> None:
        """As `adapters.write`; reading or loading a state dictionary would divide the weights again."""
        named = self.base.named_parameters()
        places = {key.replace(f".{name}.", "."): tensor for key, tensor in named if f".{name}." in key}
        if places.keys() != set(adapter.tensors):
            raise UserError(f"adapter does not fit the model: {min(places.keys() ^ set(adapter.tensors))!r} differs")
        for key, tensor in adapter.tensors.items():
            places[key].data.copy_(tensor)
