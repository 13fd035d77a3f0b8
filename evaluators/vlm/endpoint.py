"""A client for servers that speak OpenAI's protocol (vLLM, SGLang): one picture, one question, one reply.

A server is not trusted: its replies have a limit in size and in total time, redirects to other hosts are refused, and
the key is sent to the given address alone.
"""

from __future__ import annotations

import http.client
import io
import json
import math
import os
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from PIL.Image import Image

from opdbench.errors import AbsentError, UserError
from opdbench.files import data_url

TIMEOUT, TRIES, PAUSE = 120, 3, 1.0
"""Seconds for a whole reply, attempts, and seconds before the second one (doubled before each further one)."""
LARGEST_REPLY = 8 << 20
"""Bytes of the longest reply that is read."""
LONGEST_NAME = 200
"""Characters of the longest name of a model that a metric's key takes."""
KEY_VARIABLE = "OPDBENCH_JUDGE_KEY"
"""Environment variable of the API key; it is sent as a bearer token and never stored."""


class JudgeError(Exception):
    """No score: the server failed, or its reply is not of the protocol. Asking again may help."""


class AnswerError(JudgeError):
    """The server answered, and its answer holds no score. Asking again does not help."""


@dataclass(frozen=True)
class Reply:
    """Text, and the probabilities of the first token's most probable candidates."""

    text: str
    first: Mapping[str, float]


@dataclass(frozen=True)
class Endpoint:
    """A server and the model that it serves.

    Attributes:
        url: up to and with the version, such as `http://localhost:8000/v1`.
        model: name under which the server knows its model.
    """

    url: str
    model: str

    @staticmethod
    def connect(what: str, url: str | None) -> Endpoint:
        """Ask a server for its model.

        Raises:
            UserError: if there is no address, it holds credentials, or the server names no model.
        """
        if url is None or not url.startswith(("http://", "https://")):
            kind = AbsentError if url is None else UserError
            raise kind(f"{what} needs a server, got {url!r}; give --source {what}=http://HOST:PORT/v1")
        address = _checked_address(what, url)
        try:
            model = str(_send(f"{address}/models", None)["data"][0]["id"])
        except (JudgeError, KeyError, IndexError, TypeError) as error:
            raise UserError(f"{what}: the server {address} names no model ({error}); is it running?") from error
        if not model.isprintable() or not 0 < len(model) <= LONGEST_NAME:
            raise UserError(
                f"{what}: the server {address} names the model {model[:40]!a}; expected 1 to {LONGEST_NAME} printable "
                "characters, as the name is part of the metric's key"
            )
        return Endpoint(address, model)

    def chat(self, image: Image, question: str, tokens: int, candidates: int = 0) -> Reply:
        """Put a question about a picture, greedily.

        Args:
            image: sent as PNG, thus without loss.
            question: text after the picture.
            tokens: maximum tokens of the reply.
            candidates: how many of the first token's candidates to report.

        Raises:
            JudgeError: if the server fails or its reply is of another form.
        """
        body: dict[str, Any] = {**self._question(image, question), "temperature": 0, "max_tokens": tokens}
        if candidates:
            body |= {"logprobs": True, "top_logprobs": candidates}
        raw = _send(f"{self.url}/chat/completions", body)
        try:
            choice = raw["choices"][0]
            seen = choice["logprobs"]["content"][0]["top_logprobs"] if candidates else []
            first = {str(t["token"]): math.exp(t["logprob"]) for t in seen}
            text = choice["message"]["content"]
        except (KeyError, IndexError, TypeError, OverflowError) as error:
            raise JudgeError(f"the server's reply lacks {error}") from error
        if not all(0 <= chance <= 1.001 for chance in first.values()):
            raise JudgeError("the server's reply has log-probabilities above 0")
        return Reply("" if text is None else str(text), first)

    def pool(self, image: Image, text: str) -> list[float]:
        """The numbers of a reward head, as vLLM's `/pooling` returns them.

        Raises:
            JudgeError: if the server fails or its reply is of another form.
        """
        raw = _send(f"{self.url.removesuffix('/v1')}/pooling", self._question(image, text))
        try:
            return [float(number) for number in raw["data"][0]["data"]]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise JudgeError(f"the server's reply lacks {error}") from error

    def _question(self, image: Image, text: str) -> dict[str, Any]:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        address = data_url(buffer.getvalue(), "png")
        content = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": text}]
        return {"model": self.model, "messages": [{"role": "user", "content": content}]}


def _checked_address(what: str, url: str) -> str:
    """The address without a slash at its end; `UserError`, which does not repeat them, if it holds credentials."""
    try:
        parts = urlsplit(url)
        host, secret = parts.hostname, parts.username or parts.password or parts.query or parts.fragment
        _ = parts.port
    except ValueError as error:
        raise UserError(f"bad --source for {what}: {error}; expected http://HOST:PORT/v1") from error
    if secret:
        raise UserError(
            f"--source {what}=... holds a password, a query or a fragment, which records would show; "
            f"give http://HOST:PORT/v1, and a key in the environment variable {KEY_VARIABLE}"
        )
    if not host or not url.isprintable() or " " in url:
        raise UserError(f"bad --source for {what}: {url!r}; expected http://HOST:PORT/v1")
    return url.rstrip("/")


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows redirects within one scheme, host and port, and refuses others."""

    def redirect_request(  # type: ignore[no-untyped-def]
        self, req, fp, code, msg, headers, newurl
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if (old.scheme, old.netloc) != (new.scheme, new.netloc):
            raise JudgeError(f"it redirects to another host, {new.scheme}://{new.hostname}; give that address yourself")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_SameHost())


def _send(url: str, body: Mapping[str, Any] | None) -> Any:
    """JSON of a reply; servers that are busy or broken are asked again, refusals are not."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(KEY_VARIABLE, "").strip():
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    failure = ""
    for attempt in range(TRIES):
        try:
            return _within(TIMEOUT, urllib.request.Request(url, data, headers))
        except urllib.error.HTTPError as error:
            hint = f" (set the key in {KEY_VARIABLE})" if error.code in (401, 403) else ""
            failure = f"HTTP {error.code} {error.reason}{hint}"
            if error.code < 500 and error.code != 429:
                break
        except (http.client.HTTPException, OSError, ValueError, RecursionError) as error:
            failure = str(getattr(error, "reason", error)) or type(error).__name__
        if attempt + 1 < TRIES:
            time.sleep(PAUSE * 2**attempt)
    raise JudgeError(failure)


def _within(seconds: float, request: urllib.request.Request) -> Any:
    """JSON of a reply, or `TimeoutError`: sockets time out between bytes only, so a slow drip would never end."""
    answers: queue.Queue[Any] = queue.Queue()

    def ask() -> None:
        try:
            answers.put(_read(request, seconds))
        except (JudgeError, http.client.HTTPException, OSError, ValueError, RecursionError) as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no whole reply within {seconds:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _read(request: urllib.request.Request, seconds: float) -> Any:
    with _OPENER.open(request, timeout=seconds) as reply:
        content = reply.read(LARGEST_REPLY + 1)
        if len(content) > LARGEST_REPLY:
            raise ValueError(f"the reply is longer than {LARGEST_REPLY} bytes")
        wanted = reply.headers.get("Content-Length", "")
        if wanted.isdigit() and len(content) < int(wanted):  # `read(n)` takes a cut reply for a whole one
            raise http.client.IncompleteRead(content, int(wanted) - len(content))
        return json.loads(content)
