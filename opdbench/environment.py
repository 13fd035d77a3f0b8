"""Facts about the machine and its libraries, and settings that must precede them."""

from __future__ import annotations

import io
import os
import platform
import resource
import shlex
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path


def command_line() -> str:
    """The shell-quoted command line."""
    return shlex.join(["opdbench", *sys.argv[1:]])


def cache_home() -> Path:
    """The user's folder for what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opdbench"


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
    """Describe a torchvision that breaks the import of all model libraries, or return ""; seen beside another torch."""
    if find_spec("torchvision") is None:
        return ""
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, OSError, ImportError) as error:
        pair = f"torchvision {version('torchvision')} beside torch {version('torch')}"
        return f"{pair} cannot be imported ({error}): uninstall it, or install both from one index of pytorch.org"
    return ""


def quiet_libraries() -> None:
    """Set defaults that must precede torch and the model libraries; the user's own values win."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a spinning thread starves the other process
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two are no faster for the embedded model, and the bits depend on it
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # one final line instead of a line per retry
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")


def printable_output() -> None:
    """Spell out characters that the terminal's encoding lacks (`±` in ASCII), instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
