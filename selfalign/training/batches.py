"""Which examples go into which step, and how they become tensors.

Step k of an epoch takes the k-th run of `global_batch_size` examples of a permutation that the
seed and the epoch determine. The number of processes changes who computes what, never which
examples a step sees; none is shown twice in an epoch to fill a batch. Within a step, examples that
are padded are sorted by length, so that little is; those that are packed are dealt out by length,
so that micro-batches and processes get equally many tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from selfalign.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

_DEFAULT_SIZE = 8  # examples per micro-batch, where memory cannot be tried
IGNORED = -100  # the label torch.nn.functional.cross_entropy leaves out


class MicroBatches:
    """The micro-batches of one process, epoch by epoch; a batch sampler for torch.

    Set `epoch` before iterating. In an epoch's last step, a process whose peers have more
    micro-batches than it has yields empty ones, so that all make the same number.

    Args:
        lengths: tokens of each example; (examples,).
        micro_batch_size: None: 8, or the largest smaller number that divides.

    Attributes:
        packed: whether a micro-batch costs the sum of its lengths, not its longest times its size.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        *,
        global_batch_size: int,
        micro_batch_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
    ) -> None:
        if global_batch_size % ((micro_batch_size or 1) * world_size):
            raise ConfigurationError(
                f"global_batch_size {global_batch_size} is not a multiple of micro_batch_size "
                f"{micro_batch_size or 1} times {world_size} processes",
                remedy="change one of the two, or the number of processes",
            )
        self.num_examples = len(lengths)
        self.global_batch_size = global_batch_size
        self.steps_per_epoch = math.ceil(self.num_examples / global_batch_size)
        self.epoch = 0
        self.packed = False
        self._lengths = lengths
        self._rank = rank
        self._world_size = world_size
        self._seed = seed
        self.divide(micro_batch_size or max(self.possible_sizes(_DEFAULT_SIZE)))

    def divide(self, micro_batch_size: int) -> None:
        """Make micro-batches of this size, one of `possible_sizes`, from here on."""
        self.micro_batch_size = micro_batch_size
        self.accumulation = self.global_batch_size // (micro_batch_size * self._world_size)

    def possible_sizes(self, most: int) -> list[int]:
        """Sizes of micro-batches, up to `most`, that the global batch divides into; ascending."""
        share = self.global_batch_size // self._world_size
        return [size for size in range(1, min(most, share) + 1) if share % size == 0]

    def heaviest(self) -> NDArray[np.int64]:
        """Indices of the examples of the first epoch's micro-batch that takes most memory."""
        first = (
            self._micro_batch(self.examples_of_step(step + 1), 0)
            for step in range(self.steps_per_epoch)
        )
        return max(first, key=self._tokens)

    def _tokens(self, examples: NDArray[np.int64]) -> int:
        lengths = self._lengths[examples]
        return int(lengths.sum() if self.packed else lengths.max() * len(lengths))

    def _micro_batch(self, examples: NDArray[np.int64], place: int) -> NDArray[np.int64]:
        """The `place`-th part, the heaviest being the first, of a step's examples."""
        if self.packed:
            return examples[place :: self._rounds(len(examples)) * self._world_size]
        start = place * self.micro_batch_size
        return examples[start : start + self.micro_batch_size]

    def __len__(self) -> int:
        """Micro-batches of this process in an epoch."""
        last = self.num_examples - (self.steps_per_epoch - 1) * self.global_batch_size
        return (self.steps_per_epoch - 1) * self.accumulation + self._rounds(last)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.steps_per_epoch):
            examples = self.examples_of_step(self.epoch * self.steps_per_epoch + step + 1)
            for turn in range(self._rounds(len(examples))):
                place = turn * self._world_size + self._rank
                yield self._micro_batch(examples, place).tolist()

    def total_steps(self, *, epochs: float, max_steps: int | None) -> int:
        """`max_steps`, or what `epochs` make (rounded up)."""
        return max_steps or math.ceil(epochs * self.steps_per_epoch)

    def examples_of_step(self, step: int) -> NDArray[np.int64]:
        """Indices of the examples that step `step` (from 1) sees, over all processes.

        The longest come first: what does not fit into memory fails in the first step.
        """
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        start = place * self.global_batch_size
        order = _permutation(self._seed, epoch, self.num_examples)
        chosen = order[start : start + self.global_batch_size]
        return chosen[np.argsort(-self._lengths[chosen], kind="stable")]

    def _rounds(self, num_examples: int) -> int:
        return math.ceil(num_examples / (self.micro_batch_size * self._world_size))


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(size)


