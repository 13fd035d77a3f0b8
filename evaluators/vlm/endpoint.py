"""A client for servers that speak OpenAI's protocol (vLLM, SGLang): one picture, one question, one reply."""

from __future__ import annotations

import base64
import io
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from opdbench.errors import AbsentError, UserError

TIMEOUT, TRIES, PAUSE = 120, 3, 1.0
"""Seconds to wait for a reply, attempts, and seconds before the second one (doubled before each further)."""


class JudgeError(Exception):
    """A reply that did not come, or from which no score can be read."""


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
            UserError: if there is no address, no answer, or no model.
        """
        if url is None or not url.startswith(("http://", "https://")):
            kind = AbsentError if url is None else UserError
            raise kind(f"{what} needs a server, got {url!r}; give --source {what}=http://HOST:PORT/v1")
        try:
            models = _send(f"{url.rstrip('/')}/models", None)["data"]
            return Endpoint(url.rstrip("/"), str(models[0]["id"]))
        except (JudgeError, KeyError, IndexError, TypeError) as error:
            raise UserError(f"{what}: the server {url} names no model ({error}); is it running?") from error

    def chat(self, image: Image, question: str, tokens: int, candidates: int = 0) -> Reply:
        """Put a question about a picture, greedily.

        Args:
            image: sent as PNG, thus without loss.
            question: text after the picture.
            tokens: at most so many in the reply.
            candidates: how many of the first token's to report.

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
            return Reply(str(choice["message"]["content"]), {t["token"]: math.exp(t["logprob"]) for t in seen})
        except (KeyError, IndexError, TypeError) as error:
            raise JudgeError(f"the server's reply lacks {error}") from error

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
        address = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": text}]
        return {"model": self.model, "messages": [{"role": "user", "content": content}]}


def _send(url: str, body: Mapping[str, Any] | None) -> Any:
    """JSON of a reply; servers that are busy or broken are asked again, refusals are not."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    for attempt in range(TRIES):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            failure = f"HTTP {error.code} {error.reason}"
            if error.code < 500 and error.code != 429:
                break
        except (urllib.error.URLError, OSError, ValueError) as error:
            failure = str(getattr(error, "reason", error))
        if attempt + 1 < TRIES:
            time.sleep(PAUSE * 2**attempt)
    raise JudgeError(failure)
