"""Text to tokens and back, the same for every engine that loads a model.

A prompt gets the special tokens that the model's tokenizer puts before a text (such as BOS),
and none after it. Special tokens that are spelt in a text (`</s>`) are read as plain characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any, TypeVar

from selfalign.engines.base import GenerationRequest, Quarantined, ScoreRequest, unfit
from selfalign.errors import DataError

CONTEXT_TOKENS = 8  # of the prompt, decoded with the first new token: enough for one character
PROBE = "a"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scored:
    """Tokens of prompt and continuation; the continuation's start at `start` (>= 1)."""

    tokens: list[int]
    start: int


class PromptTokenizer:
    """A Hugging Face tokenizer with the limits and rules of an engine.

    Args:
        tokenizer: as AutoTokenizer loads it.
        max_length: tokens of prompt and completion together.
        vocabulary: rows of the model's embedding.

    Raises:
        DataError: a text could contain a token that the model's embedding has no row for.
    """

    def __init__(self, tokenizer: Any, max_length: int, vocabulary: int) -> None:
        self.tokenizer = tokenizer
        self._max_length = max_length
        self._head = self._tokens_before_text()
        never = set(tokenizer.all_special_ids) - set(self._head)
        beyond = {i: text for text, i in tokenizer.get_vocab().items() if i >= vocabulary}
        for token in sorted(beyond.keys() - never):
            raise DataError(
                f"{tokenizer.name_or_path}: token {beyond[token]!r} of the tokenizer has id "
                f"{token}, but the model's embedding has {vocabulary} rows",
                remedy="save the tokenizer that the model was trained with beside it",
            )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text as a prompt."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )
        return [[*self._head, *ids] for ids in encoded["input_ids"]]

    def prompts(self, requests: Sequence[GenerationRequest]) -> list[list[int] | Quarantined]:
        """Token ids of each prompt, or why it cannot be continued."""

        def fitted(request: GenerationRequest, ids: list[int]) -> list[int] | Quarantined:
            if not ids:
                return Quarantined(request.id, "empty", "the prompt has no tokens")
            if len(ids) >= self._max_length:
                return Quarantined.too_long(request.id, len(ids), self._max_length)
            return ids

        bad = [unfit(request) for request in requests]
        good = [each for each, why in zip(requests, bad, strict=True) if why is None]
        encoded = iter(self.encode([request.prompt for request in good]))
        return [
            fitted(request, next(encoded)) if why is None else why
            for request, why in zip(requests, bad, strict=True)
        ]

    def continuations(self, requests: Sequence[ScoreRequest]) -> list[Scored | Quarantined]:
        """Tokens to be scored for each request, or why it cannot be scored.

        Prompt and continuation are tokenised together, as the model would read them; the
        continuation's tokens are those after the longest start that the prompt alone has in
        common. A token that the two texts share is thus scored as the continuation's. vLLM scores
        only with room for one token more, so that is everyone's limit.
        """

        def fitted(
            request: ScoreRequest, prompt: list[int], whole: list[int]
        ) -> Scored | Quarantined:
            both = zip(prompt, whole, strict=False)
            start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
            if start == 0:
                return Quarantined(request.id, "empty", "no token comes before the continuation")
            if len(whole) >= self._max_length:
                return Quarantined.too_long(request.id, len(whole), self._max_length)
            return Scored(whole, start)

        bad = [unfit(request) for request in requests]
        good = [each for each, why in zip(requests, bad, strict=True) if why is None]
        prompts = iter(self.encode([request.prompt for request in good]))
        wholes = iter(self.encode([request.prompt + request.continuation for request in good]))
        return [
            fitted(request, next(prompts), next(wholes)) if why is None else why
            for request, why in zip(requests, bad, strict=True)
        ]

    def stream(self, prompt: Sequence[int], stop: tuple[str, ...]) -> TextStream:
        """What turns the new tokens after `prompt` into text."""
        return TextStream(self.tokenizer, prompt, stop)

    def _tokens_before_text(self) -> list[int]:
        # As `encode` splits: a fast tokenizer keeps that setting, and cannot change it while
        # another thread encodes.
        split = {"split_special_tokens": True}
        plain = self.tokenizer(PROBE, add_special_tokens=False, **split)["input_ids"]
        whole = self.tokenizer(PROBE, **split)["input_ids"]
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return list(whole[:start])
        return []


class TextStream:
    """Text of one completion, token by token, up to the first stop string.

    The text is what the prompt is continued by: `prompt + text` reads as the model wrote it,
    leading space included. An incomplete character at the end is left out.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stop: tuple[str, ...]) -> None:
        self.text = ""
        self._decode = tokenizer.backend_tokenizer.decode if tokenizer.is_fast else tokenizer.decode
        self._tokens = list(prompt[-CONTEXT_TOKENS:])  # those read last, then those not yet read
        self._read = len(self._tokens)
        self._stop = stop
        self._overlap = max(map(len, stop), default=0) - 1  # of a stop string and older text

    def append(self, token: int) -> bool:
        """Add a token; True when a stop string appeared, at which the text is now cut."""
        return self._add([token])

    def extend(self, tokens: Sequence[int]) -> int | None:
        """Add tokens with the same result as `append` for each, in a tenth of the time.

        Returns:
            How many of them there were when a stop string appeared; None where none did.
        """
        before = (self.text, self._tokens, self._read)
        self._tokens = [*self._tokens]
        if not self._add(tokens):
            return None
        self.text, self._tokens, self._read = before
        appended = (n for n, token in enumerate(tokens, start=1) if self.append(token))
        return next(appended, len(tokens))

    def _add(self, tokens: Sequence[int]) -> bool:
        self._tokens += tokens
        before = self._decode(self._tokens[: self._read], skip_special_tokens=True)
        for end in range(len(self._tokens), len(self._tokens) - len(tokens), -1):
            whole = self._decode(self._tokens[:end], skip_special_tokens=True)
            if not whole.endswith("\ufffd"):
                break
        else:
            return False  # bytes that are no character yet
        if len(whole) <= len(before):
            return False
        searched = max(0, len(self.text) - self._overlap)
        self.text += whole[len(before) :]
        self._tokens, self._read = self._tokens[self._read :], end - self._read
        found = [at for at in (self.text.find(stop, searched) for stop in self._stop) if at >= 0]
        if found:
            self.text = self.text[: min(found)]
        return bool(found)


def batched(requests: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` consecutive requests (the last may be shorter), drawn when asked for."""
    iterator = iter(requests)
    while batch := list(islice(iterator, size)):
        yield batch
