"""Examples laid end to end train a model exactly as each would alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from selfalign.training.attention import PACKED, pack_attention
from selfalign.training.batches import IGNORED, collate, collate_packed, token_loss

VOCABULARY = 300
WINDOW = 8  # tokens; shorter than the longer examples
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GROUPED = COMMON | {"num_key_value_heads": 2, "head_dim": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": WINDOW},
    "qwen2": GROUPED
    | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": GROUPED,
    "gemma3_text": GROUPED
    | {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": GROUPED | {"pad_token_id": 0},
    "gpt_neox": COMMON,
    "olmo2": GROUPED,
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4},
}
MIXING: dict[str, dict[str, Any]] = {
    "mamba": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2},
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
}


def make_model(kind: str, shape: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape)).float().eval()


def make_rows() -> list[tuple[Any, int]]:
    """Tokens and length of the prompt; one prompt is empty."""
    rng = np.random.default_rng(0)
    sizes = [(40, 10), (7, 3), (25, 0), (33, 20)]
    return [(rng.integers(3, VOCABULARY, n).astype(np.int32), prompt) for n, prompt in sizes]


def loss_and_gradients(model: Any, batches: list[dict[str, Any]], taught: int) -> tuple[float, Any]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        labels = batch.pop("labels")
        loss = token_loss(model(**batch, use_cache=False), labels, taught)
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", SHAPES)
def test_packed_examples_give_the_loss_and_gradients_of_single_ones(kind: str) -> None:
    import torch

    model = make_model(kind, SHAPES[kind])
    rows = make_rows()
    taught = sum(len(tokens) - max(prompt, 1) for tokens, prompt in rows)
    single, expected = loss_and_gradients(
        model, [collate([row], pad_token_id=0) for row in rows], taught
    )
    assert pack_attention(model)
    assert model.config._attn_implementation == PACKED
    packed, found = loss_and_gradients(
        model, [collate_packed(rows, pad_token_id=0, multiple=8)], taught
    )
    assert packed == pytest.approx(single, abs=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", MIXING)
def test_a_model_that_mixes_packed_examples_is_left_as_it_was(kind: str) -> None:
    model = make_model(kind, MIXING[kind])
    before = model.config._attn_implementation
    assert not pack_attention(model)
    assert model.config._attn_implementation == before


def test_a_packed_row_teaches_the_responses_alone_and_never_over_a_boundary() -> None:
    rows = make_rows()
    batch = collate_packed(rows, pad_token_id=0, multiple=8)
    ids = batch["input_ids"][0]
    assert len(ids) % 8 == 0
    assert batch["labels"][0, 0] == IGNORED
    assert batch["labels"][0, 1:].tolist() == [
        token for tokens, prompt in rows for token in tokens[max(prompt, 1) :].tolist()
    ]
    kept = batch["logits_to_keep"]
    assert ids[kept + 1].tolist() == batch["labels"][0, 1:].tolist()
    ends = set(batch["cu_seq_lens_q"].tolist())
    assert not {int(place) + 1 for place in kept} & ends
    assert batch["position_ids"][0].tolist() == [
        place for length in batch["sequence_lengths"] for place in range(length)
    ]


def test_a_packed_row_of_no_examples_teaches_nothing() -> None:
    batch = collate_packed([], pad_token_id=1)
    assert batch["input_ids"].tolist() == [[1, 1]]
    assert batch["labels"].tolist() == [[IGNORED]]
    assert len(batch["logits_to_keep"]) == 0
    model = make_model("llama", SHAPES["llama"])
    assert pack_attention(model)
    labels = batch.pop("labels")
    loss = token_loss(model(**batch), labels, 5)
    assert float(loss.detach()) == 0.0
    loss.backward()  # a process without examples takes part in the exchange of gradients
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_adapters_stay_float32_and_take_bfloat16_inputs_without_a_copy() -> None:
    import torch

    from selfalign.config import LoraConfig, TrainConfig
    from selfalign.training.model import with_adapter

    config = TrainConfig(
        precision="bfloat16", lora=LoraConfig(target_modules="all-linear", dropout=0.0)
    )
    model = with_adapter(config, make_model("llama", SHAPES["llama"]).to(torch.bfloat16))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    seen: set[torch.dtype] = set()
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.lora_A["default"].register_forward_pre_hook(
                lambda _, inputs: seen.add(inputs[0].dtype)
            )
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=torch.arange(5, 15)[None]).logits.sum().backward()
    assert seen == {torch.bfloat16}
    assert {p.grad.dtype for p in trained} == {torch.float32}
