"""An engine without a model, for tests: deterministic text, scripted answers, planned failures.

engine:
  kind: fake
  options:
    responses:
      - {match: "List of tasks", text: "1. Describe $word1.\n2. Explain $word2."}
    fail_after: 100
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Iterable, Iterator
from string import Template
from typing import Any, Self

from pydantic import Field, ValidationError

from selfalign._version import __version__
from selfalign.config import EngineConfig
from selfalign.engines.base import (
    Completion,
    EngineInfo,
    GenerationRequest,
    Quarantined,
    Sampling,
    Score,
    ScoreRequest,
    unfit,
)
from selfalign.errors import ConfigurationError, EngineError
from selfalign.records import FinishReason, FrozenModel

DEFAULT_MAX_LENGTH = 1_000_000  # words; far more than any test's prompt
_SYLLABLES = ("ba", "den", "fi", "gol", "ka", "lum", "mi", "nor", "pa", "res", "ti", "vo", "zu")
_WORD = re.compile(r"\s*\S+")


class ScriptedResponse(FrozenModel):
    """The answer to a prompt in which `match` is found; the first in the list counts.

    In `text`, `$seed` is the request's seed (0 when greedy), `$word1`, `$word2`, ... are made-up
    words that depend on prompt and seed, and `$name` is the group of that name in `match`.
    """

    match: re.Pattern[str]
    text: str


class ScriptedScore(FrozenModel):
    """The log-likelihood of a continuation when `match` is found in prompt + continuation."""

    match: re.Pattern[str]
    log_likelihood: float = Field(le=0)


class FakeOptions(FrozenModel):
    """`engine.options` of the fake engine."""

    responses: tuple[ScriptedResponse, ...] = ()
    scores: tuple[ScriptedScore, ...] = ()
    fail_after: int | None = Field(
        None, ge=0, description="raise EngineError after so many completions or scores"
    )
    delay_seconds: float = Field(0, ge=0, description="wait before each completion or score")


class FakeEngine:
    """Tokens are whitespace-separated words; each request is answered before the next is drawn.

    Raises:
        ConfigurationError: unknown or wrong options.
    """

    def __init__(self, config: EngineConfig, model: str = "fake") -> None:
        try:
            self._options = FakeOptions.model_validate(config.options)
        except ValidationError as e:
            raise ConfigurationError(
                f"engine.options of the fake engine: {e}",
                remedy=f"it knows {', '.join(FakeOptions.model_fields)}",
            ) from e
        self.max_length = config.max_length or DEFAULT_MAX_LENGTH
        self.info = EngineInfo("fake", __version__, "cpu", {"model": model})
        self._answered = 0

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def generate(self, requests: Iterable[GenerationRequest]) -> Iterator[Completion | Quarantined]:
        for request in requests:
            if bad := self._unfit(request, request.prompt):
                yield bad
                continue
            self._misbehave()
            num_prompt_tokens = self.count_tokens(request.prompt)
            room = self.max_length - num_prompt_tokens
            text, reason = _cut(self._whole_text(request), request.sampling, room)
            num_new_tokens = self.count_tokens(text)
            yield Completion(request.id, text, reason, num_prompt_tokens, num_new_tokens)

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score | Quarantined]:
        for request in requests:
            whole = request.prompt + request.continuation
            if bad := self._unfit(request, whole):
                yield bad
                continue
            self._misbehave()
            words = list(_WORD.finditer(whole, len(request.prompt)))
            value = sum(_log_probability(whole[: word.end()]) for word in words)
            scripted = [s.log_likelihood for s in self._options.scores if s.match.search(whole)]
            value = scripted[0] if scripted else value
            yield Score(request.id, value, len(words))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None

    def _whole_text(self, request: GenerationRequest) -> str:
        """The completion before stop strings and limits."""
        seed = request.seed if request.sampling.temperature > 0 else 0
        words = random.Random(f"{seed}\x1f{request.prompt}")
        for scripted in self._options.responses:
            if found := scripted.match.search(request.prompt):
                names: dict[str, Any] = {**found.groupdict(default=""), "seed": seed}
                names |= {f"word{n}": _made_up_word(words) for n in range(1, 33)}
                return Template(scripted.text).safe_substitute(names)
        return "".join(f" {_made_up_word(words)}" for _ in range(words.randint(3, 24)))

    def _unfit(self, request: GenerationRequest | ScoreRequest, text: str) -> Quarantined | None:
        if bad := unfit(request):
            return bad
        if (num_tokens := self.count_tokens(text)) >= self.max_length:
            return Quarantined.too_long(request.id, num_tokens, self.max_length)
        return None

    def _misbehave(self) -> None:
        if self._options.delay_seconds:
            time.sleep(self._options.delay_seconds)
        if self._answered == self._options.fail_after:
            raise EngineError(f"the fake engine fails after {self._answered} answers, as asked")
        self._answered += 1


def _cut(text: str, sampling: Sampling, room: int) -> tuple[str, FinishReason]:
    """At the first stop string or after the last word allowed, whichever comes first."""
    stops = [at for at in (text.find(stop) for stop in sampling.stop) if at >= 0]
    text = text[: min(stops)] if stops else text
    words = list(_WORD.finditer(text))
    limit = min(sampling.max_new_tokens, room)
    if len(words) > limit:
        return text[: words[limit - 1].end()], "length"
    return text, "stop"


def _made_up_word(source: random.Random) -> str:
    return "".join(source.choice(_SYLLABLES) for _ in range(source.randint(2, 4)))


def _log_probability(text: str) -> float:
    """Of the last word after everything before it: between -5 and 0, by a hash."""
    fraction = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
    return -5 * fraction
