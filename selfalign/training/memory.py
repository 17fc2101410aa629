"""What a training takes of a device's memory, and the largest micro-batch that fits.

Weights, gradients and the optimiser's state are counted. What activations take is tried: the
heaviest micro-batch goes through one forward and backward pass while the rest's memory is held.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from selfalign.config import TrainConfig
from selfalign.errors import OutOfMemory, is_out_of_memory
from selfalign.training.batches import MicroBatches, token_loss
from selfalign.training.examples import EncodedExamples

_GIB = 2**30
# AdamW's two moments, bytes per trained parameter (8 bit: one each, and a scale per block).
_MOMENTS = {"adamw": 8, "adamw_8bit": 2}
_LARGEST_TOKENS = 16384  # per micro-batch; a GPU is busy with fewer


def estimate(model: Any, config: TrainConfig) -> dict[str, int]:
    """Bytes that a training takes in one process before any activation.

    Counts the model's parameters, without what DeepSpeed divides among processes.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    return {
        "weights": sum(p.numel() * p.element_size() for p in model.parameters()),
        "gradients": sum(p.numel() * p.element_size() for p in trained),
        "optimizer": sum(p.numel() for p in trained) * _MOMENTS[config.optimizer],
    }


def in_gib(sizes: Mapping[str, int]) -> dict[str, float]:
    """For the log."""
    return {f"{name}_gib": round(size / _GIB, 2) for name, size in sizes.items()}


def checkpoint_bytes(model: Any, config: TrainConfig, nodes: int) -> int:
    """What the main process's node saves of a checkpoint: trained weights and optimiser's state.

    DeepSpeed writes the weights twice, and float32 ones to the moments, which nodes divide.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    counts = [int(getattr(p, "ds_numel", p.numel())) for p in trained]  # ZeRO-3 leaves none here
    weights: int = sum(n * p.element_size() for n, p in zip(counts, trained, strict=True))
    moments = sum(counts) * _MOMENTS[config.optimizer]
    if config.deepspeed is None:
        return weights + moments
    return 2 * weights + (moments + 4 * sum(counts)) // nodes


def fit_micro_batch(
    model: Any,
    config: TrainConfig,
    *,
    batches: MicroBatches,
    examples: EncodedExamples,
    collator: Callable[[Sequence[Any]], dict[str, Any]],
    enable_checkpointing: Callable[[], None],
) -> tuple[int, bool]:
    """The largest size of a micro-batch that fits on the model's device; whether recomputing.

    Leaves `batches` divided by a size that was tried.

    Activations are recomputed where the configuration says so, or where it leaves that open and
    not one example fits otherwise. Raises OutOfMemory when nothing fits.
    """
    mean = max(1.0, float(examples.lengths.mean()))
    sizes = batches.possible_sizes(max(1, int(_LARGEST_TOKENS / mean)))
    needed = estimate(model, config)

    def attempt(size: int) -> None:
        _forget_peak()
        batches.divide(size)
        batch = collator([examples[i] for i in batches.heaviest()])
        # The optimiser's state comes with the first step, a second copy of the gradients with
        # torch's data parallelism, and memory in pieces of changing size is never used whole.
        held = needed["optimizer"] + needed["gradients"] + _device_bytes() // 20
        try_step(model, batch, config, held_bytes=held)

    if not config.gradient_checkpointing:
        found = largest_that_fits(sizes, attempt)
        if found is not None:
            return found, False
    if config.gradient_checkpointing is not False:
        enable_checkpointing()
        found = largest_that_fits(sizes, attempt)
        if found is not None:
            return found, True
    raise OutOfMemory(
        f"training: one example of {int(examples.lengths.max())} tokens does not fit into memory "
        f"beside the model: {in_gib(needed)}",
        remedy="lower max_length, leave gradient_checkpointing open, use lora or qlora, optimizer "
        "adamw_8bit, or shard with deepspeed",
    )


def largest_that_fits(sizes: Sequence[int], attempt: Callable[[int], None]) -> int | None:
    """The largest of `sizes` whose `attempt` does not run out of memory; None if each does."""
    for size in sorted(sizes, reverse=True):
        try:
            attempt(size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            return size
        _free()
    return None


def try_step(model: Any, batch: dict[str, Any], config: TrainConfig, *, held_bytes: int) -> None:
    """One forward and backward pass that leaves no trace but what the allocator keeps."""
    import torch

    device = next(model.parameters()).device
    training = model.training
    held = torch.empty(held_bytes, dtype=torch.uint8, device=device)
    try:
        model.train()
        moved = {k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}
        labels = moved.pop("labels")
        low = config.precision == "bfloat16"
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            outputs = model(**moved)
        token_loss(outputs, labels, None).backward()  # type: ignore[no-untyped-call]
    finally:
        del held
        model.zero_grad(set_to_none=True)
        model.train(training)


def peak_memory() -> dict[str, float]:
    """What was tried took of this GPU at its peak, and what the GPU has; for the log."""
    import torch

    return in_gib({"peak": torch.cuda.max_memory_allocated(), "device": _device_bytes()})


def _forget_peak() -> None:
    import torch

    if torch.cuda.is_available():  # the peak of a size that did not fit says nothing
        torch.cuda.reset_peak_memory_stats()


def _device_bytes() -> int:
    import torch

    if not torch.cuda.is_available():
        return 0
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)


def _free() -> None:
    import torch

    gc.collect()  # the error's traceback held the activations
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
