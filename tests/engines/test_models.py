"""Engines that run a model give what the model gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfalign.engines.base import Engine, ScoreRequest
from tests.engines.conftest import END, VLLM, Ask
from tests.engines.reference import PROMPTS, Reference

pytestmark = pytest.mark.parametrize("engine_and_server", ["transformers", VLLM], indirect=True)


@pytest.fixture(scope="module")
def reference(llama: Path) -> Reference:
    return Reference(llama)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_text_is_that_of_the_librarys_own_loop(
    engine: Engine, reference: Reference, ask: Ask, penalty: float
) -> None:
    prompts = {str(n): prompt for n, prompt in enumerate([*PROMPTS, "Willow", "a"])}
    requests = [
        ask(name, prompt, temperature=0, max_new_tokens=24, repetition_penalty=penalty)
        for name, prompt in prompts.items()
    ]
    for completion in engine.generate(requests):
        text, tokens = reference.greedy(
            prompts[completion.id], max_new_tokens=24, repetition_penalty=penalty
        )
        assert completion.text == text
        assert completion.num_new_tokens == len(tokens)
        assert completion.finish_reason == ("stop" if tokens[-1] == END else "length")


def test_scores_are_sums_of_the_models_own_log_probabilities(
    engine: Engine, reference: Reference
) -> None:
    requests = {
        str(n): ScoreRequest(str(n), prompt, " the old tower" * (n + 1))
        for n, prompt in enumerate([*PROMPTS, "Willow"])
    }
    for score in engine.score(requests.values()):
        request = requests[score.id]
        value, num_tokens = reference.log_likelihood(request.prompt, request.continuation)
        assert score.log_likelihood == pytest.approx(value, abs=1e-4)
        assert score.num_tokens == num_tokens
