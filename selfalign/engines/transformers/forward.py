"""Forward passes over padded batches; the prefix that all rows share is computed and kept once.

`transformers` lets a model's attention be replaced by name. The attention registered here takes
the prefix's keys and values once, with batch size 1, beside each row's own: a step reads the
prefix once for the whole batch. The library's `generate` would copy it to every row.

The logits of a batch depend on the batch alone, to the bit, whatever ran before it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

from selfalign.errors import ConfigurationError, DataError

ATTENTION = "selfalign_shared_prefix"
BLOCK = 32  # tokens; prefixes are cut to a multiple, so that batches in sequence share one
ROOM = 64  # tokens that a cache grows by, so that it is not copied at every step
# Attention weights held at a time; more rows are split. On a CPU they should stay in its cache.
MAX_WEIGHTS_CPU = 2**20
MAX_WEIGHTS_GPU = 2**26
PROBE_TOLERANCE = 1e-4  # of the largest logit
LOW_PRECISION_TOLERANCE = 0.15  # 16 bits round more, and may route experts otherwise
# Tokens. The probe of a model with a sliding window is longer than that; Gemma's is 512.
MAX_PROBED_WINDOW = 1024

KeysValues = tuple[Tensor, Tensor]  # each (1 or rows, key-value heads, tokens, head size)


def shared_prefix_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    shared_prefix: list[KeysValues] | None = None,
    sliding_window: int | None = None,
    query_positions: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend to the prefix (what of it the window holds) and to a row's own tokens (by the mask).

    Args:
        query: (rows, heads, new tokens, head size).
        key: (rows, key-value heads, own tokens, head size); `value` likewise.
        attention_mask: additive, (rows, 1, new tokens, own tokens); it knows the window.
        shared_prefix: keys and values per layer; None: no prefix.
        sliding_window: tokens that a query sees, itself included; None: all before it.
        query_positions: (rows, new tokens), the prefix counted in.

    Returns:
        (rows, new tokens, heads, head size), and no weights.

    Raises:
        ValueError: the model caps its attention or gives it sinks.
    """
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ValueError("attention with a cap or with sinks")
    rows, heads, new, size = query.shape
    if shared_prefix is None and new > 1:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output, None
    prefix, mask = (key[:1, :, :0], value[:1, :, :0]), None
    if shared_prefix is not None:
        prefix = shared_prefix[module.layer_idx]  # type: ignore[index]
        if sliding_window is not None and query_positions is not None:
            prefix, mask = _within_window(prefix, query_positions, sliding_window)
    query = query * (size**-0.5 if scaling is None else scaling)
    most = MAX_WEIGHTS_CPU if query.device.type == "cpu" else MAX_WEIGHTS_GPU
    step = max(1, most // (heads * new * (key.shape[2] + prefix[0].shape[2])))
    pieces = []
    for start in range(0, rows, step):
        s = slice(start, start + step)
        of_prefix = None if mask is None else mask[s]
        pieces.append(_attend(query[s], key[s], value[s], attention_mask[s], prefix, of_prefix))
    return torch.cat(pieces), None


def _within_window(prefix: KeysValues, positions: Tensor, window: int) -> tuple[KeysValues, Tensor]:
    """The prefix's tokens that some query may see, and an additive mask of what each may."""
    length = prefix[0].shape[2]
    first = max(0, length - window + 1)  # the first query stands right behind the prefix
    places = torch.arange(first, length, device=positions.device)
    hidden = positions[:, None, :, None] - places >= window  # (rows, 1, new, prefix tokens)
    mask = torch.zeros(hidden.shape, dtype=prefix[0].dtype, device=positions.device)
    return (prefix[0][:, :, first:], prefix[1][:, :, first:]), mask.masked_fill(hidden, -torch.inf)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    prefix: KeysValues,
    prefix_mask: Tensor | None,
) -> Tensor:
    """Attention with the prefix's part as one matrix product per key-value head."""
    rows, heads, new, size = query.shape
    prefix_key, prefix_value = prefix[0][0], prefix[1][0]  # (kv heads, prefix tokens, size)
    kv_heads, length, _ = prefix_key.shape
    group = heads // kv_heads * new
    query = query.reshape(rows, kv_heads, group, size)
    own = query @ key.transpose(2, 3)  # (rows, kv heads, group, own tokens)
    own = _masked(own, mask)
    gathered = query.transpose(0, 1).reshape(kv_heads, rows * group, size)
    shared = gathered @ prefix_key.transpose(1, 2)  # (kv heads, rows * group, prefix tokens)
    shared = shared.view(kv_heads, rows, group, length).transpose(0, 1)
    if prefix_mask is not None:
        shared = _masked(shared, prefix_mask)
    weights = torch.cat([shared, own], dim=-1).softmax(-1, dtype=torch.float32).to(value.dtype)
    of_prefix = weights[..., :length].transpose(0, 1).reshape(kv_heads, rows * group, length)
    of_prefix = (of_prefix @ prefix_value).view(kv_heads, rows, group, -1).transpose(0, 1)
    output = of_prefix + weights[..., length:] @ value
    return output.reshape(rows, heads, new, -1).transpose(1, 2)


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores (rows, kv heads, heads per kv * new, tokens) under a mask (rows, 1, new, tokens)."""
    rows, kv_heads, _, tokens = scores.shape
    by_query = scores.reshape(rows, kv_heads, -1, mask.shape[2], tokens) + mask[:, :, None]
    return by_query.view(scores.shape)


AttentionInterface.register(ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(ATTENTION, eager_mask)


class RowsLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values of the rows' own tokens, written into room made beforehand.

    The parent copies everything at every step: without a prefix, that halves tokens per second.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> KeysValues:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._room = [key_states[:, :, :0], value_states[:, :, :0]]
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if end > self._room[0].shape[2]:
            longer = (0, 0, 0, end + ROOM - start)
            self._room = [functional.pad(room[:, :, :start], longer) for room in self._room]
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start:end] = states
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`, in that order."""
        used = self.get_seq_length()
        self._room = [room[indices] for room in self._room]
        self.keys, self.values = (room[:, :, :used] for room in self._room)


