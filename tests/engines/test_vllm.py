"""What the vllm engine adds to the contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vllm is not installed here")

from selfalign.config import EngineConfig
from selfalign.engines.base import Engine
from selfalign.engines.open import open_engine
from selfalign.errors import ConfigurationError, EngineError, OutOfMemory
from tests.engines.conftest import VLLM, Ask, llama_config

pytestmark = pytest.mark.filterwarnings("default")


def refused(llama: Path, **config: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        open_engine(EngineConfig(kind="vllm", **config), llama)
    return str(caught.value)


def test_an_option_vllm_does_not_know_is_named(llama: Path) -> None:
    assert "no_such_option" in refused(llama, options={"no_such_option": 1})


def test_a_limit_beyond_the_models_own_is_refused(llama: Path) -> None:
    own = llama_config().max_position_embeddings
    assert str(own) in refused(llama, max_length=own + 1)


def test_more_memory_than_there_is_is_out_of_memory(llama: Path) -> None:
    config = EngineConfig(kind="vllm", options={"kv_cache_memory_bytes": 2**50})
    with pytest.raises(OutOfMemory, match="memory"):
        open_engine(config, llama)


@pytest.mark.parametrize("engine_and_server", [VLLM], indirect=True)
def test_two_streams_at_once_share_the_engine(engine: Engine, ask: Ask) -> None:
    alone = {c.id: c for c in engine.generate(ask(n, seed=n) for n in range(40))}
    first = iter(engine.generate(ask(n, seed=n) for n in range(40)))
    together = {c.id: c for c in [next(first)]}
    (other,) = engine.generate([ask("x", seed=7)])
    together |= {c.id: c for c in first}
    assert together == alone
    assert other.text == alone["7"].text


@pytest.mark.parametrize("engine_and_server", [VLLM], indirect=True)
def test_a_stream_that_is_left_early_leaves_nothing_in_the_engine(engine: Engine, ask: Ask) -> None:
    stream = engine.generate(ask(n, seed=n, max_new_tokens=200) for n in range(40))
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    list(engine.generate([ask("after")]))
    assert engine._stepping.engine.get_num_unfinished_requests() == 0  # type: ignore[attr-defined]


def test_an_engine_that_fails_ends_every_stream_with_its_error(llama: Path, ask: Ask) -> None:
    config = EngineConfig(kind="vllm", dtype="float32", options={"max_num_seqs": 8})
    with open_engine(config, llama) as engine:
        stream = iter(engine.generate(ask(n, seed=n) for n in range(40)))
        next(stream)

        def die() -> None:
            raise RuntimeError("the core is gone")

        engine._stepping.engine.step = die  # type: ignore[attr-defined]
        with pytest.raises(EngineError, match="the core is gone"):
            list(stream)
        with pytest.raises(EngineError, match="the core is gone"):
            list(engine.generate([ask("x")]))


def test_precision_is_the_checkpoints_own_by_default(llama: Path) -> None:
    from selfalign.engines.vllm import _dtype

    assert _dtype(EngineConfig(kind="vllm"), llama) == "float32"
    assert _dtype(EngineConfig(kind="vllm", dtype="bfloat16"), llama) == "bfloat16"
