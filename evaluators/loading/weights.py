"""Weights of the judges: from a folder or the hub, every key accounted for, or one clear line.

`from_pretrained` fills what a checkpoint lacks with random numbers and says so in a warning; a judge
with a random layer gives plausible scores. So here a missing or a left-over key is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdbench.errors import AbsentError, UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

HARMLESS = ("position_ids", "relative_position_index", "criterion.empty_weight")
"""Ends of keys of constant buffers, which older checkpoints have and newer classes compute."""

MODEL = (
    ("config.json",),
    ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""Files of a transformers model; of each group the first that exists is read, in transformers' order."""
PREPARATION = (
    "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt",
)  # fmt: skip
"""Files that decide what a model is given; a checkpoint has some of them."""


@dataclass(frozen=True)
class JudgeFiles:
    """Files that a judge reads from one folder or hub repository.

    Attributes:
        source: folder or hub id.
        required: groups of alternative names; the first that exists of each group is read.
        optional: names that are read if they exist.
    """

    source: str
    required: tuple[tuple[str, ...], ...] = MODEL
    optional: tuple[str, ...] = PREPARATION

    def paths(self) -> list[Path] | None:
        """The files on this machine, with the shards of an index; None if a required file is absent."""
        paths = []
        for names in self.required:
            path = next((path for path in (_locate(self.source, name) for name in names) if path), None)
            if path is None:
                return None
            paths.append(path)
            for shard in _shards(path):
                shard_path = _locate(self.source, shard)
                if shard_path is None:
                    return None
                paths.append(shard_path)
        return paths + [path for path in (_locate(self.source, name) for name in self.optional) if path]


def _locate(source: str, file: str) -> Path | None:
    """A file of a folder or of a hub repository, fetched if need be; None if it is neither there nor reachable."""
    if Path(source).is_dir():
        path = Path(source) / file
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, file))
    except (OSError, ValueError):
        return None


def _shards(index: Path) -> list[str]:
    """Names of the files that an index of weights lists; none for another file or a damaged index."""
    if not index.name.endswith(".index.json"):
        return []
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({str(name) for name in names})
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return []


def content_hash(paths: Sequence[Path]) -> str:
    """Eight hex digits of the files' contents; neither their names nor their folders matter."""
    hashes = sorted({_hash_file(path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths})
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:8]


@cache
def _hash_file(path: Path, size: int, changed: int) -> str:
    """Sha256 of a file; `size` and `changed` renew it when the file is written again."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def keyed(name: str, checkpoints: Sequence[JudgeFiles]) -> str:
    """A backend as it stands in a metric's key: `name/1a2b3c4d`, with the hash of all files that are read.

    So other weights at the same address make another key, and the same weights at two addresses make one. The name
    stands alone while a required file is absent: then nothing can be scored under that key.
    """
    paths: list[Path] = []
    for checkpoint in checkpoints:
        own = checkpoint.paths()
        if own is None:
            return name
        paths += own
    return f"{name}/{content_hash(paths)}"


def default_device() -> str:
    """The first GPU, or the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def unloadable(what: str, source: str, error: Exception) -> UserError:
    """One line for weights that are absent (an `OSError`) or unreadable."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
    kind = AbsentError if isinstance(error, OSError) else UserError
    return kind(
        f"cannot load {what} from {source!r}: {reason}; give a folder that holds it, or pull it once while online"
    )


def fetch(what: str, source: str, file: str) -> Path:
    """A file of a folder, or of a hub repository (its cache first).

    Raises:
        UserError: if it is neither there nor reachable.
    """
    if Path(source).is_dir():
        path = Path(source) / file
        if not path.exists():
            raise UserError(f"cannot load {what} from {source!r}: expected the file {file!r} in that folder")
        return path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, file))
    except (OSError, ValueError) as error:
        raise unloadable(what, source, error) from error


def read_state(what: str, path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pt`, `.pth` or `.safetensors` file, never executing what it holds."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path) if path.suffix == ".safetensors" else _restricted(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise unloadable(what, str(path), error) from error
    tensors = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise UserError(f"cannot load {what} from {str(path)!r}: expected tensors by name; is it another file?")
    return tensors


def _restricted(path: Path) -> Any:
    """What torch's restricted reader, which runs no code, finds in a file; `ValueError` if it cannot read it."""
    import torch

    try:
        return torch.load(path, "cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged files raise eleven unrelated classes; some texts advise to let code run
        raise ValueError(f"not a file of plain tensors ({type(error).__name__}); nothing in it was run") from error


def _refuse(what: str, source: str, problems: Mapping[str, list[str]]) -> None:
    """Raise for the keys that do not match."""
    bad = {kind: [k for k in keys if not k.endswith(HARMLESS)] for kind, keys in problems.items()}
    reasons = [f"{len(keys)} {kind} (first {min(keys)!r})" for kind, keys in bad.items() if keys]
    if reasons:
        raise UserError(
            f"{what} from {source!r} does not match its model: {', '.join(reasons)}; is it another version?"
        )


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], what: str, source: str) -> None:
    """Fill a module; `UserError` unless the keys and shapes are exactly its own."""
    own = module.state_dict()
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    _refuse(
        what,
        source,
        {
            "missing": [*(own.keys() - state.keys())],
            "wrong shapes": shapes,
            "left over": [*(state.keys() - own.keys())],
        },
    )
    module.load_state_dict({key: state[key] for key in own if key in state}, strict=False)


def pretrained(kind: Any, source: str, what: str) -> Any:
    """A transformers model in fp32 for inference; `UserError` unless every weight comes from the checkpoint."""
    import torch
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, told = kind.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise unloadable(what, source, error) from error
    wrong = [str(entry[0]) for entry in told["mismatched_keys"]]
    _refuse(
        what,
        source,
        {"missing": [*told["missing_keys"]], "wrong shapes": wrong, "left over": [*told["unexpected_keys"]]},
    )
    return model.eval()


def processor(kind: Any, source: str, what: str) -> Any:
    """A tokenizer or processor of transformers."""
    try:
        return kind.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise unloadable(what, source, error) from error
