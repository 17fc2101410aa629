"""The engine behind any OpenAI-compatible server: /v1/completions, prompts as token ids.

The base model's own tokenizer, loaded here, makes the tokens, so that a prompt is read as the other
engines read it: special tokens that are spelt in a text stay plain characters. No weights are
loaded here. What a server cannot prove, its operator is trusted with: that the name it serves
stands for the weights that the run names (docs/security.md).
"""

from __future__ import annotations

import math
import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import chain
from pathlib import Path
from typing import Any, Self, TypeVar

from selfalign.config import EngineConfig
from selfalign.engines.base import (
    Completion,
    EngineInfo,
    GenerationRequest,
    Quarantined,
    Score,
    ScoreRequest,
)
from selfalign.engines.openai.client import Client, RequestFailed
from selfalign.engines.openai.server import find_server
from selfalign.engines.tokens import PromptTokenizer, Scored, batched
from selfalign.engines.transformers.limits import load_tokenizer
from selfalign.errors import ConfigurationError, EngineError

DRAWN_TOGETHER = 16  # requests tokenised in one call
_ECHO = {"echo": True, "logprobs": 1}  # log-likelihoods of the prompt's own tokens

R = TypeVar("R", GenerationRequest, ScoreRequest)
# The tokens and the body that asks for them; Quarantined in place of tokens: not to be asked.
Job = tuple[R, Scored | Quarantined, dict[str, Any]]


class OpenAIEngine:
    """A served causal language model behind the Engine protocol.

    `engine.options` are further fields of each request's body, for what a server names in its own
    way.

    Args:
        config: with `server`; its URL and limits say how work is done, not what comes out.
        directory: of the model's configuration and tokenizer.
        model: what the server must serve: a hub id, or a directory.

    Raises:
        ConfigurationError: the server serves another model, reads texts with another tokenizer, or
            refuses what it is asked.
        EngineError: the server cannot be reached.
    """

    def __init__(self, config: EngineConfig, directory: Path, model: str) -> None:
        assert config.server is not None, "checked by EngineConfig"
        tokenizer = load_tokenizer(directory)
        self._config, self._settings = config, config.server
        self._client = Client(config.server)
        try:
            self._server = find_server(self._client, config, model, tokenizer)
            self.max_length = self._server.max_length
            vocabulary = max(tokenizer.get_vocab().values()) + 1  # its embedding is not here
            self._tokenizer = PromptTokenizer(tokenizer, self.max_length, vocabulary)
            self._cannot_score = self._try_out()
        except BaseException:
            self._client.close()
            raise
        self.info = EngineInfo(
            name="openai",
            version=self._server.version,
            device="server",
            details={
                "served_model": self._server.model,
                "root": self._server.root or "unknown",
                "max_model_len": str(self._server.max_length),
                "owned_by": self._server.owner,
                "scores": "no" if self._cannot_score else "yes",
            },
        )

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode([text])[0])

    def generate(self, requests: Iterable[GenerationRequest]) -> Iterator[Completion | Quarantined]:
        for each in self._stream(requests, self._generation_jobs):
            if isinstance(each, Quarantined):
                yield each
            else:
                request, _, answer = each
                yield _completion(request.id, answer)

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score | Quarantined]:
        if self._cannot_score:
            raise ConfigurationError(
                f"engine.server {self._settings.url} cannot score, which evaluate.hhh, "
                f"evaluate.truthfulqa and evaluate.judge need: {self._cannot_score}",
                remedy="set their engine to another kind, serve the model with vLLM, or leave "
                "these out",
            )
        for each in self._stream(requests, self._score_jobs):
            if isinstance(each, Quarantined):
                yield each
            else:
                request, scored, answer = each
                values = _log_likelihoods(request.id, scored.tokens, answer)[scored.start :]
                yield Score(request.id, math.fsum(map(float, values)), len(values))  # type: ignore[arg-type]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._client.close()

    def _try_out(self) -> str:
        """Ask for one token, then for scores. Why the server cannot score, or nothing.

        Raises ConfigurationError where it does not even generate.
        """
        (tokens,) = self._tokenizer.encode(["a b c"])
        body = self._body(tokens, max_tokens=1, temperature=0.0, **self._server.sampling(1.0))
        try:
            read = _completion("try-out", self._client.post("completions", body))
        except RequestFailed as e:
            raise ConfigurationError(
                f"engine.server {self._settings.url}: it refuses a prompt of {len(tokens)} token "
                f"ids: {e}",
                remedy="it must take token ids at completions; correct engine.options",
            ) from e
        if isinstance(read, Completion) and read.num_prompt_tokens != len(tokens):
            raise ConfigurationError(
                f"engine.server {self._settings.url}: it reads {read.num_prompt_tokens} tokens "
                f"where {len(tokens)} were sent",
                remedy="start it so that it adds nothing to a prompt of token ids",
            )
        self._client.probe = ("completions", body)
        try:
            asked = self._client.post("completions", body | _ECHO)
            _log_likelihoods("try-out", tokens, asked)
        except (RequestFailed, EngineError) as e:
            return str(e)
        return ""

    def _body(self, tokens: list[int], **fields: Any) -> dict[str, Any]:
        return {"model": self._server.model, "prompt": tokens, **fields, **self._config.options}

    def _generation_jobs(
        self, requests: list[GenerationRequest]
    ) -> Iterator[Job[GenerationRequest]]:
        for request, tokens in zip(requests, self._tokenizer.prompts(requests), strict=True):
            if isinstance(tokens, Quarantined):
                yield request, tokens, {}
                continue
            sampling = request.sampling
            body = self._body(
                tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=min(sampling.max_new_tokens, self.max_length - len(tokens)),
                stop=list(sampling.stop),
                seed=request.seed,
                **self._server.sampling(sampling.repetition_penalty),
            )
            yield request, Scored(tokens, len(tokens)), body

    def _score_jobs(self, requests: list[ScoreRequest]) -> Iterator[Job[ScoreRequest]]:
        fields = {"max_tokens": 1, "temperature": 0.0, **self._server.sampling(1.0), **_ECHO}
        for request, scored in zip(requests, self._tokenizer.continuations(requests), strict=True):
            body = {} if isinstance(scored, Quarantined) else self._body(scored.tokens, **fields)
            yield request, scored, body

    def _stream(
        self, requests: Iterable[R], prepare: Callable[[list[R]], Iterator[Job[R]]]
    ) -> Iterator[tuple[R, Scored, Any] | Quarantined]:
        """What the server answers, in the order that it comes, `concurrency` requests at a time."""
        jobs = chain.from_iterable(map(prepare, batched(requests, DRAWN_TOGETHER)))
        flying: dict[Future[Any], tuple[R, Scored]] = {}
        answers: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        try:
            while True:
                while len(flying) < self._settings.concurrency and (job := next(jobs, None)):
                    request, scored, body = job
                    if isinstance(scored, Quarantined):
                        yield scored
                        continue
                    future = self._client.submit("completions", body)
                    flying[future] = (request, scored)
                    future.add_done_callback(answers.put)
                if not flying:
                    return
                future = answers.get()
                request, scored = flying.pop(future)
                try:
                    answer = future.result()
                except RequestFailed as e:
                    yield Quarantined(request.id, e.reason, str(e))
                    continue
                yield request, scored, answer
        finally:
            for future in flying:
                future.cancel()


