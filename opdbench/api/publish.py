"""An adapter on the Hugging Face Hub: weights, a model card with results and command, and the record."""

from __future__ import annotations

import shutil
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from opdbench.api.export import export
from opdbench.api.trained import Trained
from opdbench.errors import UserError
from opdbench.records.run import RunRecord


def push(trained: Trained, run: Path, repository: str, private: bool = False) -> str:
    """Upload an adapter in diffusers' and in PEFT's format, with its card and record; returns its address.

    Args:
        trained: the adapter of a run.
        run: the run's folder.
        repository: `owner/name`; made if it does not exist.
        private: whether a new repository is private.

    Raises:
        UserError: if `trained` has no record, or the Hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if trained.record is None:
        raise UserError(f"{str(run)!r} has no record; push a run, not a stage")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in ("diffusers", "peft"):
            for path in export(trained, kind, folder / kind):
                shutil.move(path, folder / path.name)
            (folder / kind).rmdir()
        shutil.copy(run / "record.json", folder / "record.json")
        if (run / "grid.png").exists():
            shutil.copy(run / "grid.png", folder / "grid.png")
        (folder / "README.md").write_text(model_card(trained.record, repository), encoding="utf-8")
        failures: tuple[type[Exception], ...] = (HfHubHTTPError, HFValidationError, OSError, *_connection_errors())
        try:
            api = HfApi()
            address = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"opdbench: {trained.title}")
        except failures as error:
            line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"cannot push to {repository!r}: {line}; log in with `hf auth login`, or set HF_TOKEN"
            ) from error
    return str(address)


def _connection_errors() -> tuple[type[Exception], ...]:
    """Errors of the HTTP library under `huggingface_hub`, which has changed over its versions."""
    names = [name for name in ("httpx2", "httpx") if find_spec(name)]
    return tuple(import_module(name).HTTPError for name in names)


def model_card(record: RunRecord, repository: str) -> str:
    """The README of a pushed adapter: how to load it, its scores beside the base model's, command and versions."""
    source = record.model["source"]
    policies = [policy for policy in record.policies if policy.role in ("base", "student")] or list(record.policies)
    tasks = list(dict.fromkeys(cell.task for policy in policies for cell in policy.cells))
    header = ["---", "library_name: diffusers", "tags:", "- opdbench", "- lora", "- text-to-image"]
    header += [f"base_model: {source}"] if source.count("/") == 1 and not source.startswith((".", "/")) else []
    lines = [*header, "---", "", f"# {repository.rpartition('/')[2]}", ""]
    lines += [f"LoRA adapter trained with opdbench: method `{record.method}` on {', '.join(record.tasks)}.", ""]
    lines += ["## Use", "", "```python", "from diffusers import DiffusionPipeline", ""]
    lines += [f'pipeline = DiffusionPipeline.from_pretrained("{source}")']
    lines += [f'pipeline.load_lora_weights("{repository}", weight_name="pytorch_lora_weights.safetensors")', "```", ""]
    lines += ["## Results", "", "| policy | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
    for policy in policies:
        cells = {cell.task: cell.estimate for cell in policy.cells}
        values = []
        for task in tasks:
            estimate = cells.get(task)
            known = estimate is not None and estimate.value is not None
            values.append(f"{estimate.value:.3f} ± {estimate.se or 0:.3f}" if estimate and known else "-")
        lines.append(f"| {policy.name} | " + " | ".join(values) + " |")
    lines += [
        "",
        "Values are means with standard errors clustered by prompt. Samplers, prompt sets and judge versions are",
    ]
    lines += ["in `record.json`.", "", "## Reproduce", "", "```bash", record.command, "```", ""]
    versions = ", ".join(f"{name} {value}" for name, value in sorted(record.environment.items()))
    return "\n".join([*lines, f"Seed {record.seed}; run `{record.digest}`; {versions}.", ""])
