"""The thread that owns a vLLM engine, beside engines that fail where a real one seldom does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from selfalign.engines.base import GenerationRequest
from selfalign.engines.stepping import Stepping
from selfalign.engines.vllm import VllmEngine


class Core:
    """As much of a vllm.LLMEngine as the thread calls."""

    def __init__(self) -> None:
        self.engine_core = self

    def add_request(self, name: str, prompt: Any, parameters: Any) -> None:
        raise RuntimeError("the core is gone")

    def shutdown(self) -> None:
        pass


def test_what_the_callers_own_requests_raise_is_not_called_vllms_fault() -> None:
    def requests() -> Iterator[GenerationRequest]:
        raise ValueError("no such hole")
        yield

    engine = VllmEngine.__new__(VllmEngine)
    engine._stepping, engine._in_flight = Stepping(Core), 1
    with pytest.raises(ValueError, match="no such hole"):
        list(engine.generate(requests()))
    engine._stepping.close()


def test_a_stream_whose_only_request_meets_a_dead_core_gets_its_error() -> None:
    stepping = Stepping(Core)
    with stepping.stream() as stream:
        name = stream.submit([1], None, lambda _output: False)
        found, error = stream._outputs.get(timeout=10)  # what `finished` waits for
    stepping.close()
    assert found == name
    assert str(error) == "the core is gone"


def test_who_asks_an_engine_that_was_just_closed_gets_an_error() -> None:
    stepping = Stepping(Core)
    with stepping.stream() as stream:
        stepping.close()
        name = stream.submit([1], None, lambda _output: False)
        found, error = stream._outputs.get(timeout=10)  # what `finished` waits for
    assert found == name
    assert "closed" in str(error)
