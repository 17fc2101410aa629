"""The fake engine's script and planned failures; the rest of it is in the contract."""

from __future__ import annotations

from typing import Any

import pytest

from selfalign.config import EngineConfig
from selfalign.engines.base import Engine, ScoreRequest
from selfalign.engines.open import open_engine
from selfalign.errors import ConfigurationError, EngineError
from tests.engines.conftest import Ask


def fake(**options: Any) -> Engine:
    return open_engine(EngineConfig(kind="fake", options=options), "no model")


def test_the_first_response_that_matches_is_given(ask: Ask) -> None:
    engine = fake(
        responses=[
            {"match": r"tasks about (?P<topic>\w+)", "text": " 1. Describe $topic.\n2. $word1"},
            {"match": "tasks", "text": "never"},
        ]
    )
    (completion,) = engine.generate([ask("x", "Five tasks about rivers:")])
    assert completion.text.startswith(" 1. Describe rivers.\n2. ")
    assert completion.num_new_tokens == 5
    assert completion.finish_reason == "stop"


def test_scripted_text_is_cut_at_limits_and_stop_strings(ask: Ask) -> None:
    engine = fake(responses=[{"match": "", "text": "one two three\nUser: four"}])
    limited, stopped = engine.generate(
        [ask("limited", max_new_tokens=2), ask("stopped", stop=("\nUser:",))]
    )
    assert (limited.text, limited.finish_reason) == ("one two", "length")
    assert (stopped.text, stopped.finish_reason) == ("one two three", "stop")


def test_scripted_scores_win_over_made_up_ones() -> None:
    engine = fake(scores=[{"match": "true$", "log_likelihood": -0.5}])
    scripted, made_up = engine.score(
        [ScoreRequest("a", "It is", " true"), ScoreRequest("b", "It is", " false")]
    )
    assert scripted.log_likelihood == -0.5
    assert made_up.log_likelihood not in (-0.5, 0)


def test_it_fails_after_as_many_answers_as_asked(ask: Ask) -> None:
    engine = fake(fail_after=3)
    stream = iter(engine.generate(ask(n) for n in range(10)))
    assert [next(stream).id for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(EngineError, match="after 3 answers"):
        next(stream)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"respones": []}, "respones"),
        ({"responses": [{"match": "(", "text": ""}]}, "regular expression"),
        ({"fail_after": -1}, "fail_after"),
        ({"scores": [{"match": "a", "log_likelihood": 1}]}, "log_likelihood"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        fake(**options)
