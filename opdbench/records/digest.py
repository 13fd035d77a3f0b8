"""Digests that name results."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

FORMAT = 1
"""Raised when trained weights or scores change for the same configuration."""


def digest(value: object) -> str:
    """Sixteen hex digits of the canonical JSON of `value`, dataclasses without fields at their default.

    So a new field whose default is what was done before changes no digest.
    """
    text = json.dumps(value, default=canonical, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def canonical(item: object) -> dict[str, Any]:
    """A dataclass as its fields that differ from their default, or a mapping as a dict; one level deep."""
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        fields = dataclasses.fields(item)
        return {f.name: getattr(item, f.name) for f in fields if getattr(item, f.name) != _default(f)}
    if isinstance(item, Mapping):
        return dict(item)
    raise TypeError(f"cannot digest {type(item).__name__}")


def _default(spec: dataclasses.Field[Any]) -> object:
    return spec.default if spec.default_factory is dataclasses.MISSING else spec.default_factory()