@dataclass(slots=True)
class Batch:
    """Rows under way.

    Attributes:
        cache: keys and values of the rows' own tokens.
        prefix: keys and values per layer of the tokens that all rows share; None: none.
        visible: (rows, own tokens) 1 where a token is no padding; grows by a column per step.
        positions: (rows, 1), of the next token.
    """

    cache: Cache
    prefix: list[KeysValues] | None
    visible: Tensor
    positions: Tensor

    def select(self, rows: Tensor) -> None:
        """Keep these rows only, in this order."""
        self.cache.batch_select_indices(rows)
        self.visible, self.positions = self.visible[rows], self.positions[rows]


class Forward:
    """Runs a causal language model over batches.

    Attributes:
        shares_prefixes: whether the tokens that all rows start with are computed once.

    Raises:
        ConfigurationError: the model cannot be run in padded batches, one token at a time.
    """

    def __init__(self, model: PreTrainedModel, *, share_prefixes: bool) -> None:
        self.model = model
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        self._prefix_ids: list[int] = []
        self._prefix: list[KeysValues] = []
        self.shares_prefixes = False
        self._window = self._widest_window()
        alone = torch.cat([self.start([row], 1)[1][:, 0] for row in self._probes()])
        # Models whose attention is more than keys, values and a mask (windows, biases, sinks,
        # caps) give other logits with the shared prefix, and are then run the plain way.
        own_attention = model.config._attn_implementation
        if share_prefixes and own_attention == "sdpa" and self._window is not None:
            model.set_attn_implementation(ATTENTION)
            self.shares_prefixes = True
            if self._batches_give(alone):
                return
            model.set_attn_implementation(own_attention)
            self.shares_prefixes = False
        if not self._batches_give(alone):
            raise ConfigurationError(
                f"{type(model).__name__} gives other results in padded batches, token by token, "
                "than in one pass; the transformers engine needs them to be the same",
                remedy="choose engine.kind vllm, or another model",
            )

    def start(self, sequences: Sequence[list[int]], keep: int) -> tuple[Batch, Tensor]:
        """Run the sequences, padded on the left.

        Args:
            sequences: token ids of each row, none empty.
            keep: the number of last positions whose logits are wanted; at most the shortest
                sequence's length plus its padding.

        Returns:
            The batch, and logits (rows, keep, vocabulary).

        Raises:
            DataError: the logits are not numbers.
        """
        shared = self._shared_length(sequences, keep) if self.shares_prefixes else 0
        own = [sequence[shared:] for sequence in sequences]
        width = max(map(len, own))
        visible = self._tensor([[0] * (width - len(row)) + [1] * len(row) for row in own])
        positions = (visible.cumsum(-1) - 1).clamp(min=0) + shared
        batch = Batch(
            cache=self._empty_cache(),
            prefix=self._prefix_of(sequences[0][:shared]) if shared else None,
            visible=visible,
            positions=positions[:, -1:] + 1,
        )
        ids = self._tensor([[0] * (width - len(row)) + row for row in own])
        logits = self._run(batch, ids, positions, keep)
        if bool(logits[:, -1].isnan().any()):
            raise DataError(
                f"{self.model.name_or_path}: the model gives no numbers (NaN) in "
                f"{str(self.model.dtype).removeprefix('torch.')}",
                remedy="set engine.dtype to bfloat16 or float32; if it is, the weights are damaged",
            )
        return batch, logits

    def step(self, batch: Batch, tokens: Tensor) -> Tensor:
        """Append one token (rows,) to each row; logits (rows, vocabulary) of the next."""
        one = batch.visible.new_ones(len(tokens), 1)
        batch.visible = torch.cat([batch.visible, one], dim=-1)
        logits = self._run(batch, tokens[:, None], batch.positions, 1)
        batch.positions = batch.positions + 1
        return logits[:, 0]

    def _run(self, batch: Batch, ids: Tensor, positions: Tensor, keep: int) -> Tensor:
        arguments: dict[str, Any] = {
            "past_key_values": batch.cache,
            "attention_mask": batch.visible,
        }
        if batch.prefix is not None:
            arguments |= {"shared_prefix": batch.prefix, "query_positions": positions}
        if "position_ids" in self._takes:
            arguments["position_ids"] = positions
        if "logits_to_keep" in self._takes:
            arguments["logits_to_keep"] = keep
        logits: Tensor = self.model(input_ids=ids, use_cache=True, **arguments).logits
        return logits[:, -keep:]

    def _shared_length(self, sequences: Sequence[list[int]], keep: int) -> int:
        """Tokens that all rows start with, in whole blocks, leaving `keep` to each row."""
        first, last = min(sequences), max(sequences)  # the extremes share what all share
        limit = min(map(len, sequences)) - keep
        length = 0
        while length < limit and first[length] == last[length]:
            length += 1
        return length // BLOCK * BLOCK

    def _prefix_of(self, ids: list[int]) -> list[KeysValues]:
        """Keys and values of these tokens; those of the last prefix are kept."""
        if ids != self._prefix_ids:
            every = self._tensor([[1] * len(ids)])
            batch = Batch(self._empty_cache(), None, every, every)
            self._run(batch, self._tensor([ids]), every.cumsum(-1) - 1, 1)
            self._prefix = [(layer.keys, layer.values) for layer in batch.cache.layers]
            self._prefix_ids = ids
        return self._prefix

    def _empty_cache(self) -> Cache:
        plain = DynamicCache(config=self.model.config)
        if not self.shares_prefixes:
            return plain
        return Cache(layers=[RowsLayer() for _ in plain.layers])

    def _widest_window(self) -> int | None:
        """The widest sliding window, 0 without one; None: layers that cannot share a prefix."""
        layers = DynamicCache(config=self.model.config).layers
        if {type(layer) for layer in layers} - {DynamicLayer, DynamicSlidingWindowLayer}:
            return None
        window: int = max([getattr(layer, "sliding_window", 0) for layer in layers], default=0)
        return window if window <= MAX_PROBED_WINDOW else None

    def _probes(self) -> list[list[int]]:
        """Two made-up sequences of unequal length that share a block, and more than the window."""
        vocabulary = self.model.config.get_text_config(decoder=True).vocab_size
        ids = [place % vocabulary for place in range((self._window or 0) + BLOCK + 6)]
        return [ids[:-3], ids]

    def _batches_give(self, alone: Tensor) -> bool:
        """Whether a batch, the last token by a step, gives these last logits of the probes."""
        probes = self._probes()
        try:
            batch, _ = self.start([row[:-1] for row in probes], 1)
            logits = self.step(batch, self._tensor([row[-1] for row in probes]))
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, IndexError, RuntimeError):
            return False
        precise = torch.finfo(alone.dtype).bits >= 32
        tolerance = PROBE_TOLERANCE if precise else LOW_PRECISION_TOLERANCE
        atol = tolerance * float(alone.abs().max())
        return bool(torch.allclose(alone, logits, rtol=0, atol=atol))

    def _tensor(self, values: list[Any]) -> Tensor:
        return torch.tensor(values, device=self.model.device)
