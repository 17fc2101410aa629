"""The architectures that people align: engines give what plain transformers gives for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from selfalign.engines.base import Completion, Engine, Score, ScoreRequest
from selfalign.engines.open import open_engine
from selfalign.language_model import WITH_LANGUAGE_MODEL
from tests.engines.conftest import SHAPE, VLLM, Ask, small_engine
from tests.engines.reference import PROMPTS, Reference

ASKED = (*PROMPTS[:4], "Willow")
CONTINUATION = " the old tower"

# Each with what sets it apart. The prompts share a prefix of several windows of 16 tokens.
_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma-2": (
        "Gemma2Config",
        {
            **_HEADS, "sliding_window": 16, "query_pre_attn_scalar": 32,
            "tie_word_embeddings": True,  # vLLM knows no other
        },
    ),
    "gemma-3": (
        "Gemma3TextConfig",
        {**_HEADS, "sliding_window": 16, "query_pre_attn_scalar": 32, "sliding_window_pattern": 2},
    ),
    "qwen-3": ("Qwen3Config", _HEADS),
    "llama-3": (
        "LlamaConfig",
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "mistral": ("MistralConfig", {**_HEADS, "sliding_window": 16}),
    "phi": ("PhiConfig", {"num_key_value_heads": 2}),
    "phi-3": ("Phi3Config", {"pad_token_id": 1}),
    "olmo": ("OlmoConfig", {}),
    "olmo-2": ("Olmo2Config", {}),
    # as many as heads: it has no others, and vLLM would believe the configuration
    "gpt-neox": ("GPTNeoXConfig", {"num_key_value_heads": 2}),
}  # fmt: skip

# Those that take images too: the whole is what plain transformers is given.
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_TEXT = SHAPE | _HEADS | {"pad_token_id": 0}
_WINDOWS = {"sliding_window": 16, "sliding_window_pattern": 2}
MULTIMODAL: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": (
        "Gemma3Config",
        {
            "text_config": {**_TEXT, **_WINDOWS, "query_pre_attn_scalar": 32},
            "vision_config": _TOWER, "mm_tokens_per_image": 4, "image_token_index": 319,
            "boi_token_index": 318, "eoi_token_index": 317,
        },
    ),
    "gemma4": (
        "Gemma4Config",
        {
            "text_config": {
                **_TEXT, **_WINDOWS, "hidden_size_per_layer_input": 0, "global_head_dim": 32,
                "num_kv_shared_layers": 0,
            },
            "vision_config": {
                **_TOWER, "head_dim": 16, "global_head_dim": 16, "num_key_value_heads": 2
            },
        },
    ),
    "llama4": (
        "Llama4Config",
        {
            "text_config": {**_TEXT, "num_local_experts": 2, "intermediate_size_mlp": 96},
            "vision_config": {
                **_TOWER, "vision_output_dim": 32, "projector_input_dim": 32,
                "projector_output_dim": 32,
            },
        },
    ),
    "llava": (
        "LlavaConfig",
        {
            "text_config": {**_TEXT, "model_type": "llama"},
            "vision_config": {**_TOWER, "model_type": "clip_vision_model"},
            "image_token_index": 319,
        },
    ),
}  # fmt: skip


# vLLM's kernel for CPUs, which computes the soft cap of Gemma 2's attention less precisely.
LESS_PRECISE = {("vllm", "gemma-2"): 0.02}


@pytest.fixture(scope="module", params=[*ARCHITECTURES, *MULTIMODAL])
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def directory(architecture: str, make_model: Callable[..., Path]) -> Path:
    import transformers

    if architecture in MULTIMODAL:
        name, options = MULTIMODAL[architecture]
    else:
        name, changes = ARCHITECTURES[architecture]
        options = SHAPE | changes
    return make_model(getattr(transformers, name)(**options))


@dataclass(frozen=True)
class Expected:
    """What plain transformers gives: texts and scores by prompt."""

    texts: dict[str, str]
    scores: dict[str, float]


@pytest.fixture(scope="module")
def expected(directory: Path) -> Expected:
    reference = Reference(directory)
    return Expected(
        {prompt: reference.greedy(prompt, max_new_tokens=16)[0] for prompt in ASKED},
        {prompt: reference.log_likelihood(prompt, CONTINUATION)[0] for prompt in ASKED},
    )


# After `expected`: vLLM changes the library's own classes where it has no model of its own.
@pytest.fixture(scope="module")
def engine(kind: str, architecture: str, directory: Path, expected: Expected) -> Iterator[Engine]:
    if kind == "vllm" and architecture in MULTIMODAL and find_spec("torchvision") is None:
        pytest.skip("vLLM needs torchvision for this, which is not installed here")
    with open_engine(small_engine(kind), directory) as opened:
        yield opened


def test_each_kind_whose_language_model_is_used_alone_is_held_against_its_whole() -> None:
    assert tuple(MULTIMODAL) == WITH_LANGUAGE_MODEL


@pytest.mark.parametrize("engine_and_server", ["transformers", VLLM], indirect=True)
def test_greedy_texts_and_scores_are_those_of_plain_transformers(
    engine: Engine, kind: str, architecture: str, expected: Expected, ask: Ask
) -> None:
    asked = [ask(prompt, prompt, temperature=0, max_new_tokens=16) for prompt in ASKED]
    texts = {c.id: c.text for c in engine.generate(asked) if isinstance(c, Completion)}
    assert texts == expected.texts
    scored = [ScoreRequest(prompt, prompt, CONTINUATION) for prompt in ASKED]
    scores = {s.id: s.log_likelihood for s in engine.score(scored) if isinstance(s, Score)}
    assert scores == pytest.approx(
        expected.scores, abs=LESS_PRECISE.get((kind, architecture), 1e-4)
    )
