"""A model whose frozen weights are sharded over the processes of a run (FSDP), for denoisers that fill a GPU.

`accelerate launch --use_fsdp` selects it. While a stage is trained, each process keeps its shard of the weights and
gathers those of one block at a time; otherwise every process holds all weights. Folded weights would be copies, so
each policy is an adapter of the same network and is switched on by name. Gathering involves all processes, so they
must walk equally often: the prompts of a stage are a multiple of processes times tasks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from opdbench.diffusion import adapters
from opdbench.diffusion.adapters import Adapter, Lora
from opdbench.diffusion.families import blocks_of
from opdbench.diffusion.model import Model, Policy
from opdbench.diffusion.sources import TINY
from opdbench.errors import UserError

STUDENT = "default"
"""Name of the trained adapter."""


@dataclass(frozen=True)
class Switched(Policy):
    """A policy that is the adapter `name` of a shared network, or the network without adapter if `name` is empty."""

    name: str = ""

    def _mixed(self) -> AbstractContextManager[Any]:
        return (
            nullcontext() if self.dtype == torch.float32 else torch.autocast(self.empty.states.device.type, self.dtype)
        )

    def _forward(self, x: Tensor, times: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
        _switch(self.network, self.name)
        try:
            return super()._forward(x, times, states, pooled)
        finally:
            _switch(self.network, STUDENT)  # autograd skips parameters that need no gradient at the backward pass


def _switch(network: Any, name: str) -> None:
    known = getattr(network, "peft_config", {})
    if name in known:
        network.enable_adapters()
        network.set_adapter(name)
    elif known and not name:
        network.disable_adapters()


class ShardedModel(Model):
    """A `Model` whose denoiser is sharded over a team of processes."""

    def __init__(self, source: str = TINY, device: str | None = None, resolution: int = 0) -> None:
        """Load as `Model` does, then shard every block of the denoiser over the processes."""
        super().__init__(source, device, resolution)
        mesh = init_device_mesh(self.device.type, (dist.get_world_size(),))
        modules = (*blocks_of(self.family, self.base), self.base)
        self._shards: list[FSDPModule] = [fully_shard(module, mesh=mesh) for module in modules]
        self._gather()

    @contextmanager
    def divided(self) -> Iterator[None]:
        """Keep the weights sharded while a stage is trained; an error inside ends the run."""
        for module in self._shards:
            module.set_reshard_after_forward(True)
            module.reshard()
        yield
        self._gather()

    def _gather(self) -> None:
        for module in self._shards:
            module.set_reshard_after_forward(False)
            module.unshard()

    def frozen(self, adapter: Adapter | None, guidance: float) -> Policy:
        """A policy whose adapter is added to the network under the digest of its weights."""
        if adapter is None:
            return self._switched("", guidance)
        name = adapter.digest()
        self._put(name, adapter.lora, 0, adapter)
        return self._switched(name, guidance, name)

    def _switched(self, name: str, guidance: float, adapter: str = "") -> Switched:
        return Switched(self.base, guidance, self.empty, self.dtype, adapter, family=self.family, name=name)

    def separate(self, policy: Policy) -> Policy:
        """The policy as it is: all share one network."""
        return policy

    def _in_dtype(self, dtype: torch.dtype) -> Model:
        raise UserError(f"precision is set to {dtype}; expected none with FSDP, which shards weights of {self.dtype}")

    def student(self, lora: Lora, guidance: float, seed: int, start: Adapter | None = None) -> Policy:
        """A trainable policy; it replaces the previous student."""
        self._fits(lora, start)
        if STUDENT in getattr(self.base, "peft_config", {}):
            self.base.delete_adapters(STUDENT)
        self._put(STUDENT, lora, seed, start)
        return self._switched(STUDENT, guidance)

    def move(self, policy: Policy, adapter: Adapter) -> None:
        """Change the weights of a policy that `frozen` made."""
        assert isinstance(policy, Switched)
        self._put(policy.name, adapter.lora, 0, adapter)

    def _put(self, name: str, lora: Lora, seed: int, adapter: Adapter | None) -> None:
        if name not in getattr(self.base, "peft_config", {}):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT warns of a second adapter, which is intended
                adapters.attach(self.base, lora, seed, name)
        if adapter is not None:
            self._write(name, adapter)
        _switch(self.base, STUDENT)

    def _write(self, name: str, adapter: Adapter) -> None:
        """Write as `adapters.write` does, without a state dictionary, which would shard the weights again."""
        named = self.base.named_parameters()
        own = {key.replace(f".{name}.", "."): tensor for key, tensor in named if f".{name}." in key}
        if own.keys() != set(adapter.tensors):
            raise UserError(f"adapter does not fit the model: {min(own.keys() ^ set(adapter.tensors))!r} differs")
        for key, tensor in adapter.tensors.items():
            own[key].data.copy_(tensor)
