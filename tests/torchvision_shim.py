"""Lets PyPI's torchvision be imported beside a CPU build of torch, whose operators it cannot register.

For the tests that need open_clip on a machine without a GPU, and for nothing else: two operators get a
declaration and no implementation, so detection models stay unusable and transforms work.
"""

from __future__ import annotations

import importlib
import sys


def mend() -> None:
    """Import torchvision, declaring the missing operators first if need be; call before any model library."""
    import torch

    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
