"""`torch.compile` of a denoiser, block by block.

All blocks of one kind share compiled code, so the start costs a third of what it does for the whole denoiser. What the
compiler makes is kept in the user's cache folder, and the next process only traces the blocks again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import nn

from opdbench.environment import cache_home
from opdbench.errors import UserError

GRAPHS = "graphs"
"""Value of `compiled` that captures CUDA graphs too."""
SHAPES = 64
"""Variants of a block that are compiled before PyTorch gives up: kinds, policies, numbers of pictures, gradient."""


def compile_blocks(blocks: Iterable[nn.Module], device: torch.device, mode: bool | str = True) -> None:
    """Compile the forward pass of each block, and with it the backward pass, when it first runs.

    Args:
        blocks: of one denoiser.
        device: where they run.
        mode: True, or `graphs` to capture CUDA graphs as well.

    Raises:
        UserError: there is no compiler, or `graphs` is asked for on a CPU.
    """
    if mode == GRAPHS and device.type != "cuda":
        raise UserError(f"compiled is {GRAPHS!r} on a {device.type}; expected true or false there: it needs CUDA")
    if lacking := missing_compiler(device):
        raise UserError(f"compiled needs {lacking}; install it, or set compiled=false")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_home() / "inductor"))
    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    for block in blocks:
        block.compile(dynamic=False, mode="reduce-overhead" if mode == GRAPHS else None)


def missing_compiler(device: torch.device) -> str:
    """What `torch.compile` lacks on this machine, or ""."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return "" if has_triton() else "the package triton"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "a C++ compiler (g++, or the one that CXX names)"
    return ""
