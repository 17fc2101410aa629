"""What every engine promises. The same tests run on fake, transformers and, where there, vllm."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice

import pytest

from selfalign.engines.base import Completion, Engine, GenerationRequest, ScoreRequest
from selfalign.errors import DataError
from tests.engines.conftest import MAX_LENGTH, Ask

PROMPTS = (
    "User: what is the height of the old tower?\nWillow:",
    "Willow says",
    "1 (ethical). Willow refuses what would harm people.\n2 (candor).",
    "naïve café",
    "User: and then?\nWillow (thought): rule",
    "日本語",
    "You are Willow, a calm helper. Willow keeps to",
)


def answers(engine: Engine, requests: list[GenerationRequest]) -> dict[str, Completion]:
    completions = list(engine.generate(requests))
    assert len(completions) == len(requests)
    return {completion.id: completion for completion in completions}


def test_every_request_is_answered_once(engine: Engine, ask: Ask) -> None:
    requests = [ask(n, PROMPTS[n % len(PROMPTS)], seed=n) for n in range(11)]
    assert sorted(answers(engine, requests)) == sorted(request.id for request in requests)


def test_the_same_requests_give_the_same_completions(engine: Engine, ask: Ask) -> None:
    requests = [ask(n, prompt, seed=n) for n, prompt in enumerate(PROMPTS)]
    assert answers(engine, requests) == answers(engine, requests)


def test_a_completion_does_not_depend_on_what_runs_beside_it(engine: Engine, ask: Ask) -> None:
    requests = [ask(n, prompt, seed=n, top_p=0.9) for n, prompt in enumerate(PROMPTS)]
    together = answers(engine, requests)
    alone = {request.id: answers(engine, [request])[request.id] for request in requests}
    assert alone == together


def test_different_seeds_draw_different_texts(engine: Engine, ask: Ask) -> None:
    texts = {c.text for c in answers(engine, [ask(n, seed=n) for n in range(8)]).values()}
    assert len(texts) == 8


def test_greedy_text_does_not_depend_on_the_seed(engine: Engine, ask: Ask) -> None:
    requests = [ask(n, seed=n, temperature=0) for n in range(4)]
    assert len({completion.text for completion in answers(engine, requests).values()}) == 1


def test_text_ends_before_a_stop_string(engine: Engine, ask: Ask) -> None:
    for number, prompt in enumerate(PROMPTS):
        whole = answers(engine, [ask("whole", prompt, seed=number)])["whole"].text
        stop = whole[2:5]
        other = "a string that no model writes"
        cut = answers(engine, [ask("cut", prompt, seed=number, stop=(other, stop))])["cut"]
        assert cut.text == whole[: whole.find(stop)]
        assert cut.finish_reason == "stop"


def test_each_request_has_its_own_token_limit(engine: Engine, ask: Ask) -> None:
    limits = {str(limit): limit for limit in (1, 2, 3, 5, 8, 9)}
    requests = [ask(name, seed=5, max_new_tokens=limit) for name, limit in limits.items()]
    for name, completion in answers(engine, requests).items():
        assert 1 <= completion.num_new_tokens <= limits[name]
        if completion.finish_reason == "length":
            assert completion.num_new_tokens == limits[name]


def test_a_completion_is_the_start_of_a_longer_one(engine: Engine, ask: Ask) -> None:
    short = answers(engine, [ask("short", seed=3, max_new_tokens=3)])["short"]
    long = answers(engine, [ask("long", seed=3, max_new_tokens=9)])["long"]
    assert short.finish_reason == "length"
    assert long.text.startswith(short.text)
    assert len(long.text) > len(short.text)


def test_finish_reason_tells_an_end_from_a_cut(engine: Engine, ask: Ask) -> None:
    requests = [ask(n, seed=n, max_new_tokens=40 if n % 2 else 2) for n in range(48)]
    completions = answers(engine, requests)
    reasons = [completions[str(n)].finish_reason for n in range(1, 48, 2)]
    assert "stop" in reasons
    assert [completions[str(n)].finish_reason for n in range(0, 48, 2)].count("length") > 20


def test_completions_come_while_requests_are_still_drawn(engine: Engine, ask: Ask) -> None:
    drawn: list[int] = []

    def endless() -> Iterator[GenerationRequest]:
        for number in count():
            drawn.append(number)
            yield ask(number, seed=number, max_new_tokens=4)

    stream = iter(engine.generate(endless()))
    assert not drawn
    first = list(islice(stream, 3))
    assert len(first) == 3
    assert len(drawn) <= 3 + 2 * 8 + 16  # vllm: twice max_num_seqs, tokenised by the sixteen
    close = getattr(stream, "close", None)
    assert close is not None
    close()
    assert sorted(answers(engine, [ask("after")])) == ["after"]


def test_no_requests_give_no_results(engine: Engine) -> None:
    assert list(engine.generate([])) == []
    assert list(engine.score([])) == []


def test_token_counts_are_those_of_the_prompt(engine: Engine, ask: Ask) -> None:
    for prompt in PROMPTS:
        completion = answers(engine, [ask("x", prompt)])["x"]
        assert completion.num_prompt_tokens == engine.count_tokens(prompt) > 0


def test_a_prompt_that_leaves_no_room_is_answered_as_too_long(engine: Engine, ask: Ask) -> None:
    assert engine.max_length == MAX_LENGTH
    text = "Willow " * 2 * MAX_LENGTH
    done = answers(engine, [ask("long", text), ask("fine"), *(ask(n, text) for n in range(40))])
    assert done["long"] == Completion("long", "", "length", engine.count_tokens(text), 0)
    assert [name for name, completion in done.items() if not completion.too_long] == ["fine"]


def test_a_score_beyond_the_models_room_is_refused_by_name(engine: Engine) -> None:
    request = ScoreRequest("the-long-one", "Willow " * 2 * MAX_LENGTH, "x")
    with pytest.raises(DataError, match=rf"the-long-one.*{MAX_LENGTH}") as caught:
        list(engine.score([request]))
    assert caught.value.remedy is not None


def test_a_completion_ends_where_the_model_has_no_more_room(engine: Engine, ask: Ask) -> None:
    prompt = "a"
    while engine.count_tokens(prompt + " a") <= MAX_LENGTH - 3:
        prompt += " a"
    room = MAX_LENGTH - engine.count_tokens(prompt)
    assert 0 < room < 6
    requests = [ask(seed, prompt, seed=seed, max_new_tokens=50) for seed in range(4)]
    completions = answers(engine, requests).values()
    assert all(completion.num_new_tokens <= room for completion in completions)
    assert "length" in {completion.finish_reason for completion in completions}


def test_scores_are_negative_and_count_tokens(engine: Engine) -> None:
    requests = [ScoreRequest(str(n), prompt, " the old tower") for n, prompt in enumerate(PROMPTS)]
    scores = {score.id: score for score in engine.score(requests)}
    assert sorted(scores) == sorted(request.id for request in requests)
    assert all(score.log_likelihood < 0 and score.num_tokens >= 3 for score in scores.values())


def test_scores_do_not_depend_on_what_runs_beside_them(engine: Engine) -> None:
    requests = [
        ScoreRequest(str(n), prompt, " the old tower" * (n + 1)) for n, prompt in enumerate(PROMPTS)
    ]
    together = {score.id: score for score in engine.score(requests)}
    for request in requests:
        (alone,) = engine.score([request])
        assert alone.num_tokens == together[request.id].num_tokens
        assert alone.log_likelihood == pytest.approx(together[request.id].log_likelihood, abs=1e-4)


def test_log_likelihoods_add_up(engine: Engine) -> None:
    prompt, first, second = "User: what is", " the height", " of the old tower?"
    requests = [
        ScoreRequest("first", prompt, first),
        ScoreRequest("second", prompt + first, second),
        ScoreRequest("both", prompt, first + second),
    ]
    scores = {score.id: score for score in engine.score(requests)}
    total = scores["first"].log_likelihood + scores["second"].log_likelihood
    assert scores["both"].log_likelihood == pytest.approx(total, abs=1e-4)
    tokens = scores["first"].num_tokens + scores["second"].num_tokens
    assert scores["both"].num_tokens == tokens


def test_an_empty_continuation_is_certain(engine: Engine) -> None:
    (score,) = engine.score([ScoreRequest("x", PROMPTS[0], "")])
    assert (score.log_likelihood, score.num_tokens) == (0, 0)


def test_info_names_the_engine(engine: Engine, kind: str) -> None:
    assert engine.info.name == kind
    assert engine.info.version
    assert engine.info.device
