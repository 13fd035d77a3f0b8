"""Prompt sets of real benchmarks: fetched on request, pinned by revision and sha256, never shipped.

A file is read as UTF-8 and split at newlines alone. Equal rows are one prompt with so many pictures more, so
that a standard error clustered by prompt knows them as one (DrawBench is usually passed on with each prompt
five times).
"""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opdbench.core import Prompt, Split
from opdbench.errors import UserError, unknown
from opdbench.files import write_bytes

TIMEOUT = 30
"""Seconds to wait for a server."""


@dataclass(frozen=True)
class PromptSet:
    """Where a set comes from.

    Attributes:
        repository, revision, path: the file on GitHub.
        sha256: of its bytes; "" where the revision alone pins it.
        images: pictures a prompt in its protocol.
        licence: as its owners state it.
    """

    repository: str
    revision: str
    path: str
    sha256: str
    images: int
    licence: str

    @property
    def url(self) -> str:
        """Address of the file."""
        return f"https://github.com/{self.repository}/raw/{self.revision}/{self.path}"


SETS: Mapping[str, PromptSet] = {
    "geneval": PromptSet(
        "djghosh13/geneval", "af4902f", "prompts/evaluation_metadata.jsonl",
        "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13", 4, "MIT",
    ),
    "ocr": PromptSet(
        "yifan123/flow_grpo", "ac4c86e", "dataset/ocr/test.txt",
        "4dd8caf3ab6ade73bd376c7d14c6ca49b6eacfb1bd321e22c40714ae4a98d4dc", 1, "MIT (the repository's)",
    ),
    "drawbench": PromptSet(
        "NVlabs/DiffusionNFT", "24af555", "dataset/drawbench/test.txt",
        "9006b98feabb94b28a2bc0c88de42fd4f31a9ec3c2a19e308a02c5385b7172f0", 1, "none stated",
    ),
    "parti": PromptSet(
        "google-research/parti", "2c99f6652cbc7f0d0441aa91f4c7e7055bcb0071", "PartiPrompts.tsv",
        "fab29e41bb512a169b56acab4cf2a41dcb675e285df2efcde6640c7dd3c440eb", 1, "Apache-2.0",
    ),
    "pickapic": PromptSet(
        "yifan123/flow_grpo", "ac4c86e", "dataset/pickscore/test.txt",
        "d75c025fa451866e70f7e36243f7cdd93095523cb51f5f9651f2ce3236d20262", 1, "Pick-a-Pic v1 captions; some NSFW",
    ),
    "geneval2": PromptSet(
        "facebookresearch/GenEval2", "a6e82d2", "geneval2_data.jsonl",
        "09233adbc9f877fba205f1a20efa4a8640e7e62a91dfd55893562bed8a928e43", 1, "CC BY-NC 4.0",
    ),
    "geneval-train": PromptSet(
        "yifan123/flow_grpo", "ac4c86e", "dataset/geneval/train_metadata.jsonl", "", 1, "MIT (the repository's)",
    ),
    "ocr-train": PromptSet("yifan123/flow_grpo", "ac4c86e", "dataset/ocr/train.txt", "", 1, "MIT (the repository's)"),
    "pickapic-train": PromptSet(
        "yifan123/flow_grpo", "ac4c86e", "dataset/pickscore/train.txt",
        "2f425adcbb9a6d0feee7c6c448e1cb83a1f71deca9434b803907e2578eca837f", 1, "Pick-a-Pic v1 captions; some NSFW",
    ),
}  # fmt: skip


