"""The engine seam: generate completions as a stream, score continuations.

Four engines hold to the same contract (`tests/engines/test_contract.py`): `vllm`, `transformers`,
`openai` and a deterministic `fake`. An engine is a context manager that owns its model.

A request that cannot be answered is answered by `Quarantined`, in the stream and without an
exception: one bad row must not end a night. An engine raises only for what concerns all requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

from selfalign.records import FinishReason

QuarantineReason = Literal[
    "empty",  # there is nothing to continue
    "not_unicode",  # half of a surrogate pair: no text that can be encoded
    "nul",  # U+0000, at which C code ends a text
    "too_long",  # no room for one new token
    "refused",  # the engine takes other requests and refuses this one
    "aborted",  # the engine began and gave up
    "never_ending",  # a limit of time was reached
    "duplicate_id",  # a row of the same part, or one being answered, has the same id
]


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


@dataclass(frozen=True, slots=True)
class Quarantined:
    """In place of a Completion or a Score: why the request of this `id` cannot be answered.

    `explanation` is for people: one clause with the numbers, without the text itself.
    """

    id: str
    reason: QuarantineReason
    explanation: str

    @classmethod
    def too_long(cls, request_id: str, num_tokens: int, max_length: int) -> Self:
        """A prompt, or a prompt with what is scored after it, that leaves no room."""
        return cls(
            request_id,
            "too_long",
            f"{num_tokens} tokens leave no room for one more: the limit is {max_length}",
        )


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


class Asked(Protocol):
    """What answers: a loaded model, or one that is loaded when it is first asked."""

    def generate(self, requests: Iterable[GenerationRequest]) -> Iterator[Completion | Quarantined]:
        """One answer to each request, in any order, as soon as it is done; requests are drawn
        lazily."""
        ...

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score | Quarantined]:
        """Log-likelihoods in any order; nothing before a continuation is `empty`, and prompt,
        continuation and one token more than `max_length` are `too_long`."""
        ...


class Engine(Asked, Protocol):
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

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None:
        """Release the model's memory."""
        ...


def blank(row_id: str, text: str) -> Quarantined | None:
    """Set aside a row without text: what surrounds it in a prompt would hide that it has none."""
    if text.strip():
        return None
    return Quarantined(row_id, "empty", "the prompt is empty or white space")


def unfit(request: GenerationRequest | ScoreRequest) -> Quarantined | None:
    """Why no engine can be asked this; None where it can. Every engine asks this first."""
    text = request.prompt
    if isinstance(request, ScoreRequest):
        text += request.continuation
    return blank(request.id, request.prompt) or unreadable(request.id, text)


def unreadable(request_id: str, text: str) -> Quarantined | None:
    """Why `text` cannot be encoded or stored; None where it can."""
    if "\0" in text:
        return Quarantined(request_id, "nul", f"U+0000 at character {text.index(chr(0))}")
    try:
        text.encode()
    except UnicodeEncodeError as e:
        return Quarantined(
            request_id,
            "not_unicode",
            f"half of a surrogate pair, U+{ord(text[e.start]):04X}, at character {e.start}",
        )
    return None
