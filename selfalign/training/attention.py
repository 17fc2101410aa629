"""Attention over examples laid end to end, and which implementation this machine can run.

Padding-free training puts the examples of a micro-batch into one row. Each example attends to
itself alone: its boundaries reach every attention layer as `cu_seq_lens_q` (the arguments of
FlashAttention's varlen kernels), so no mask of tokens x tokens is ever made.

| implementation | where | how |
| --- | --- | --- |
| flash_attention_3, flash_attention_2 | CUDA, the package is installed | the package's kernels |
| selfalign_packed | everywhere else | torch's varlen kernel where it takes the tensors, else one `scaled_dot_product_attention` per example |
| the model's default, padded | a model that mixes packed examples | one example per row |
"""  # noqa: E501

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    import torch

_log = structlog.get_logger(__name__)

PACKED = "selfalign_packed"
_FLASH_HEAD_DIMENSION = 256  # the largest of FlashAttention 2
_FLASH_CAPABILITY = (8, 0)  # Ampere and later
_PROBE_TOKENS = 24  # per example, fewer than any model's position table holds
# Largest share of the logits' norm by which packed examples may differ from single ones: what
# another order of additions explains. Mixed examples differ by tens of per cent.
_FLOAT32_TOLERANCE = 1e-4
_BFLOAT16_TOLERANCE = 0.03
# And by which an example's may move when the one before changes: nothing, but for experts (MoE)
# whose share of the work changes.
_FLOAT32_LEAK = 1e-5
_BFLOAT16_LEAK = 2e-3


def candidates() -> list[str]:
    """Names of the implementations for packed examples that this machine has, the best first."""
    import torch
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    register()
    found = [PACKED]
    if torch.cuda.is_available():
        if is_flash_attn_2_available():
            found.insert(0, "flash_attention_2")
        if is_flash_attn_3_available():
            found.insert(0, "flash_attention_3")
    return found


def register() -> None:
    """Make `selfalign_packed` known to transformers."""
    from transformers import AttentionInterface

    # No mask function beside it: transformers then makes no mask for this implementation.
    AttentionInterface.register(PACKED, packed_attention)


def packed_attention(
    module: Any,
    query: torch.Tensor,  # (1, heads, tokens, head dimension)
    key: torch.Tensor,  # (1, key-value heads, tokens, head dimension)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    sequence_lengths: Sequence[int],
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each of the examples; returns (1, tokens, heads, head dimension).

    Args:
        sliding_window: how many tokens a token sees, itself included; None: all before it.
        cu_seq_lens_q: where examples begin and end; int32, (examples + 1,).
        sequence_lengths: the same as lengths, known to the host without asking the device.
    """
    window = sliding_window if sliding_window and sliding_window < max_length_q else None
    if _varlen_takes(query, key, value, dropout):
        result = _varlen(query, key, value, cu_seq_lens_q, max_length_q, scaling, window)
    else:
        result = _by_example(query, key, value, sequence_lengths, scaling, dropout, window)
    return result, None


def _varlen_takes(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float
) -> bool:
    import torch

    if not query.is_cuda or dropout or _varlen_parameters() is None:
        return False
    head = query.shape[-1]
    return (
        query.dtype in (torch.bfloat16, torch.float16)
        and query.dtype == key.dtype == value.dtype
        and head == value.shape[-1] <= _FLASH_HEAD_DIMENSION
        and head % 8 == 0
        and _is_recent(query.device)
    )


@cache
def _is_recent(device: torch.device) -> bool:
    import torch

    return torch.cuda.get_device_capability(device) >= _FLASH_CAPABILITY


@cache
def _varlen_parameters() -> frozenset[str] | None:
    """Parameters of torch's varlen_attn; None where this torch has none that knows windows."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    names = frozenset(inspect.signature(varlen_attn).parameters)
    return names if {"window_size", "scale"} <= names else None


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    grouped = query.shape[1] // key.shape[1]
    options: dict[str, Any] = {}
    if grouped > 1:
        if "enable_gqa" in (_varlen_parameters() or ()):
            options["enable_gqa"] = True
        else:
            key, value = (each.repeat_interleave(grouped, dim=1) for each in (key, value))
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))  # (tokens, heads, d)
    # A window of (w, 0) shows a token itself and w before it.
    sides = (-1 if window is None else window - 1, 0)
    out: Any = varlen_attn(
        q, k, v, bounds, bounds, longest, longest, scale=scaling, window_size=sides, **options
    )
    result: torch.Tensor = out.unsqueeze(0)
    return result


