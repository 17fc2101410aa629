"""From text to tokens: which tokens a model reads, and which it is taught.

The prompt is tokenised as it is for generation, so that the boundary in training is the one the
model sees when it answers. Everything after the prompt is taught: the response and, unless the
response was cut, the end-of-sequence token after it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfalign.errors import DataError
from selfalign.serving.form import ChatForm
from selfalign.training.base import Example

_PROBE = "a"
_TOKENISED_TOGETHER = 1024  # examples; bounds the memory that Python lists of tokens take


@dataclass(frozen=True, slots=True)
class EncodedExamples:
    """Examples as tokens, laid end to end; a map-style data set for torch.

    Attributes:
        tokens: of all examples; int32, (tokens,).
        bounds: example i is tokens[bounds[i] : bounds[i + 1]]; int64, (examples + 1,).
        prompt_lengths: leading tokens of each example that carry no loss; int32, (examples,).
        truncated: how many were cut at the maximal length.
        dropped: how many are left out, by reason (see `TrainResult.dropped_examples`).
    """

    tokens: NDArray[np.int32]
    bounds: NDArray[np.int64]
    prompt_lengths: NDArray[np.int32]
    truncated: int
    dropped: dict[str, int]

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], int]:
        """Tokens of one example and how many of them are its prompt."""
        start, end = self.bounds[index : index + 2]
        return self.tokens[start:end], int(self.prompt_lengths[index])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per example; (examples,)."""
        return np.diff(self.bounds)

    @property
    def taught(self) -> NDArray[np.int64]:
        """Tokens that carry loss per example; (examples,)."""
        # The first token of a sequence is predicted from nothing.
        return self.lengths - np.maximum(self.prompt_lengths, 1)

    @property
    def sha256(self) -> str:
        """Of tokens and boundaries: two equal digests train alike."""
        content = hashlib.sha256()
        for array in (self.tokens, self.bounds, self.prompt_lengths):
            content.update(array.tobytes())
        return content.hexdigest()


def encode(
    examples: Sequence[Example],
    tokenizer: Any,
    *,
    form: ChatForm,
    eos_token_id: int,
    max_length: int,
) -> EncodedExamples:
    """Tokenise, append the end of sequence, cut at `max_length` tokens.

    Args:
        form: says how a prompt's special tokens are spelt out, as when the model is served.

    Raises DataError when nothing is left to train on.
    """
    rows: list[NDArray[np.int32]] = []
    prompt_lengths: list[int] = []
    truncated = 0
    dropped: Counter[str] = Counter()
    for example, prompt, response in _tokenised(examples, tokenizer, form):
        whole = [*response, eos_token_id] if example.finished else response
        room = max_length - len(prompt)
        if not example.response.strip():
            dropped["empty_response"] += 1
            continue
        if eos_token_id in prompt or eos_token_id in response:
            dropped["end_of_sequence_in_text"] += 1
            continue
        if room < 1:
            dropped["prompt_too_long"] += 1
            continue
        truncated += len(whole) > room
        rows.append(np.array(prompt + whole[:room], dtype=np.int32))
        prompt_lengths.append(len(prompt))
    if not rows:
        raise DataError(
            f"expected examples to train on, got {len(examples)}, of which "
            f"{dropped['prompt_too_long']} were dropped because their prompt fills max_length "
            f"{max_length}, {dropped['empty_response']} because their response is empty, and "
            f"{dropped['end_of_sequence_in_text']} because their text holds an end of sequence",
            remedy="look at the counts of the stages before, or raise max_length",
        )
    return EncodedExamples(
        tokens=np.concatenate(rows),
        bounds=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        prompt_lengths=np.array(prompt_lengths, dtype=np.int32),
        truncated=truncated,
        dropped=dict(sorted(dropped.items())),
    )


def _tokenised(
    examples: Sequence[Example], tokenizer: Any, form: ChatForm
) -> Iterator[tuple[Example, list[int], list[int]]]:
    """Each example with the tokens of its prompt and those of its response after that prompt."""
    head = tokens_before_text(tokenizer)
    for first in range(0, len(examples), _TOKENISED_TOGETHER):
        chunk = examples[first : first + _TOKENISED_TOGETHER]
        texts = [form.spell_out(example.prompt) for example in chunk]
        prompts = plain_tokens(tokenizer, texts)
        answered = [f"{text} {each.response}" for text, each in zip(texts, chunk, strict=True)]
        joined = plain_tokens(tokenizer, answered)
        for example, prompt, whole in zip(chunk, prompts, joined, strict=True):
            if whole[: len(prompt)] == prompt:
                response = whole[len(prompt) :]
            else:
                # A token spans prompt and response. Generation starts from the prompt's own
                # tokens, hence so does training.
                (response,) = plain_tokens(tokenizer, [f" {example.response}"])
            yield example, head + prompt, response


def tokens_before_text(tokenizer: Any) -> list[int]:
    """The special tokens (such as BOS) that generation puts before a prompt; none after it."""
    plain = plain_tokens(tokenizer, [_PROBE])[0]
    whole = tokenizer(_PROBE)["input_ids"]
    starts = range(len(whole) - len(plain) + 1)
    start = next((s for s in starts if whole[s : s + len(plain)] == plain), 0)
    return list(whole[:start])


def plain_tokens(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The tokens of texts in which nothing is a special token."""
    encoding = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,  # "</s>" in an answer is text and must not teach to stop
        return_attention_mask=False,
        verbose=False,  # no warning about texts longer than the model takes: they are cut here
    )
    tokens: list[list[int]] = encoding["input_ids"]
    return tokens
