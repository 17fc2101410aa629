from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from selfalign.errors import ConfigurationError
from selfalign.training.batches import IGNORED, MicroBatches, collate, token_loss


def lengths(count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng(count).integers(1, 50, count)


def ranks(
    count: int, world_size: int, epoch: int = 0, *, packed: bool = False
) -> list[list[list[int]]]:
    """Micro-batches of every rank, with a global batch of 8 in micro-batches of 2."""
    all_batches = []
    for rank in range(world_size):
        batches = MicroBatches(
            lengths(count),
            global_batch_size=8,
            micro_batch_size=2,
            rank=rank,
            world_size=world_size,
            seed=1,
        )
        batches.epoch = epoch
        batches.packed = packed
        all_batches.append(list(batches))
        assert len(batches) == len(all_batches[-1])
    return all_batches


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 7, 8, 19, 40])
@pytest.mark.parametrize("packed", [False, True])
def test_an_epoch_shows_every_example_once_in_equally_many_micro_batches(
    count: int, world_size: int, packed: bool
) -> None:
    per_rank = ranks(count, world_size, packed=packed)
    assert all(len(batch) <= 2 for rank in per_rank for batch in rank)
    assert sorted(i for rank in per_rank for batch in rank for i in batch) == list(range(count))
    assert len({len(rank) for rank in per_rank}) == 1


def test_a_step_sees_the_same_examples_however_many_processes_share_it() -> None:
    def steps(world_size: int) -> list[set[int]]:
        turns = list(zip(*ranks(24, world_size), strict=True))
        per_step = 4 // world_size
        return [
            {i for turn in turns[start : start + per_step] for batch in turn for i in batch}
            for start in range(0, len(turns), per_step)
        ]

    assert steps(1) == steps(2) == steps(4)
    assert len(steps(1)) == 3


def test_packed_micro_batches_of_a_step_hold_about_equally_many_tokens() -> None:
    def spread(packed: bool) -> float:
        batches = MicroBatches(lengths(512), global_batch_size=512, micro_batch_size=32)
        batches.packed = packed
        tokens = [int(lengths(512)[batch].sum()) for batch in batches]
        assert tokens[0] == max(tokens)
        return max(tokens) / min(tokens)

    assert spread(packed=True) < 1.1
    assert spread(packed=False) > 5


@pytest.mark.parametrize("packed", [False, True])
def test_the_heaviest_micro_batch_is_the_one_with_most_tokens_in_the_first_epoch(
    packed: bool,
) -> None:
    sizes = lengths(100)
    batches = MicroBatches(sizes, global_batch_size=16, micro_batch_size=4, seed=3)
    batches.packed = packed
    costs = [int(sizes[b].sum() if packed else sizes[b].max() * len(b)) for b in batches]
    heaviest = batches.heaviest()
    cost = sizes[heaviest].sum() if packed else sizes[heaviest].max() * len(heaviest)
    assert int(cost) == max(costs)


def test_without_a_size_a_micro_batch_is_the_largest_divisor_up_to_eight() -> None:
    def size(global_batch_size: int, world_size: int = 1) -> int:
        return MicroBatches(
            lengths(9), global_batch_size=global_batch_size, world_size=world_size
        ).micro_batch_size

    assert [size(768), size(12), size(7), size(768, 4), size(22, 2)] == [8, 6, 7, 8, 1]


def test_epochs_differ_and_repeat_exactly() -> None:
    assert ranks(19, 1, epoch=0) == ranks(19, 1, epoch=0)
    assert ranks(19, 1, epoch=0) != ranks(19, 1, epoch=1)


def test_examples_of_a_step_are_those_its_micro_batches_hold() -> None:
    batches = MicroBatches(lengths(19), global_batch_size=8, micro_batch_size=2, seed=5)
    batches.epoch = 2
    flat = [i for batch in batches for i in batch]
    steps = range(2 * 3 + 1, 3 * 3 + 1)
    assert [int(i) for step in steps for i in batches.examples_of_step(step)] == flat


def test_less_than_a_global_batch_is_still_a_step() -> None:
    batches = MicroBatches(lengths(3), global_batch_size=768, micro_batch_size=8)
    assert batches.total_steps(epochs=1, max_steps=None) == 1
    assert [len(batch) for batch in batches] == [3]


def test_steps_follow_epochs_unless_max_steps_is_given() -> None:
    batches = MicroBatches(lengths(19), global_batch_size=8, micro_batch_size=2)
    assert batches.total_steps(epochs=2.5, max_steps=None) == 8
    assert batches.total_steps(epochs=2.5, max_steps=4) == 4


def test_a_global_batch_that_processes_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"8 is not a multiple of .* 2 times 3 processes"):
        MicroBatches(lengths(9), global_batch_size=8, micro_batch_size=2, world_size=3)


def test_losses_of_micro_batches_add_up_to_the_mean_over_all_tokens() -> None:
    import torch

    torch.manual_seed(0)
    rows = [(np.arange(1, size + 1, dtype=np.int32), 2) for size in (3, 9, 5, 4)]
    whole = collate(rows, pad_token_id=0)
    logits = torch.randn(*whole["input_ids"].shape, 12)
    mean = token_loss(SimpleNamespace(logits=logits), whole["labels"], None)

    taught = int((whole["labels"] != IGNORED).sum())
    parts = []
    for chosen in ([0], [1, 2], [3], []):
        part = collate([rows[i] for i in chosen], pad_token_id=0)
        width = part["input_ids"].shape[1]
        outputs = SimpleNamespace(logits=logits[chosen or [0], :width])
        parts.append(token_loss(outputs, part["labels"], taught))
    assert torch.stack(parts).sum().item() == pytest.approx(mean.item(), rel=1e-6)
    assert parts[-1].item() == 0


def test_padding_is_neither_read_nor_taught() -> None:
    rows = [(np.array([5, 6, 7], np.int32), 1), (np.array([8], np.int32), 1)]
    batch = collate(rows, pad_token_id=9, multiple=4)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 9], [8, 9, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7, IGNORED], [IGNORED] * 4]
