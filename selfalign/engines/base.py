"""The engine seam: generate completions as a stream, score continuations.

Three engines hold to the same contract (`tests/engines/test_contract.py`): `vllm`,
`transformers` and a deterministic `fake`. An engine is a context manager that owns its model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one completion is drawn.

    Attributes:
        temperature: 0 means greedy.
        top_p: nucleus mass in (0, 1].
        max_new_tokens: the completion ends there with finish reason "length".
        repetition_penalty: 1.0 means none (CTRL's multiplicative penalty).
        stop: strings that end the completion; not part of its text.
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A rendered prompt to be continued.

    `seed` alone determines the random draws (with the prompt and sampling), whatever else is
    generated beside it.
    """

    id: str
    prompt: str
    sampling: Sampling
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to the request of the same `id`. `text` holds no stop string."""

    id: str
    text: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_new_tokens: int

    @classmethod
    def of_too_long_prompt(cls, request: GenerationRequest, num_prompt_tokens: int) -> Self:
        """The answer to a prompt that leaves no room for one new token: an empty text."""
        return cls(request.id, "", "length", num_prompt_tokens, num_new_tokens=0)

    @property
    def too_long(self) -> bool:
        """Whether the prompt left no room for one new token."""
        return self.finish_reason == "length" and self.num_new_tokens == 0


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Asks for the log-likelihood of `continuation` directly after `prompt`."""

    id: str
    prompt: str
    continuation: str


@dataclass(frozen=True, slots=True)
class Score:
    """Natural-log likelihood, summed over the continuation's tokens."""

    id: str
    log_likelihood: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """For the manifest: which engine generated, and on which device."""

    name: str
    version: str
    device: str
    details: dict[str, str] = field(default_factory=dict)


class Engine(Protocol):
    """A loaded model. Raises EngineError and OutOfMemory."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def max_length(self) -> int:
        """Tokens of prompt and completion together that the model takes."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` as a prompt."""
        ...

    def generate(self, requests: Iterable[GenerationRequest]) -> Iterator[Completion]:
        """Completions in any order, each as soon as it is done; requests are drawn lazily.

        Raises:
            DataError: a prompt has no tokens.
        """
        ...

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score]:
        """Log-likelihoods in any order.

        Raises:
            DataError: nothing comes before a continuation, or prompt and continuation together
                exceed `max_length`.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None:
        """Release the model's memory."""
        ...
