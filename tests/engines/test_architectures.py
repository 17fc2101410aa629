"""The architectures that people align: engines give what plain transformers gives for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from selfalign.config import EngineConfig
from selfalign.engines.base import Completion, Engine, Score, ScoreRequest
from selfalign.engines.open import open_engine
from tests.engines.conftest import MAX_LENGTH, OPTIONS, SHAPE, VLLM, Ask
from tests.engines.reference import PROMPTS, Reference

# Each with what sets it apart. The prompts share a prefix of several windows of 16 tokens.
_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma-2": ("Gemma2Config", {**_HEADS, "sliding_window": 16, "query_pre_attn_scalar": 32}),
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
    "gpt-neox": ("GPTNeoXConfig", {}),
}  # fmt: skip


@pytest.fixture(scope="module", params=ARCHITECTURES)
def directory(request: pytest.FixtureRequest, make_model: Callable[..., Path]) -> Path:
    import transformers

    name, changes = ARCHITECTURES[request.param]
    return make_model(getattr(transformers, name)(**(SHAPE | changes)))


@pytest.fixture(scope="module")
def engine(kind: str, directory: Path) -> Iterator[Engine]:
    config = EngineConfig.model_validate(
        {
            "kind": kind,
            "dtype": "float32",
            "batch_size": 4,
            "max_length": MAX_LENGTH,
            "options": OPTIONS.get(kind, {}),
        }
    )
    with open_engine(config, directory) as opened:
        yield opened


@pytest.mark.parametrize("kind", ["transformers", VLLM], indirect=True)
def test_greedy_texts_and_scores_are_those_of_plain_transformers(
    engine: Engine, directory: Path, ask: Ask
) -> None:
    reference = Reference(directory)
    prompts = {str(n): prompt for n, prompt in enumerate([*PROMPTS[:4], "Willow"])}
    asked = [ask(n, p, temperature=0, max_new_tokens=16) for n, p in prompts.items()]
    texts = {c.id: c.text for c in engine.generate(asked) if isinstance(c, Completion)}
    assert texts == {n: reference.greedy(p, max_new_tokens=16)[0] for n, p in prompts.items()}
    scored = [ScoreRequest(n, prompt, " the old tower") for n, prompt in prompts.items()]
    scores = {s.id: s.log_likelihood for s in engine.score(scored) if isinstance(s, Score)}
    expected = {n: reference.log_likelihood(p, " the old tower")[0] for n, p in prompts.items()}
    assert scores == pytest.approx(expected, abs=1e-4)