def _choice(request_id: str, answer: Any) -> dict[str, Any]:
    """The one completion in an answer. Raises EngineError for another form."""
    try:
        (choice,) = answer["choices"]
        choice["text"].strip()
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise _other_form(request_id, "one choice with a text") from e
    return choice  # type: ignore[no-any-return]


def _completion(request_id: str, answer: Any) -> Completion | Quarantined:
    choice = _choice(request_id, answer)
    reason = choice.get("finish_reason")
    if reason not in ("stop", "length"):
        return Quarantined(request_id, "aborted", f"the server ended it as {reason!r}")
    try:
        usage = answer["usage"]
        counts = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    except (KeyError, TypeError, ValueError) as e:
        raise _other_form(request_id, "usage with prompt_tokens and completion_tokens") from e
    return Completion(request_id, choice["text"], reason, *counts)


def _log_likelihoods(request_id: str, tokens: list[int], answer: Any) -> list[float | None]:
    """Of each token of the prompt after those before it; None for the first."""
    choice = _choice(request_id, answer)
    try:
        values = choice["logprobs"]["token_logprobs"][: len(tokens)]
        whole = len(values) == len(tokens)
        whole = whole and all(isinstance(value, int | float) for value in values[1:])
    except (KeyError, TypeError) as e:
        raise _other_form(request_id, "logprobs of the prompt (echo)") from e
    if not whole:
        raise _other_form(request_id, f"logprobs of the prompt's {len(tokens)} tokens (echo)")
    return values  # type: ignore[no-any-return]


def _other_form(request_id: str, expected: str) -> EngineError:
    return EngineError(
        f"request {request_id}: the server's answer has another form, expected {expected}",
        remedy="serve the model with a server whose /v1/completions is OpenAI's",
    )
