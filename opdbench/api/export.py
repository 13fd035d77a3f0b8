"""A trained adapter in other programs' formats."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from safetensors.torch import save_file

from opdbench.api.kohya import kohya_metadata, kohya_tensors
from opdbench.api.trained import Trained
from opdbench.diffusion.adapter_files import CONFIG, DIFFUSERS_WEIGHTS, PEFT_PREFIX, WEIGHTS
from opdbench.diffusion.adapters import Adapter, fold
from opdbench.errors import UserError

ExportFormat = Literal["diffusers", "peft", "kohya", "fused"]
KOHYA_WEIGHTS = "lora.safetensors"


def export(trained: Trained, kind: ExportFormat, folder: Path) -> list[Path]:
    """Write an adapter to `folder`.

    Args:
        trained: the adapter.
        kind: `diffusers` (`load_lora_weights`), `peft` (`PeftModel.from_pretrained`), `kohya` (sd-scripts, ComfyUI) or
            `fused` (a whole pipeline whose denoiser has the adapter in its weights).
        folder: new or empty.

    Returns:
        The files that were written, or the pipeline's folder.

    Raises:
        UserError: if `folder` holds files, or the format has no name for an adapted layer.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{str(folder)!r} is not an empty folder; choose another --to")
    adapter = Adapter.load(trained.adapter)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write --to {str(folder)!r}: {error.strerror}; choose another folder") from error
    if kind == "diffusers":
        adapter.save(folder / DIFFUSERS_WEIGHTS)
        return [folder / DIFFUSERS_WEIGHTS]
    if kind == "peft":
        return _write_peft(adapter, trained.model, folder)
    if kind == "kohya":
        return _write_kohya(adapter, trained.model, folder)
    return _write_fused(adapter, trained.model, folder)


def _write_peft(adapter: Adapter, model: str, folder: Path) -> list[Path]:
    """`adapter_config.json` and `adapter_model.safetensors`, as `PeftModel.save_pretrained` names them."""
    config = adapter.lora.config()
    config.base_model_name_or_path, config.inference_mode = model, True
    config.save_pretrained(str(folder))
    save_file({PEFT_PREFIX + name: tensor.contiguous() for name, tensor in adapter.tensors.items()}, folder / WEIGHTS)
    return [folder / CONFIG, folder / WEIGHTS]


def _write_kohya(adapter: Adapter, model: str, folder: Path) -> list[Path]:
    from opdbench.api.pipelines import family

    if not model:
        raise UserError("the stage's folder does not name its model; export the run, or choose another --format")
    kind = family(model)
    tensors, metadata = kohya_tensors(adapter, kind), kohya_metadata(adapter, kind)
    save_file(tensors, folder / KOHYA_WEIGHTS, metadata=metadata)
    return [folder / KOHYA_WEIGHTS]


def _write_fused(adapter: Adapter, model: str, folder: Path) -> list[Path]:
    from opdbench.api.pipelines import load_pipeline

    if not model:
        raise UserError("the stage's folder does not name its model; export the run, or choose another --format")
    pipeline = load_pipeline(model)
    base = pipeline.transformer
    fold(base, base, adapter)
    pipeline.save_pretrained(folder)
    return [folder]
