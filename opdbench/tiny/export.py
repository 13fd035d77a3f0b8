"""The trained parts as a diffusers pipeline folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from diffusers import AutoencoderKL, StableDiffusion3Pipeline

from opdbench.tiny.build import TinyModel, build_scheduler


def export(model: TinyModel, vae: AutoencoderKL, folder: Path) -> None:
    """Write what `StableDiffusion3Pipeline.from_pretrained` loads; the denoiser as fp16, to be small."""
    pipe = StableDiffusion3Pipeline(
        transformer=model.transformer.half(),
        scheduler=build_scheduler(),
        vae=vae.float(),
        text_encoder=model.clip_1,
        tokenizer=model.clip_tokenizer,
        text_encoder_2=model.clip_2,
        tokenizer_2=model.clip_tokenizer,
        text_encoder_3=model.t5,
        tokenizer_3=model.t5_tokenizer,
    )
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipe.save_pretrained(partial, safe_serialization=True)
    _loadable_by_transformers_4(partial)
    folder.mkdir(parents=True, exist_ok=True)
    for part in partial.iterdir():  # what else lies in the folder, such as its card, stays
        if part.is_dir():
            shutil.rmtree(folder / part.name, ignore_errors=True)
        part.replace(folder / part.name)
    partial.rmdir()


def _loadable_by_transformers_4(folder: Path) -> None:
    """Name the fast tokenizers so that both majors find them, and drop a setting that the older one misreads."""
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('Tokenizer"', 'TokenizerFast"'))
    for path in folder.glob("tokenizer*/tokenizer_config.json"):
        settings = json.loads(path.read_text())
        settings.pop("extra_special_tokens", None)
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
