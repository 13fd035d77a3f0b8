"""What the settings of a LoRA adapter mean, as PEFT reads them; what is no plain LoRA is refused by name."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opdbench.errors import UserError

if TYPE_CHECKING:  # PEFT takes seconds to import; see `adapters.py`
    from peft import LoraConfig

LOSSLESS_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base weights as they are."""
READ = ("r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern",
        "alpha_pattern", "use_rslora")  # fmt: skip
"""Settings that change what an adapter does, and are followed."""
REFUSED = ("use_dora", "use_qalora", "lora_bias", "fan_in_fan_out", "modules_to_save", "layer_replication",
           "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "arrow_config", "use_bdlora",
           "megatron_config", "velora_config", "monteclora_config", "kasa_config")  # fmt: skip
"""Settings that would change it in a way that is not followed."""


@dataclass(frozen=True)
class Shape:
    """Rank of one layer's matrices, and the factor of their product."""

    rank: int
    scale: float


@dataclass(frozen=True)
class AdapterSettings:
    """Settings of an adapter.

    Attributes:
        config: PEFT's own; its rules say which layers have matrices.
        name: of the adapter, for errors.
    """

    config: LoraConfig
    name: str

    @staticmethod
    def parse(raw: Mapping[str, Any], name: str) -> AdapterSettings:
        """Read settings as `adapter_config.json` has them.

        Raises:
            UserError: they are those of no plain LoRA, or a value is of the wrong kind.
        """
        where = f"adapter {name!r}"
        if str(raw.get("peft_type") or "LORA").rpartition(".")[2] != "LORA":
            raise UserError(f"{where} is of type {raw['peft_type']!r}; expected a plain LoRA")
        start = raw.get("init_lora_weights", True)
        if start not in LOSSLESS_STARTS:
            what = "changes the base weights, too" if isinstance(start, str) else "is unknown"
            raise UserError(
                f"{where} has init_lora_weights {start!r}, which {what}; convert it to a plain LoRA "
                "(PEFT: save_pretrained with path_initial_model_for_weight_conversion)"
            )
        for key in REFUSED:
            if raw.get(key):
                raise UserError(f"{where} has {key}; expected a plain LoRA")
        if raw.get("bias", "none") != "none":
            raise UserError(f"{where} has bias {raw['bias']!r}; expected 'none'")
        for key in ("r", "lora_alpha"):
            if key in raw and not _is_number(raw[key], whole=key == "r"):
                raise UserError(f"{where} has {key} {raw[key]!r}; expected a finite number")
        for key in ("rank_pattern", "alpha_pattern"):
            pattern = {} if raw.get(key) is None else raw[key]
            if not isinstance(pattern, Mapping) or not all(
                _is_number(v, key == "rank_pattern") for v in pattern.values()
            ):
                raise UserError(f"{where} has {key} {pattern!r}; expected a table of layers and numbers")
        targets = raw.get("target_modules")
        if isinstance(targets, list) and not all(isinstance(target, str) for target in targets):
            raise UserError(f"{where} has target_modules {targets!r}; expected names of layers")
        from peft import LoraConfig

        try:
            for layers in (*(raw.get("rank_pattern") or ()), *(raw.get("alpha_pattern") or ())):
                re.compile(layers)
            return AdapterSettings(LoraConfig(**{key: raw[key] for key in READ if raw.get(key) is not None}), name)
        except (TypeError, ValueError, re.error) as error:
            raise UserError(f"{where} has settings that PEFT does not take: {error}") from error

    def adapts(self, layer: str) -> bool:
        """Whether the layer has matrices, by PEFT's own rule."""
        from peft.tuners.tuners_utils import check_target_module_exists

        try:
            return bool(check_target_module_exists(self.config, layer))
        except (TypeError, ValueError, re.error) as error:
            raise UserError(
                f"adapter {self.name!r} has settings that PEFT cannot apply to {layer!r}: {error}"
            ) from error

    def shape(self, layer: str) -> Shape:
        """Rank and scale of a layer: alpha / r, or alpha / sqrt(r) with rsLoRA; patterns overrule the defaults."""
        rank = _of_pattern(self.config.rank_pattern, layer, self.config.r)
        alpha = _of_pattern(self.config.alpha_pattern, layer, self.config.lora_alpha)
        return Shape(int(rank), alpha / (math.sqrt(rank) if self.config.use_rslora else rank))


def _of_pattern(patterns: Mapping[str, Any], layer: str, default: float) -> float:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer)), default)


def _is_number(value: object, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        return False  # an integer may be larger than any float
    return not whole or (isinstance(value, int) and value > 0)
