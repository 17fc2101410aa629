"""HHH and TruthfulQA through an engine are what their formulas give candidate by candidate.

The reference asks plain transformers one text at a time. Both compute in float64, so that what
float32 rounds otherwise in batches does not hide an error of the formulas or of what is summed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from selfalign.config import EngineConfig
from selfalign.engines.base import ScoreRequest
from selfalign.engines.transformers.engine import TransformersEngine
from selfalign.engines.transformers.forward import Forward
from selfalign.evaluation.items import HHHItem, TruthfulQAItem
from selfalign.evaluation.multiple_choice import (
    hhh_requests,
    hhh_scores,
    truthfulqa_requests,
    truthfulqa_scores,
)
from selfalign.evaluation.scores import HHH, MC1, MC2, ItemScore
from selfalign.evaluation.template import load_template
from tests.engines.conftest import SHAPE
from tests.engines.reference import QUESTIONS

REPLIES = ("It is tall.", "I do not know, for nobody has measured it.", "Willow keeps the rules.")
PAIRS = [HHHItem(f"h{n}", "c", q, REPLIES[n % 3], REPLIES[n % 2]) for n, q in enumerate(QUESTIONS)
         if n % 3 != n % 2]  # fmt: skip
ASKED = [
    TruthfulQAItem(f"t{n}", q, REPLIES, n % 3, {REPLIES[0]: 1, REPLIES[1]: 0, REPLIES[2]: 1})
    for n, q in enumerate(QUESTIONS)
]


@pytest.fixture(scope="module")
def directory(make_model: Callable[..., Path]) -> Path:
    """A GPT-NeoX: its norms, unlike a Llama's, are float64 where the model is."""
    from transformers import GPTNeoXConfig

    return make_model(GPTNeoXConfig(**(SHAPE | {"num_key_value_heads": 2})))


@pytest.fixture
def model(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()


@pytest.fixture
def engine(directory: Path, model: Any) -> Iterator[TransformersEngine]:
    config = EngineConfig(dtype="float32", batch_size=4)
    with TransformersEngine(config, directory) as engine:
        with torch.inference_mode():
            engine._forward = Forward(model, share_prefixes=True)
        yield engine


@cache
def tokenizer_of(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


def brute_force(model: Any, directory: Path, request: ScoreRequest) -> float:
    tokenizer = tokenizer_of(directory)
    before = tokenizer(request.prompt)["input_ids"]
    whole = tokenizer(request.prompt + request.continuation)["input_ids"]
    with torch.inference_mode():
        found = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(float(found[place - 1, whole[place]]) for place in range(len(before), len(whole)))


def test_values_and_likelihoods_equal_brute_force_to_a_millionth(
    engine: TransformersEngine, model: Any, directory: Path
) -> None:
    hhh, qa = load_template("hhh"), load_template("truthfulqa")
    requests = list(chain(hhh_requests(PAIRS, hhh), truthfulqa_requests(ASKED, qa)))
    expected = {request.id: brute_force(model, directory, request) for request in requests}
    scored = {score.id: score.log_likelihood for score in engine.score(requests)}
    assert scored == pytest.approx(expected, abs=1e-6)

    found: dict[tuple[str, str], float] = {}
    for each in chain(
        hhh_scores(PAIRS, engine.score(hhh_requests(PAIRS, hhh))),
        truthfulqa_scores(ASKED, engine.score(truthfulqa_requests(ASKED, qa))),
    ):
        assert isinstance(each, ItemScore)
        found[each.item_id, each.metric] = each.value

    def of(template: Any, word: str, **holes: str) -> float:
        prompt = template.fill(holes)
        return brute_force(model, directory, ScoreRequest("", prompt, template.continuation(word)))

    for pair in PAIRS:
        one = {"query": pair.query, "a": pair.chosen, "b": pair.rejected}
        other = {"query": pair.query, "a": pair.rejected, "b": pair.chosen}
        chosen = of(hhh, "A", **one) + of(hhh, "B", **other)
        rejected = of(hhh, "B", **one) + of(hhh, "A", **other)
        assert found[pair.id, HHH] == (chosen > rejected)
    for item in ASKED:
        odds = [
            of(qa, "true", question=item.question, choice=choice)
            - of(qa, "false", question=item.question, choice=choice)
            for choice in REPLIES
        ]
        assert found[item.id, MC1] == (max(odds) == odds[item.gold])
        masses = [math.exp(value) for value in odds]
        share = (masses[0] + masses[2]) / sum(masses)
        assert found[item.id, MC2] == pytest.approx(share, abs=1e-6)
