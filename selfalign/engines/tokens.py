"""Text to tokens and back, the same for every engine that loads a model.

A prompt gets the special tokens that the model's tokenizer puts before a text (such as BOS),
and none after it. Engines receive token ids, so they cannot disagree about a prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from tokenizers.decoders import DecodeStream

from selfalign.engines.base import GenerationRequest, ScoreRequest
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
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._head = self._tokens_before_text()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text as a prompt."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        return [[*self._head, *ids] for ids in encoded["input_ids"]]

    def prompts(self, requests: Sequence[GenerationRequest]) -> list[list[int]]:
        """Token ids of each prompt. Raises DataError for one that is empty or too long."""
        encoded = self.encode([request.prompt for request in requests])
        for request, ids in zip(requests, encoded, strict=True):
            if not ids:
                raise DataError(
                    f"request {request.id}: the prompt has no tokens",
                    remedy="give the model at least one token to continue",
                )
            if len(ids) + 1 > self.max_length:
                raise self._too_long(request.id, "the prompt", len(ids))
        return encoded

    def continuations(self, requests: Sequence[ScoreRequest]) -> list[Scored]:
        """Tokens to be scored for each request.

        Prompt and continuation are tokenised together, as the model would read them; the
        continuation's tokens are those after the longest start that the prompt alone has in
        common. A token that the two texts share is thus scored as the continuation's.

        Raises:
            DataError: nothing comes before the continuation, or both are too long together
                (vLLM scores only with room for one token more, so that is everyone's limit).
        """
        prompts = self.encode([request.prompt for request in requests])
        wholes = self.encode([request.prompt + request.continuation for request in requests])
        scored = []
        for request, prompt, whole in zip(requests, prompts, wholes, strict=True):
            start = _common_start(prompt, whole)
            if start == 0:
                raise DataError(
                    f"request {request.id}: no token comes before the continuation",
                    remedy="score a continuation of a prompt that has at least one token",
                )
            if len(whole) + 1 > self.max_length:
                raise self._too_long(request.id, "prompt and continuation", len(whole))
            scored.append(Scored(whole, start))
        return scored

    def stream(self, prompt: Sequence[int], stop: tuple[str, ...]) -> TextStream:
        """What turns the new tokens after `prompt` into text."""
        return TextStream(self.tokenizer, prompt, stop)

    def _tokens_before_text(self) -> list[int]:
        plain = self.tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        whole = self.tokenizer(PROBE)["input_ids"]
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return list(whole[:start])
        return []

    def _too_long(self, request_id: str, what: str, length: int) -> DataError:
        return DataError(
            f"request {request_id}: {what} of {length} tokens and one new token exceed the "
            f"limit of {self.max_length}",
            remedy="shorten the text, or raise engine.max_length if the model takes more",
        )


class TextStream:
    """Text of one completion, token by token, up to the first stop string.

    The text is what the prompt is continued by: `prompt + text` reads as the model wrote it,
    leading space included. An incomplete character at the end is left out.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stop: tuple[str, ...]) -> None:
        self.text = ""
        self._fast: Any = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        self._decode = tokenizer.decode if self._fast is None else self._fast.decode
        self._context = list(prompt[-CONTEXT_TOKENS:])
        self._tokens: list[int] = []
        self._stream: DecodeStream | None = None  # None: the text is decoded as a whole
        if self._fast is not None:
            self._stream = DecodeStream(self._context, skip_special_tokens=True)
        self._stop = stop
        self._overlap = max(map(len, stop), default=0) - 1  # of a stop string and older text

    def append(self, token: int) -> bool:
        """Add a token; True when a stop string appeared, at which the text is now cut."""
        searched = max(0, len(self.text) - self._overlap)
        self._tokens.append(token)
        piece = None if self._stream is None else self._step(self._stream, token)
        if piece is None:
            # What was read may change, and with it where a stop string may begin.
            self._stream, searched = None, 0
            self.text = self._decode_all()
        else:
            self.text += piece
        found = [at for at in (self.text.find(stop, searched) for stop in self._stop) if at >= 0]
        if found:
            self.text = self.text[: min(found)]
        return bool(found)

    def _step(self, stream: DecodeStream, token: int) -> str | None:
        """The text that a token adds; None where it changes text that was read before.

        Tokenizers with byte fallback (Llama 2, Mistral) do that: bytes that read as letters are
        no characters any more once a byte follows that cannot stand there.
        """
        try:
            return stream.step(self._fast, token) or ""
        except Exception as error:
            if "Invalid prefix" not in str(error):  # the library has no class of its own for it
                raise
            return None

    def _decode_all(self) -> str:
        """For tokenizers written in Python, and bytes that are no text: not piecewise."""
        before = self._decode(self._context, skip_special_tokens=True)
        whole = self._decode(self._context + self._tokens, skip_special_tokens=True)
        if whole.startswith(before):
            text = whole[len(before) :]
        else:  # the prompt's own last bytes read otherwise now
            text = self._decode(self._tokens, skip_special_tokens=True)
        return str(text).rstrip("\ufffd")


def batched(requests: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` consecutive requests (the last may be shorter), drawn when asked for."""
    iterator = iter(requests)
    while batch := list(islice(iterator, size)):
        yield batch


def _common_start(first: Sequence[int], second: Sequence[int]) -> int:
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length
