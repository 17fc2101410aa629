"""What is beyond a model's context is known without its weights."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from selfalign.config import EngineConfig, RunConfig
from selfalign.engines.base import GenerationRequest, Quarantined, Sampling, ScoreRequest
from selfalign.engines.open import open_engine
from selfalign.errors import ConfigurationError, DataError
from selfalign.seeds import load_seeds
from selfalign.stages.context_limits import check_long_items, check_prompts

pytestmark = pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed here")
CONFIG = EngineConfig(max_length=40, dtype="float32")
SEEDS = Path(__file__).parents[2] / "seeds"
LONG = "z" * 500
ANSWERS = {"chosen": "a", "rejected": "b"}


@pytest.fixture
def weightless(llama: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    shutil.copytree(llama, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    return directory


def test_the_same_requests_are_too_long_as_for_the_engine(llama: Path, weightless: Path) -> None:
    from selfalign.engines.transformers.limits import ContextLimit

    sampling = Sampling(temperature=0, top_p=1, max_new_tokens=1)
    prompts = [GenerationRequest(f"g{n}", "z" * n, sampling, 0) for n in range(30, 50)]
    scored = [ScoreRequest(f"s{n}", "z" * n, " zz") for n in range(30, 50)]
    limit = ContextLimit(CONFIG, weightless)
    found = [*limit.too_long(prompts), *limit.too_long(scored)]
    with open_engine(CONFIG, llama) as engine:
        answers = [*engine.generate(prompts), *engine.score(scored)]
    set_aside = [each for each in answers if isinstance(each, Quarantined)]
    assert limit.tokens == 40
    assert set(found) == {each.id for each in set_aside}
    assert 0 < len(found) < len(answers)


def with_long_items(model: Path, tmp_path: Path, *pairs: str) -> RunConfig:
    """Of two held-out prompts one is beyond the context, and with the principles both.

    Args:
        pairs: the queries of HHH, which are their names too.
    """

    def row(name: str, prompt: str) -> str:
        return json.dumps({"id": name, "kind": "k", "prompt": prompt, "refusal": "must_not"})

    heldout, hhh = tmp_path / "heldout.jsonl", tmp_path / "hhh.jsonl"
    heldout.write_text("\n".join([row("short", "Hm?"), row("long", LONG)]))
    hhh.write_text(
        "\n".join(
            json.dumps({"id": query[:4], "category": "c", "query": query, **ANSWERS})
            for query in pairs
        )
    )
    return RunConfig.model_validate(
        {
            "base_model": {"path": str(model)},
            "seeds": {"directory": str(SEEDS)},
            "engine": {"dtype": "float32"},
            "evaluate": {"heldout": str(heldout), "hhh": str(hhh), "max_quarantined": 0},
        }
    )


def test_long_items_are_counted_and_named_before_anything_is_trained(
    weightless: Path, tmp_path: Path
) -> None:
    config = with_long_items(weightless, tmp_path, "Hm?", LONG)
    with capture_logs() as logs:
        check_long_items(config, load_seeds(config.seeds))
    said = [
        (line["variant"], line["task"], line["items"], line["first"])
        for line in logs
        if line["event"] == "evaluation.items_beyond_context" and line["limit_tokens"] == 256
    ]
    assert said == [
        ("base", "heldout", 1, ["long"]),
        ("base", "hhh", 1, ["zzzz"]),
        ("base_principled", "heldout", 2, ["short", "long"]),  # the principles alone fill it
        ("base_principled", "hhh", 2, ["Hm?", "zzzz"]),
    ]


@pytest.mark.parametrize("stage", ["instruct", "align", "elaborate"])
def test_a_prompt_that_fills_the_context_is_refused_before_anything_is_generated(
    weightless: Path, tmp_path: Path, stage: str
) -> None:
    config = with_long_items(weightless, tmp_path, "Hm?", LONG)
    seeds = load_seeds(config.seeds)
    with pytest.raises(
        ConfigurationError, match=f"{stage}: its shortest prompt fills the context of 256"
    ):
        check_prompts(config, seeds, [stage, "curate"])
    check_prompts(config, seeds, ["curate", "engrave"])


def test_no_general_request_needs_no_context(weightless: Path, tmp_path: Path) -> None:
    config = with_long_items(weightless, tmp_path, "Hm?", LONG)
    guided = config.instruct.model_copy(update={"general_requests": 0})
    config = config.model_copy(update={"instruct": guided})
    check_prompts(config, load_seeds(config.seeds), ["instruct"])


def test_a_task_without_an_item_that_fits_is_refused_before_anything_is_trained(
    weightless: Path, tmp_path: Path
) -> None:
    config = with_long_items(weightless, tmp_path, LONG)
    told = (
        r"evaluate\.hhh: none of its 1 items fits into the context of 256 tokens, .*"
        r"the first are zzzz"
    )
    with pytest.raises(DataError, match=told):
        check_long_items(config, load_seeds(config.seeds))
