"""Shared fixtures: the embedded model, loaded once, in fp32."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


@pytest.fixture(scope="session")
def model():
    import torch

    from opdbench.model import Model

    return Model("tiny", device="cpu")
