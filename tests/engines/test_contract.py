"""What every engine promises. The same tests run on fake, transformers and, where there, vllm."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice

import pytest

from selfalign.engines.base import (
    Completion,
    Engine,
    GenerationRequest,
    Quarantined,
    Score,
    ScoreRequest,
)
from tests.engines.conftest import MAX_LENGTH, Ask
from tests.hostile import HOSTILE, REASONS

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
    return {done.id: done for done in completions if isinstance(done, Completion)}


def scored(engine: Engine, requests: list[ScoreRequest]) -> dict[str, Score]:
    return {score.id: score for score in engine.score(requests) if isinstance(score, Score)}


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


UNFIT = {
    "too_long": "Willow " * 2 * MAX_LENGTH,
    "empty": "",
    "white": " \n\t ",
    "nul": "User: what is\0this?",
    "not_unicode": "User: half of a pair \ud83d.\nWillow:",
}
WHY = {name: "empty" if name == "white" else name for name in UNFIT}


def test_a_prompt_that_cannot_be_continued_is_set_aside_with_its_reason(
    engine: Engine, ask: Ask
) -> None:
    assert engine.max_length == MAX_LENGTH
    requests = [ask(f"fine-{name}", seed=3) for name in UNFIT]
    alone = answers(engine, requests)
    bad = [ask(name, text) for name, text in UNFIT.items()]
    mixed = [each for pair in zip(requests, bad, strict=True) for each in pair]
    found: dict[str, Completion] = {}
    reasons: dict[str, str] = {}
    for answer in engine.generate([*mixed, *(ask(n, UNFIT["too_long"]) for n in range(40))]):
        if isinstance(answer, Quarantined):
            assert answer.id not in reasons
            reasons[answer.id] = answer.reason
        else:
            found[answer.id] = answer
    assert found == alone
    assert reasons == WHY | {str(n): "too_long" for n in range(40)}


def test_sixty_hostile_prompts_are_each_answered_once_and_change_no_other(
    engine: Engine, ask: Ask
) -> None:
    fine = [ask(f"fine-{name}", seed=n, max_new_tokens=3) for n, name in enumerate(HOSTILE)]
    alone = answers(engine, fine)
    bad = [ask(name, text, max_new_tokens=3) for name, text in HOSTILE.items()]
    mixed = [each for pair in zip(fine, bad, strict=True) for each in pair]
    found = list(engine.generate(mixed))
    assert sorted(each.id for each in found) == sorted(request.id for request in mixed)
    set_aside = {each.id: each.reason for each in found if isinstance(each, Quarantined)}
    assert {name: set_aside.get(name) for name in REASONS} == REASONS
    assert not set(set_aside.values()) - {*REASONS.values()}
    assert {each.id: each for each in found if each.id in alone} == alone


def test_a_text_that_cannot_be_scored_is_set_aside_with_its_reason(engine: Engine) -> None:
    fine = ScoreRequest("fine", PROMPTS[0], " the old tower")
    (alone,) = engine.score([fine])
    bad = [ScoreRequest(name, text, " x") for name, text in UNFIT.items()]
    bad.append(ScoreRequest("tail", "Willow", " says\ud83d"))
    results = {result.id: result for result in engine.score([*bad[:3], fine, *bad[3:]])}
    score = results.pop("fine")
    assert isinstance(score, Score)
    assert isinstance(alone, Score)
    assert score.log_likelihood == pytest.approx(alone.log_likelihood, abs=1e-4)
    assert {name: why.reason for name, why in results.items() if isinstance(why, Quarantined)} == {
        **WHY, "tail": "not_unicode",
    }  # fmt: skip
    assert str(MAX_LENGTH) in results["too_long"].explanation  # type: ignore[union-attr]


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
    scores = scored(engine, requests)
    assert sorted(scores) == sorted(request.id for request in requests)
    assert all(score.log_likelihood < 0 and score.num_tokens >= 3 for score in scores.values())


def test_scores_do_not_depend_on_what_runs_beside_them(engine: Engine) -> None:
    requests = [
        ScoreRequest(str(n), prompt, " the old tower" * (n + 1)) for n, prompt in enumerate(PROMPTS)
    ]
    together = scored(engine, requests)
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
    scores = scored(engine, requests)
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