def cache_folder() -> Path:
    """Where pulled sets lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opdbench" / "prompts"


def local_path(name: str) -> Path:
    """The file of a set, there or not.

    Raises:
        UserError: for an unknown name.
    """
    if name not in SETS:
        raise unknown("prompt set", name, SETS)
    source = SETS[name]
    return cache_folder() / f"{name}-{(source.sha256 or source.revision)[:8]}{Path(source.path).suffix}"


def pull(name: str) -> Path:
    """Fetch a set into the cache, unless it is there.

    Raises:
        UserError: if the name is unknown, the source cannot be reached, or the file is not the pinned one.
    """
    path = local_path(name)
    if path.exists():
        return path
    source = SETS[name]
    try:
        with urllib.request.urlopen(source.url, timeout=TIMEOUT) as reply:
            content = reply.read()
    except (urllib.error.URLError, OSError) as error:
        raise UserError(
            f"cannot fetch prompt set {name!r} from {source.url}: {error}; fetch that file where there is a network, "
            f"and give it with --prompts, or put it at {str(path)!r}"
        ) from error
    _check_hash(name, source.url, content)
    write_bytes(path, content)
    return path


def _check_hash(name: str, place: str, content: bytes) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != (SETS[name].sha256 or found):
        raise UserError(f"prompt set {name!r} from {place!r} has sha256 {found}; expected {SETS[name].sha256}")


def load(name: str, task: str) -> tuple[Prompt, ...]:
    """Prompts of a pulled set for a task, in the pictures a prompt of its protocol."""
    path = local_path(name)
    if not path.exists():
        raise UserError(f"prompt set {name!r} is not here; run: opdbench data pull {name}, or give --prompts FILE")
    _check_hash(name, str(path), path.read_bytes())
    return read_prompts(path, task, name, SETS[name].images)


def pulled(name: str, task: str | None = None, train: str = "") -> Callable[[Split], Sequence[Prompt]]:
    """An evaluator's `prompts`: the set of its test split and that of `train`, read when asked."""

    def prompts(split: Split) -> Sequence[Prompt]:
        if split != "test" and not train:
            raise UserError(f"prompt set {name!r} has test prompts alone; it cannot be trained on")
        return load(name if split == "test" else train, task or name)

    return prompts


def read_prompts(path: Path, task: str, name: str | None = None, images: int = 1) -> tuple[Prompt, ...]:
    """Prompts of a file: `.jsonl` (objects with `prompt`), `.tsv` (a column `Prompt`) or text, one a line.

    Args:
        path: the file.
        task: evaluator that they are for.
        name: first part of their ids; the file's stem if None.
        images: pictures for each row.

    Raises:
        UserError: if the file cannot be read, a row has no text, or there is no row.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read prompts {str(path)!r}: {error}") from error
    readers = {".jsonl": _json_rows, ".tsv": _table_rows}
    counts: dict[str, int] = {}
    specs: dict[str, Mapping[str, Any]] = {}
    for place, spec in readers.get(path.suffix, _text_rows)(lines):
        if not isinstance(spec.get("prompt"), str) or not spec["prompt"].strip():
            raise UserError(f"prompts {str(path)!r}, line {place}: no text; expected a 'prompt'")
        key = json.dumps(spec, sort_keys=True)
        counts[key] = counts.get(key, 0) + images
        specs[key] = spec
    if not specs:
        raise UserError(f"prompts {str(path)!r}: no prompt in it")
    stem = name or path.stem
    return tuple(
        Prompt(f"{stem}/{k:04d}", spec["prompt"].strip(), task, spec, counts[key])
        for k, (key, spec) in enumerate(specs.items())
    )


Rows = Iterator[tuple[int, Mapping[str, Any]]]
"""Line numbers and rows, each with `prompt`."""


def _text_rows(lines: Sequence[str]) -> Rows:
    return ((k, {"prompt": line.strip()}) for k, line in enumerate(lines, 1) if line.strip())


def _table_rows(lines: Sequence[str]) -> Rows:
    names = [name.strip().lower() for name in lines[0].split("\t")]
    return (
        (k, dict(zip(names, line.rstrip("\r").split("\t"), strict=False)))
        for k, line in enumerate(lines[1:], 2)
        if line.strip()
    )


def _json_rows(lines: Sequence[str]) -> Rows:
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"prompts line {place} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"prompts line {place} is a {type(row).__name__}; expected an object with 'prompt'")
        yield place, row
