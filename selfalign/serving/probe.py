"""The probe: whether a server answers as the model did when it was evaluated.

`promote` writes `probe.json` into `models/<digest>/`: a few held-out prompts with the answers that
`evaluate` saw. `check` asks a server the same prompts over `/v1/chat/completions`, greedily, and
compares. A wrong template, other weights, another precision or a tokenizer that does not fit
changes the answers at once; rounding on another device changes a word here and there.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field

from selfalign.errors import DataError, TemporaryError
from selfalign.serving.directory import MARKER, ServedModel
from selfalign.store.documents import StoredModel, decode_json, parse_document

PROBE_NAME = "probe.json"
QUESTIONS = 8
MAX_NEW_TOKENS = 32
ALIKE = 90.0  # rapidfuzz ratio, 0 to 100
NEEDED = 0.75  # share of the answers that must be alike
_TIMEOUT_SECONDS = 30.0
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_LONGEST_REPLY = 1 << 20
_SHOWN = 80  # characters of an answer in a message


class Question(StoredModel):
    """A held-out prompt, and the answer of this very model to it when it was evaluated."""

    prompt: str
    answer: str


class Probe(StoredModel):
    """What `probe.json` holds.

    Attributes:
        max_new_tokens: how long an answer may get when the prompts are asked again.
    """

    max_new_tokens: int = Field(ge=1)
    questions: list[Question] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Difference:
    """An answer that is not alike.

    Attributes:
        ratio: rapidfuzz's ratio of the two texts, 0 to 100.
    """

    prompt: str
    expected: str
    found: str
    ratio: float

    def __str__(self) -> str:
        return (
            f"{self.prompt[:_SHOWN]!r}: expected {self.expected[:_SHOWN]!r}, got "
            f"{self.found[:_SHOWN]!r} ({self.ratio:.0f}% alike)"
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a probe found."""

    asked: int
    differences: list[Difference]

    @property
    def passed(self) -> bool:
        """Whether enough answers are alike."""
        return self.asked - len(self.differences) >= NEEDED * self.asked


def new_probe(
    answers: Mapping[str, str], prompts: Mapping[str, str], max_new_tokens: int
) -> Probe | None:
    """The probe of a model; None where no held-out prompt was answered.

    Args:
        answers: what the model answered, by the item's id.
        prompts: the held-out prompts by the item's id.
        max_new_tokens: of the evaluation.
    """
    known = [
        Question(prompt=prompts[name], answer=answers[name])
        for name in sorted(prompts.keys() & answers.keys())
        if answers[name]
    ]
    # spread over the set: neighbours are often of one kind
    chosen = known[:: max(1, len(known) // QUESTIONS)][:QUESTIONS]
    tokens = min(MAX_NEW_TOKENS, max_new_tokens)
    return Probe(max_new_tokens=tokens, questions=chosen) if chosen else None


def read_model_directory(directory: Path) -> tuple[ServedModel, Probe | None]:
    """A fetched model's marker, and its probe where it has one. Raises DataError."""
    marker, probe = directory / MARKER, directory / PROBE_NAME
    try:
        served = parse_document(str(marker), marker.read_bytes(), ServedModel)
        if not probe.is_file():
            return served, None
        return served, parse_document(str(probe), probe.read_bytes(), Probe)
    except OSError as error:
        raise DataError(
            f"{error.filename}: {error.strerror}, so {directory} holds no complete model",
            remedy=f"fetch it: selfalign serving fetch --to {directory}",
        ) from error


def check(url: str, digest: str, probe: Probe | None) -> Outcome:
    """Ask a server the probe's prompts.

    Args:
        url: where the server is, without /v1.
        digest: the name under which it must serve the model.
        probe: None asks nothing: that the server names the digest is all that is checked.

    Raises:
        TemporaryError: the server cannot be reached, or fails.
        DataError: it serves another model.
    """
    names = served_names(url)
    if digest not in names:
        raise DataError(
            f"{url}: serves {', '.join(names) or 'nothing'}, not the model {digest}",
            remedy="start it from this directory: selfalign serving start DIR",
        )
    differences = []
    for question in probe.questions if probe else []:
        found, whole = _ask(url, digest, question.prompt, probe.max_new_tokens if probe else 1)
        if (difference := compare(question, found, whole=whole)) is not None:
            differences.append(difference)
    return Outcome(len(probe.questions) if probe else 0, differences)


def served_names(url: str) -> list[str]:
    """The models that a server lists. Raises TemporaryError."""
    listed = call(f"{url}/v1/models").get("data")
    return [str(row.get("id")) for row in listed if isinstance(row, dict)] if listed else []


def compare(question: Question, found: str, *, whole: bool) -> Difference | None:
    """The difference between an answer and the recorded one; None where they are alike.

    Args:
        whole: the answer ended by itself. One that was cut is compared with the recorded one's
            beginning.
    """
    from rapidfuzz import fuzz

    found = found.strip()
    expected = question.answer if whole else question.answer[: len(found)]
    ratio = fuzz.ratio(expected, found)
    # a cut answer without a letter would equal the beginning of every answer
    if ratio >= ALIKE and found:
        return None
    return Difference(question.prompt, expected or question.answer, found, ratio)


def _ask(url: str, model: str, prompt: str, max_tokens: int) -> tuple[str, bool]:
    """The answer, and whether it ended by itself."""
    asked = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": max_tokens,
    }
    answer = call(f"{url}/v1/chat/completions", asked)
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"] or ""
        return str(text), choice["finish_reason"] != "length"
    except (KeyError, IndexError, TypeError) as error:
        raise _failed(url, "its reply has no choices[0].message.content") from error


def call(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object that a server answers with. Raises TemporaryError."""
    try:
        found = decode_json(request(url, body))
    except ValueError as error:
        raise _failed(url, f"its reply is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise _failed(url, "its reply is not a JSON object")
    return found


def request(
    url: str, body: dict[str, Any] | None, headers: Mapping[str, str] | None = None
) -> bytes:
    """The answer to a GET, or to a POST where there is a body. Raises TemporaryError."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or not url.isprintable() or " " in url:
        raise DataError(f"{url}: not the address of a server", remedy="give http://HOST:PORT")
    data = None if body is None else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **(headers or {})}
    # a proxy that the environment names for the store knows no server of this machine
    own = [urllib.request.ProxyHandler({})] if parts.hostname in _THIS_MACHINE else []
    opener = urllib.request.build_opener(_NoRedirects, *own)
    try:
        with opener.open(
            urllib.request.Request(url, data, sent), timeout=_TIMEOUT_SECONDS
        ) as response:
            found: bytes = response.read(_LONGEST_REPLY)
            return found
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(500).decode(errors="replace")
        raise _failed(url, f"HTTP {error.code}: {said}") from error
    except (OSError, HTTPException) as error:
        raise _failed(url, f"{getattr(error, 'reason', error)}") from error


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows none: the headers, of which one may be a token, would go to another server too."""

    def redirect_request(self, *args: object) -> None:
        """No request, so that the redirect is an error."""


def _failed(url: str, why: str) -> TemporaryError:
    return TemporaryError(f"{url}: {why}", remedy="see the server's log; try again when it is up")