def _by_example(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    parts = []
    split = (torch.split(each, list(lengths), dim=2) for each in (query, key, value))
    for q, k, v in zip(*split, strict=True):
        length = q.shape[2]
        banded = None
        if window is not None and window < length:
            banded = torch.ones(length, length, dtype=torch.bool, device=q.device)
            banded = banded.tril().triu(1 - window)
        parts.append(
            scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=banded,
                dropout_p=dropout,
                is_causal=banded is None,
                scale=scaling,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2)


def pack_attention(model: Any, *, autocast: bool = False) -> bool:
    """Set the best implementation for packed examples; False leaves the model as it was.

    Tried on the model itself, on its device: two examples in one row must get the logits that
    each gets alone, and the second's must not move when the first is another. So whatever makes a
    model mix them (recurrent layers, tables of positions, masks of its own) is found without a
    list of architectures.

    Args:
        autocast: whether training computes in bfloat16 whatever the weights' precision.
    """
    import torch
    from transformers.integrations import is_deepspeed_zero3_enabled

    before, training = model.config._attn_implementation, model.training
    if is_deepspeed_zero3_enabled():
        _log.warning("training.padded", attention=before, cause="ZeRO-3: weights are divided")
        return False
    rows = _probe(model)
    model.eval()  # no dropout: the two must agree
    try:
        for name in candidates():
            model.set_attn_implementation(before)
            with (
                torch.no_grad(),
                torch.autocast(rows[0].device.type, torch.bfloat16, enabled=autocast),
            ):
                cause = _difference(model, rows, name)
            if cause is None:
                varlen = rows[0].is_cuda and _varlen_parameters() is not None
                _log.info("training.packed", attention=name, torch_varlen_kernel=varlen)
                return True
            _log.warning("training.attention_unfit", attention=name, cause=cause)
    finally:
        model.train(training)
    model.set_attn_implementation(before)
    _log.warning("training.padded", attention=before)
    return False


def _difference(model: Any, rows: list[torch.Tensor], name: str) -> str | None:
    """What is wrong with two examples in one row under this implementation; None if nothing."""
    import torch

    reference = torch.cat([_alone(model, row) for row in rows])
    low = reference.dtype == torch.bfloat16
    try:
        model.set_attn_implementation(name)
        if model.config._attn_implementation != name:
            return "the model has attention of its own"
        found = _together(model, rows)
        other = _together(model, [rows[0].flip(1), rows[1]])
    except (TypeError, ValueError, ImportError, RuntimeError) as e:
        return str(e)[:200]
    difference = _share(found - reference, reference)
    if not difference <= (_BFLOAT16_TOLERANCE if low else _FLOAT32_TOLERANCE):
        return f"logits differ from a single example's by {difference:.2g} of their norm"
    second = rows[0].shape[1]
    leaked = _share(found[second:] - other[second:], found[second:])
    if not leaked <= (_BFLOAT16_LEAK if low else _FLOAT32_LEAK):
        return f"an example's logits depend on the one before, by {leaked:.2g} of their norm"
    return None


def _share(part: torch.Tensor, whole: torch.Tensor) -> float:
    return float(part.float().norm() / whole.float().norm())


def _probe(model: Any) -> list[torch.Tensor]:
    """Two examples of different length, (1, tokens) each."""
    import torch

    vocabulary = model.config.get_text_config().vocab_size
    device = next(model.parameters()).device
    numbers = torch.arange(2 * _PROBE_TOKENS, device=device) * 7919 % vocabulary
    return [numbers[None, : _PROBE_TOKENS - 5], numbers[None, _PROBE_TOKENS:]]


def _alone(model: Any, row: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=row, use_cache=False).logits[0]
    return logits  # (tokens, vocabulary)


def _together(model: Any, rows: list[torch.Tensor]) -> torch.Tensor:
    """Logits of the rows laid end to end, with all that `collate_packed` gives; (tokens, vocab)."""
    import torch

    lengths = tuple(row.shape[1] for row in rows)
    device = rows[0].device
    bounds = torch.tensor([0, lengths[0], sum(lengths)], dtype=torch.int32, device=device)
    logits: torch.Tensor = model(
        input_ids=torch.cat(rows, dim=1),
        position_ids=torch.cat([torch.arange(n, device=device) for n in lengths])[None],
        logits_to_keep=torch.arange(sum(lengths), device=device),
        cu_seq_lens_q=bounds,
        cu_seq_lens_k=bounds,
        max_length_q=max(lengths),
        max_length_k=max(lengths),
        sequence_lengths=lengths,
        use_cache=False,
    ).logits[0]
    return logits