def collate(
    rows: Sequence[tuple[NDArray[np.int32], int]], *, pad_token_id: int, multiple: int = 1
) -> dict[str, torch.Tensor]:
    """Pad on the right to the longest row (rounded up to `multiple`).

    Returns input_ids, attention_mask and labels, all int64 (rows, tokens). No rows give one row
    of padding without labels.
    """
    import torch

    longest = max((len(tokens) for tokens, _ in rows), default=2)
    shape = (max(len(rows), 1), math.ceil(longest / multiple) * multiple)
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    attention_mask[:, 0] = 1
    for row, (tokens, prompt_length) in enumerate(rows):
        input_ids[row, : len(tokens)] = tokens
        attention_mask[row, : len(tokens)] = 1
        labels[row, prompt_length : len(tokens)] = tokens[prompt_length:]
    arrays = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def collate_packed(
    rows: Sequence[tuple[NDArray[np.int32], int]], *, pad_token_id: int, multiple: int = 1
) -> dict[str, Any]:
    """Lay the rows end to end in one; nothing is padded but the end, up to `multiple`.

    Returns:
        input_ids, position_ids: int64, (1, tokens); positions begin at 0 in every example.
        logits_to_keep: the tokens after which something is taught; int64, (taught tokens,).
        labels: `IGNORED` and then what is taught after each of these; int64, (1, 1 + taught).
        cu_seq_lens_q, cu_seq_lens_k: where examples begin and end; int32, (examples + 1,).
        max_length_q, max_length_k: tokens of the longest example.
        sequence_lengths: tokens of each example, the padding at the end being one.
    """
    import torch

    tokens = [tokens for tokens, _ in rows] or [np.full(2, pad_token_id, dtype=np.int32)]
    starts = np.cumsum([0, *map(len, tokens)])
    taught = [
        np.arange(start + max(prompt_length, 1), end)
        for (_, prompt_length), start, end in zip(rows, starts, starts[1:], strict=False)
    ]
    places = np.concatenate(taught) if taught else np.zeros(0, dtype=np.int64)
    rest = -int(starts[-1]) % multiple
    if rest:
        tokens.append(np.full(rest, pad_token_id, dtype=np.int32))
    lengths = tuple(map(len, tokens))
    input_ids = np.concatenate(tokens).astype(np.int64)
    bounds = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))
    return {
        "input_ids": torch.from_numpy(input_ids[None]),
        "position_ids": torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])[None]),
        # Logits of the prompts' tokens are never made: they would be most of the memory.
        "logits_to_keep": torch.from_numpy(places - 1),
        "labels": torch.from_numpy(np.concatenate([[IGNORED], input_ids[places]])[None]),
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "sequence_lengths": lengths,
    }


def token_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    """Negative log-likelihood of the labels, summed here, divided by the whole step's labels.

    Every taught token of a step weighs the same, whatever micro-batch or process it falls into.
    """
    from torch.nn.functional import cross_entropy

    targets = labels[:, 1:]  # (rows, tokens - 1)
    logits = outputs.logits
    if logits.shape[1] == labels.shape[1]:  # padded rows: logits of all tokens
        taught = targets != IGNORED
        # Prompts' logits are left out before the conversion: they are most of the memory.
        logits, targets = logits[:, :-1][taught], targets[taught]
    logits = logits.reshape(-1, logits.shape[-1]).float()  # (taught tokens, vocabulary)
    total: torch.Tensor = cross_entropy(logits, targets.reshape(-1), reduction="sum")
    return total / (num_items_in_batch if num_items_in_batch is not None else targets.numel())
