"""Prompt sets of real benchmarks: fetched on request, pinned by revision and sha256, never shipped.

A file is read as UTF-8, with or without a byte order mark, and split at newlines alone. Rows of equal content are
one prompt with more pictures, so that a standard error clustered by prompt knows them as one (DrawBench is usually
passed on with each prompt five times).
"""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opdbench.core import Prompt, Split
from opdbench.environment import cache_home
from opdbench.errors import UserError, unknown
from opdbench.files import write_bytes

TIMEOUT = 30
"""Seconds to wait for a server."""

BOOKKEEPING = ("id", "seed", "index", "sample", "image", "file", "file_name", "path", "url", "steps", "guidance")
"""Keys of a row that say how its picture was made or named, never what it should show."""


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
    return cache_home() / "prompts"


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


def _check_hash(name: str, source: str, content: bytes) -> None:
    actual = hashlib.sha256(content).hexdigest()
    if actual != (SETS[name].sha256 or actual):
        raise UserError(f"prompt set {name!r} from {source!r} has sha256 {actual}; expected {SETS[name].sha256}")


def load(name: str, task: str) -> tuple[Prompt, ...]:
    """Prompts of a pulled set for a task, each with the number of pictures of its protocol."""
    path = local_path(name)
    if not path.exists():
        raise UserError(f"prompt set {name!r} is not here; run: opdbench data pull {name}, or give --prompts FILE")
    _check_hash(name, str(path), path.read_bytes())
    return read_prompts(path, task, name, SETS[name].images)


def pulled(name: str, task: str | None = None, train: str = "") -> Callable[[Split], Sequence[Prompt]]:
    """An evaluator's `prompts` function: the test split reads set `name`, the train split reads set `train`."""

    def prompts(split: Split) -> Sequence[Prompt]:
        if split != "test" and not train:
            raise UserError(f"prompt set {name!r} has test prompts alone; it cannot be used for training")
        return load(name if split == "test" else train, task or name)

    return prompts


def read_prompts(
    path: Path, task: str, name: str | None = None, images: int = 1, payload: Sequence[str] | None = None
) -> tuple[Prompt, ...]:
    """Prompts of a file: `.jsonl` (objects with `prompt`), `.tsv` (a column `Prompt`) or text, one per line.

    Args:
        path: the file.
        task: evaluator that they are for.
        name: first part of their ids; the file's stem if None.
        images: pictures for each row.
        payload: keys of a row that the evaluator reads; None if that is unknown (`core.payload`).

    Raises:
        UserError: if the file cannot be read, a row has no text, or there is no row.
    """
    readers = {".jsonl": _json_rows, ".tsv": _table_rows}
    counts: dict[str, int] = {}
    specs: dict[str, Mapping[str, Any]] = {}
    for number, row in readers.get(path.suffix, _text_rows)(read_lines(path, "prompts")):
        where = f"prompts {str(path)!r}, line {number}"
        if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
            raise UserError(f"{where}: no text; expected a 'prompt'")
        check_characters(row, where)
        spec = cluster_spec(row, payload)
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


def read_lines(path: Path, what: str = "rows") -> list[str]:
    """Lines of a UTF-8 file without its byte order mark, split at newlines alone; `what` it holds is for messages.

    Raises:
        UserError: if it cannot be read as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {what} {str(path)!r}: {error}; expected a text file in UTF-8") from error


def parse_row(text: str, where: str) -> dict[str, Any]:
    """A JSON object whose strings can be written to any file.

    Raises:
        UserError: if it is none; `where` names the row.
    """
    try:
        row = json.loads(text)
        if isinstance(row, dict):
            check_characters(row, where)
            return row
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    raise UserError(f"{where} is a {type(row).__name__}; expected an object with a string 'prompt'")


def check_characters(row: object, where: str) -> None:
    """Raise `UserError` if a string of the row holds a NUL or half of a surrogate pair, which no tokenizer takes."""
    text = json.dumps(row, ensure_ascii=False).replace("\\\\", "")  # escaped backslashes, which are text
    surrogate = next((char for char in text if "\ud800" <= char <= "\udfff"), "")
    if surrogate or "\\u0000" in text:
        name = f"the lone surrogate {surrogate!a}" if surrogate else "a NUL character"
        raise UserError(f"{where} holds {name}; expected Unicode text without it")


def cluster_spec(row: Mapping[str, Any], payload: Sequence[str] | None) -> dict[str, Any]:
    """What of a row makes its prompt: the text and what the judge reads, so that a seed or an id makes no new prompt.

    Args:
        row: with `prompt`.
        payload: keys that the judge reads; if None all but `BOOKKEEPING`.
    """
    if payload is None:
        return {key: value for key, value in row.items() if key not in BOOKKEEPING}
    return {key: row[key] for key in ("prompt", *payload) if key in row}


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
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, parse_row(line, f"prompts line {number}")
