"""Weights of the judges: from a folder or the hub, every key accounted for, or one clear line.

`from_pretrained` fills what a checkpoint lacks with random numbers and says so in a warning; a judge
with a random layer gives plausible scores. So here a missing or a left-over key is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdbench.errors import AbsentError, UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

HARMLESS = ("position_ids", "relative_position_index", "criterion.empty_weight")
"""Ends of keys of constant buffers, which older checkpoints have and newer classes compute."""


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
    found = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise UserError(f"cannot load {what} from {str(path)!r}: expected tensors by name; is it another file?")
    return found


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
    found = [f"{len(keys)} {kind} (first {min(keys)!r})" for kind, keys in bad.items() if keys]
    if found:
        raise UserError(f"{what} from {source!r} does not match its model: {', '.join(found)}; is it another version?")


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], what: str, source: str) -> None:
    """Fill a module; `UserError` unless the keys and shapes are exactly its own."""
    own = module.state_dict()
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    _refuse(what, source, {"missing": [*(own.keys() - state.keys())], "wrong shapes": shapes,
                           "left over": [*(state.keys() - own.keys())]})  # fmt: skip
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
    _refuse(what, source, {"missing": [*told["missing_keys"]], "wrong shapes": wrong,
                           "left over": [*told["unexpected_keys"]]})  # fmt: skip
    return model.eval()


def processor(kind: Any, source: str, what: str) -> Any:
    """A tokenizer or processor of transformers."""
    try:
        return kind.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise unloadable(what, source, error) from error
