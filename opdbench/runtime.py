"""Files that are whole or absent, facts about the machine, peak memory, work in a second thread."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from .errors import UserError

T = TypeVar("T")
U = TypeVar("U")


def check_writable(out: Path) -> None:
    """Make the folder; `UserError` if nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write --out {str(out)!r}: {error.strerror}; choose another folder") from error
    if not os.access(out, os.W_OK):
        raise UserError(f"cannot write --out {str(out)!r}: no permission; choose another folder")


def command_line() -> str:
    """What was typed."""
    return shlex.join(["opdbench", *sys.argv[1:]])


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; `UserError` if the place is not writable."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror}; choose a writable --out") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a broken file is a `UserError` that says what to do."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {str(path)!r}: {error}; delete it and run the same command again") from error


def hash_folder(folder: Path) -> str:
    """Hash of the names and contents of a folder's files."""
    state = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        if path.suffix in (".py", ".md"):  # neither changes what the weights do
            continue
        state.update(path.relative_to(folder).as_posix().encode())
        state.update(path.read_bytes())
    return state.hexdigest()[:16]


def peak_mib(device: str) -> float:
    """Peak memory of the device, or of the process on a CPU, in MiB."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20


def environment() -> dict[str, str]:
    """Versions and commit that a number may depend on."""
    facts = {"python": platform.python_version(), "platform": f"{platform.system()}-{platform.machine()}"}
    for name in ("opdbench", "torch", "diffusers", "transformers", "peft", "rapidocr", "onnxruntime"):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "absent"
    facts["commit"] = _commit()
    return facts


def _commit() -> str:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def broken_torchvision() -> str:
    """What is wrong with torchvision, or "": built for another torch, it breaks the import of all model libraries."""
    if find_spec("torchvision") is None:
        return ""
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, OSError, ImportError) as error:
        pair = f"torchvision {version('torchvision')} beside torch {version('torch')}"
        return f"{pair} cannot be imported ({error}): uninstall it, or install both from one index of pytorch.org"
    return ""


def quiet_libraries() -> None:
    """Settings that must precede torch and the model libraries; the user's own values win."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a spinning thread starves the other process
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two are no faster for the embedded model; bits depend on it
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # a line for each retry, where one in the end will do
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made in a second thread while the one before it is in use."""
    with _second_thread() as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def behind(items: Iterable[T], work: Callable[[T], U]) -> Iterator[U]:
    """`work` of each item, done in a second thread while this one makes the next item."""
    with _second_thread() as pool:
        last = None
        for item in items:
            if last is not None:
                yield last.result()
            last = pool.submit(work, item)
        if last is not None:
            yield last.result()


def _second_thread() -> ThreadPoolExecutor:
    import torch

    if not torch.cuda.is_initialized():
        return ThreadPoolExecutor(1)
    return ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(torch.cuda.current_device(),))
