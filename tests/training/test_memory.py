from __future__ import annotations

import numpy as np
import pytest

from selfalign.config import TrainConfig
from selfalign.errors import OutOfMemory
from selfalign.training.attention import pack_attention
from selfalign.training.batches import MicroBatches, collate_packed
from selfalign.training.examples import EncodedExamples
from selfalign.training.memory import estimate, fit_micro_batch, largest_that_fits, try_step

from .test_packing import SHAPES, make_model, make_rows

FULL = TrainConfig(method="full", precision="float32", global_batch_size=4)


CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"


def too_large(limit: int, tried: list[int], said: str = ""):  # type: ignore[no-untyped-def]
    import torch

    def attempt(size: int) -> None:
        tried.append(size)
        if size > limit:
            raise RuntimeError(said) if said else torch.OutOfMemoryError("CUDA out of memory.")

    return attempt


def test_the_largest_size_that_does_not_run_out_of_memory_is_taken() -> None:
    tried: list[int] = []
    assert largest_that_fits([1, 2, 4, 8], too_large(3, tried)) == 2
    assert tried == [8, 4, 2]
    assert largest_that_fits([1, 2], too_large(0, [])) is None
    assert largest_that_fits([1, 2, 4], too_large(1, [], CUBLAS)) == 1


def test_an_error_that_is_not_of_memory_is_not_swallowed() -> None:
    def attempt(size: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_that_fits([1, 2], attempt)


def test_trying_a_step_leaves_weights_gradients_and_mode_as_they_were() -> None:
    import torch

    model = make_model("llama", SHAPES["llama"])
    assert pack_attention(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    try_step(model, collate_packed(make_rows(), pad_token_id=0), FULL, held_bytes=1000)
    assert not model.training
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize(
    ("choice", "fits_plain", "expected"),
    [(None, 2, (2, False)), (None, 0, (4, True)), (True, 2, (4, True)), (False, 0, None)],
)
def test_activations_are_recomputed_where_one_example_does_not_fit_otherwise(
    monkeypatch: pytest.MonkeyPatch,
    choice: bool | None,
    fits_plain: int,
    expected: tuple[int, bool] | None,
) -> None:
    from selfalign.training import memory

    rows = make_rows()
    examples = EncodedExamples(
        tokens=np.concatenate([tokens for tokens, _ in rows]),
        bounds=np.cumsum([0, *(len(tokens) for tokens, _ in rows)]),
        prompt_lengths=np.array([prompt for _, prompt in rows], dtype=np.int32),
        truncated=0,
        dropped={},
    )
    model = make_model("llama", SHAPES["llama"])
    assert pack_attention(model)
    recomputing: list[bool] = []
    step = memory.try_step

    def with_little_memory(model: object, batch: dict[str, object], *rest: object, **named: int):  # type: ignore[no-untyped-def]
        step(model, batch, *rest, **named)  # type: ignore[arg-type]
        too_large(4 if recomputing else fits_plain, [])(len(batch["sequence_lengths"]))  # type: ignore[arg-type]

    monkeypatch.setattr(memory, "try_step", with_little_memory)

    def fit() -> tuple[int, bool]:
        return fit_micro_batch(
            model,
            FULL.model_copy(update={"gradient_checkpointing": choice}),
            batches=MicroBatches(examples.lengths, global_batch_size=4),
            examples=examples,
            collator=lambda chosen: collate_packed(chosen, pad_token_id=0),
            enable_checkpointing=lambda: recomputing.append(True),
        )

    if expected is None:
        with pytest.raises(OutOfMemory, match="one example of 40 tokens does not fit"):
            fit()
    else:
        assert fit() == expected


def test_eight_bit_moments_and_adapters_take_less() -> None:
    model = make_model("llama", SHAPES["llama"])
    parameters = sum(p.numel() for p in model.parameters())
    assert list(estimate(model, FULL).values()) == [4 * parameters, 4 * parameters, 8 * parameters]
    small = FULL.model_copy(update={"optimizer": "adamw_8bit"})
    assert estimate(model, small)["optimizer"] == 2 * parameters
    model.requires_grad_(False)
    assert list(estimate(model, FULL).values()) == [4 * parameters, 0, 0]
