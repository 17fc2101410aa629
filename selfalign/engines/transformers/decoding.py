"""Draw tokens: each row by its own seed, each row to its own end.

A row's random numbers depend on its seed alone and are drawn before the first token, one per
token; the token is the one at that point of the row's cumulative distribution. So neighbours,
batch size and device change a completion only where rounding in the logits does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from selfalign.engines.base import Completion, GenerationRequest
from selfalign.engines.tokens import TextStream
from selfalign.engines.transformers.forward import Forward

LIKELIEST = 1024  # tokens that mostly hold the nucleus
EVERYTHING = 2.0  # as a nucleus mass: more than all, so that rounding drops no token


@dataclass(slots=True)
class Row:
    """One completion under way. `max_new_tokens` is clipped to what the model has room for."""

    request: GenerationRequest
    prompt: list[int]
    max_new_tokens: int
    stream: TextStream
    num_new_tokens: int = 0
    completion: Completion | None = None

    def accept(self, token: int, end_tokens: frozenset[int]) -> None:
        """Take the next token, and complete the row if that is its last."""
        self.num_new_tokens += 1
        stopped = token in end_tokens or self.stream.append(token)
        if not stopped and self.num_new_tokens < self.max_new_tokens:
            return
        self.completion = Completion(
            id=self.request.id,
            text=self.stream.text,
            finish_reason="stop" if stopped else "length",
            num_prompt_tokens=len(self.prompt),
            num_new_tokens=self.num_new_tokens,
        )


class Sampler:
    """Draws the next token of every row: penalty, temperature, nucleus, in this order."""

    def __init__(self, rows: Sequence[Row], vocabulary: int, device: torch.device) -> None:
        sampling = [row.request.sampling for row in rows]
        self._step = 0
        # numpy's PCG64 takes the whole seed; torch's CPU generator uses its lower 32 bits only.
        sources = [np.random.Generator(np.random.PCG64(row.request.seed)) for row in rows]
        longest = max(row.max_new_tokens for row in rows)
        uniform = np.stack([source.random(longest) for source in sources])  # (rows, tokens)
        self._uniform = torch.from_numpy(uniform).to(device)
        self._temperature = torch.tensor([[s.temperature] for s in sampling], device=device)
        top_p = [[s.top_p if s.top_p < 1 else EVERYTHING] for s in sampling]
        self._top_p = torch.tensor(top_p, device=device)
        self._penalty = torch.tensor([[s.repetition_penalty] for s in sampling], device=device)
        self._seen: Tensor | None = None
        if any(s.repetition_penalty != 1 for s in sampling):
            self._seen = torch.zeros(len(rows), vocabulary, dtype=torch.bool, device=device)
            for row, seen in zip(rows, self._seen, strict=True):
                seen[torch.tensor(row.prompt, device=device)] = True

    def draw(self, logits: Tensor) -> Tensor:
        """Tokens (rows,) from logits (rows, vocabulary)."""
        logits = logits.float()
        if self._seen is not None:
            penalised = torch.where(logits > 0, logits / self._penalty, logits * self._penalty)
            logits = torch.where(self._seen, penalised, logits)
        tokens = logits.argmax(-1)
        if bool((self._temperature > 0).any()):
            tokens = torch.where(self._temperature[:, 0] > 0, self._sample(logits), tokens)
        if self._seen is not None:
            self._seen.scatter_(1, tokens[:, None], True)
        self._step += 1
        return tokens

    def select(self, rows: Tensor) -> None:
        """Keep these rows only, in this order."""
        self._uniform, self._top_p = self._uniform[rows], self._top_p[rows]
        self._temperature, self._penalty = self._temperature[rows], self._penalty[rows]
        self._seen = None if self._seen is None else self._seen[rows]

    def _sample(self, logits: Tensor) -> Tensor:
        temperature = self._temperature.where(self._temperature > 0, 1.0)
        probabilities = (logits / temperature).softmax(-1)
        if bool((self._top_p < EVERYTHING).any()):
            # Tokens exactly as likely as the last one in are in too: their order is arbitrary.
            least = _least_likely(probabilities, self._top_p)
            probabilities = probabilities.masked_fill(probabilities < least, 0)
        cumulative = probabilities.double().cumsum(-1)
        point = self._uniform[:, self._step, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, point, right=True)[:, 0]
        return chosen.clamp(max=logits.shape[-1] - 1)


def _least_likely(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """The lowest probability in each row's nucleus (rows, 1).

    Sorting the whole vocabulary takes longer than a small model's step: first the likeliest alone.
    """
    vocabulary = probabilities.shape[-1]
    ordered = probabilities.topk(min(LIKELIEST, vocabulary)).values
    covered = (top_p >= EVERYTHING) | (ordered.cumsum(-1)[:, -1:] >= top_p)
    if ordered.shape[-1] < vocabulary and not bool(covered.all()):
        whole = ~covered[:, 0]
        least = probabilities.new_empty(len(probabilities), 1)
        least[~whole] = _lowest_within(ordered[~whole], top_p[~whole])
        least[whole] = _lowest_within(
            probabilities[whole].sort(-1, descending=True).values, top_p[whole]
        )
    else:
        least = _lowest_within(ordered, top_p)
    return least.where(top_p < EVERYTHING, 0)


def _lowest_within(ordered: Tensor, top_p: Tensor) -> Tensor:
    """The lowest of probabilities in descending order before which less than `top_p` stands."""
    before = ordered.cumsum(-1) - ordered  # mass of the likelier tokens
    return ordered.masked_fill(before >= top_p, EVERYTHING).amin(-1, keepdim=True)


def decode(
    forward: Forward, rows: Sequence[Row], end_tokens: frozenset[int]
) -> Iterator[list[Completion]]:
    """Run the rows to their ends; yield after each step the completions that it finished.

    Finished rows are removed when they are half of the batch: each removal copies the cache.
    """
    live = list(rows)
    with torch.inference_mode():
        batch, logits = forward.start([row.prompt for row in live], keep=1)
        sampler = Sampler(live, logits.shape[-1], logits.device)
        tokens = sampler.draw(logits[:, 0])
    while True:
        finished: list[Completion] = []
        for row, token in zip(live, tokens.tolist(), strict=True):
            if row.completion is None:
                row.accept(token, end_tokens)
                finished += [row.completion] if row.completion else []
        yield finished
        running = [index for index, row in enumerate(live) if row.completion is None]
        if not running:
            return
        with torch.inference_mode():
            if 2 * len(running) <= len(live):
                kept = torch.tensor(running, device=tokens.device)
                live = [live[index] for index in running]
                batch.select(kept)
                sampler.select(kept)
                tokens = tokens[kept]
            tokens = sampler.draw(forward.step(batch, tokens))
