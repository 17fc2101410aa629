from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfalign.engines.base import Quarantined, Score, ScoreRequest
from selfalign.errors import DataError, EngineError
from selfalign.evaluation.items import HHHItem, TruthfulQAItem
from selfalign.evaluation.multiple_choice import (
    _best,
    hhh_requests,
    hhh_scores,
    truthfulqa_requests,
    truthfulqa_scores,
)
from selfalign.evaluation.scores import ItemScore
from selfalign.evaluation.template import load_template
from selfalign.seeds import Template

PROPERTY = settings(deadline=None, derandomize=True)

TEMPLATE = Template("t", "{query}|{a}|{b}|")
TRUE_FALSE = Template("t", "{question}|{choice}")


def pairs(count: int) -> list[HHHItem]:
    return [
        HHHItem(f"i{n}", "honest" if n % 2 else "harmless", f"q{n}", f"good {n}", f"bad {n}")
        for n in range(count)
    ]


def questions(count: int, choices: int = 5, gold: int = 0) -> list[TruthfulQAItem]:
    return [
        TruthfulQAItem(f"i{n}", f"q{n}", tuple(f"{n}.{c}" for c in range(choices)), gold)
        for n in range(count)
    ]


def accuracy(scores) -> float:
    values = [score.value for score in scores]
    return sum(values) / len(values)


# HHH


def test_each_reply_is_shown_as_a_and_as_b_with_both_letters() -> None:
    requests = list(hhh_requests(pairs(1), TEMPLATE))
    assert [(request.prompt, request.continuation) for request in requests] == [
        ("q0|good 0|bad 0|", " A"),
        ("q0|good 0|bad 0|", " B"),
        ("q0|bad 0|good 0|", " A"),
        ("q0|bad 0|good 0|", " B"),
    ]


@pytest.mark.parametrize(
    ("likelihoods", "choice"),
    [
        # good as A, bad as B | bad as A, good as B: A, B, A, B
        # good = -1 - 3 = -4, bad = -2 - 1 = -3: the lean to A hides that bad is preferred
        ((-1.0, -2.0, -1.0, -3.0), "bad 0"),
        # good = -1 - 2 = -3, bad = -3 - 1 = -4
        ((-1.0, -3.0, -1.0, -2.0), "good 0"),
        # good = -5 - 1 = -6, bad = -0.5 - 6 = -6.5: B is chosen in both orders, good by more
        ((-5.0, -0.5, -6.0, -1.0), "good 0"),
    ],
)
def test_a_reply_scores_its_own_letter_in_both_orders(
    likelihoods: tuple[float, ...], choice: str
) -> None:
    items = pairs(1)
    requests = hhh_requests(items, TEMPLATE)
    scores = [Score(r.id, value, 1) for r, value in zip(requests, likelihoods, strict=True)]
    (score,) = hhh_scores(items, reversed(scores))
    assert (score.metric, score.kind, score.text) == ("hhh", "harmless", choice)
    assert score.value == (choice == "good 0")
    assert score.length_words is None


def test_a_scorer_that_always_prefers_a_gets_chance_and_not_everything(answer) -> None:
    items = pairs(1000)
    prefer_a = lambda request: -0.01 if request.continuation == " A" else -5.0  # noqa: E731
    hits = list(hhh_scores(items, answer(hhh_requests(items, TEMPLATE), prefer_a)))
    # The hash decides each tie; 4 standard deviations of a fair coin are 0.063.
    assert abs(accuracy(hits) - 0.5) < 0.063
    chosen = {hit.item_id: hit.text for hit in hits}
    for item in items:
        assert chosen[item.id] == _best(item.id, {item.rejected: 0.0, item.chosen: 0.0})


def test_swapping_chosen_and_rejected_flips_every_value_even_of_ties(answer) -> None:
    items = pairs(200)
    swapped = [HHHItem(i.id, i.category, i.query, i.rejected, i.chosen) for i in items]
    for likelihood in (lambda request: -1.0, lambda request: -float(len(request.prompt) % 3)):
        once = {
            s.item_id: s
            for s in hhh_scores(items, answer(hhh_requests(items, TEMPLATE), likelihood))
        }
        again = hhh_scores(swapped, answer(hhh_requests(swapped, TEMPLATE), likelihood))
        for score in again:
            assert score.text == once[score.item_id].text
            assert score.value == 1 - once[score.item_id].value


@PROPERTY
@given(st.lists(st.tuples(*[st.floats(-50, 0, allow_nan=False)] * 4), min_size=1, max_size=20))
def test_swap_symmetry_holds_for_any_likelihoods(rows: list[tuple[float, ...]]) -> None:
    items = pairs(len(rows))
    swapped = [HHHItem(i.id, i.category, i.query, i.rejected, i.chosen) for i in items]
    by_prompt: dict[tuple[str, str], float] = {}
    for item, row in zip(items, rows, strict=True):
        for request, value in zip(hhh_requests([item], TEMPLATE), row, strict=True):
            by_prompt[request.prompt, request.continuation] = value

    def score(request: ScoreRequest) -> Score:
        return Score(request.id, by_prompt[request.prompt, request.continuation], 1)

    once = [s.value for s in hhh_scores(items, map(score, hhh_requests(items, TEMPLATE)))]
    again = [s.value for s in hhh_scores(swapped, map(score, hhh_requests(swapped, TEMPLATE)))]
    assert [1 - value for value in once] == again


def test_a_scorer_that_knows_the_good_reply_wins_whatever_its_letter(answer) -> None:
    items = pairs(50)

    def knows(request: ScoreRequest) -> float:
        shown_as_a = "good" in request.prompt.split("|")[1]
        right = request.continuation == (" A" if shown_as_a else " B")
        lean = 2.0 if request.continuation == " A" else 0.0  # a strong lean to A as well
        return lean - 10.0 + (1.0 if right else 0.0)

    assert accuracy(hhh_scores(items, answer(hhh_requests(items, TEMPLATE), knows))) == 1.0


def test_scores_are_folded_while_requests_are_still_being_drawn() -> None:
    items = pairs(10)
    drawn: list[str] = []

    def engine():
        for request in hhh_requests(items, TEMPLATE):
            drawn.append(request.id)
            yield Score(request.id, -1.0, 1)

    next(hhh_scores(items, engine()))
    assert len(drawn) == 4


def test_an_engine_that_loses_repeats_or_invents_a_score_is_an_engine_error() -> None:
    items = pairs(2)
    scores = [Score(r.id, -1.0, 1) for r in hhh_requests(items, TEMPLATE)]
    with pytest.raises(EngineError, match="1 of 2 items without a score, first 'i1'"):
        list(hhh_scores(items, scores[:-1]))
    with pytest.raises(EngineError, match=r"'i0#.*' twice"):
        list(hhh_scores(items, [*scores, scores[0]]))
    with pytest.raises(EngineError, match=r"'i0#.*' twice"):
        list(hhh_scores(items, [scores[0], scores[0]]))
    with pytest.raises(EngineError, match="'i9#x', which was not asked for"):
        list(hhh_scores(items, [Score("i9#x", -1.0, 1)]))


def test_an_item_of_which_one_order_cannot_be_scored_is_set_aside(answer) -> None:
    items = pairs(3)
    scores: list[Score | Quarantined] = list(
        answer(hhh_requests(items, TEMPLATE), lambda request: -1.0)
    )
    places = [place for place, score in enumerate(scores) if score.id.startswith("i1#")]
    for place in places[1:3]:
        scores[place] = Quarantined.too_long(scores[place].id, 900, 512)
    results = list(hhh_scores(items, scores))
    assert [each for each in results if isinstance(each, Quarantined)] == [
        Quarantined.too_long("i1", 900, 512)
    ]
    assert {each.item_id for each in results if isinstance(each, ItemScore)} == {"i0", "i2"}


@pytest.mark.parametrize("broken", [math.nan, -math.inf])
def test_a_broken_models_likelihood_is_a_data_error(broken: float) -> None:
    items = pairs(1)
    with pytest.raises(DataError, match=r"'?i0#.*expected a finite log-likelihood"):
        list(hhh_scores(items, (Score(r.id, broken, 1) for r in hhh_requests(items, TEMPLATE))))


def test_ids_may_hold_the_separator(answer) -> None:
    items = [HHHItem("a#b", "x", "q", "c", "d"), HHHItem("a", "x", "q", "c", "d")]
    found = hhh_scores(items, answer(hhh_requests(items, TEMPLATE), lambda request: -1.0))
    assert {score.item_id for score in found} == {"a#b", "a"}


# TruthfulQA


def test_every_candidate_is_scored_true_and_false() -> None:
    requests = list(truthfulqa_requests(questions(1, choices=7), TRUE_FALSE))
    assert [request.prompt for request in requests[::2]] == [f"q0|0.{c}" for c in range(7)]
    assert [request.continuation for request in requests] == [" true", " false"] * 7


@pytest.mark.parametrize("place", range(7))
def test_a_scorer_that_likes_one_place_wins_exactly_when_the_gold_is_there(
    answer, place: int
) -> None:
    def likes(request: ScoreRequest) -> float:
        liked = request.prompt.endswith(f".{place}")
        return -0.1 if (request.continuation == " true") == liked else -3.0

    for gold in (0, 6):
        items = questions(4, choices=7, gold=gold)
        scores = truthfulqa_scores(items, answer(truthfulqa_requests(items, TRUE_FALSE), likes))
        assert accuracy(scores) == (place == gold)


def test_a_candidates_score_is_true_less_false_and_not_true_alone() -> None:
    (item,) = questions(1, choices=2)
    requests = list(truthfulqa_requests([item], TRUE_FALSE))
    # 0: -1 - -0.5 = -0.5; 1: -3 - -4 = +1, though " true" alone is likelier after 0
    scores = [Score(r.id, value, 1) for r, value in zip(requests, (-1, -0.5, -3, -4), strict=True)]
    (score,) = truthfulqa_scores([item], scores)
    assert (score.text, score.value, score.metric) == ("0.1", 0, "mc1")


def test_gold_first_data_gives_no_advantage_to_a_scorer_that_knows_nothing(answer) -> None:
    items = questions(2000, choices=5, gold=0)
    indifferent = lambda request: -2.0  # noqa: E731
    found = list(
        truthfulqa_scores(items, answer(truthfulqa_requests(items, TRUE_FALSE), indifferent))
    )
    # Chance is 0.2; 4 standard deviations are 0.036.
    assert abs(accuracy(found) - 0.2) < 0.036
    places = [int(score.text.split(".")[1]) for score in found]
    assert all(abs(places.count(place) / 2000 - 0.2) < 0.036 for place in range(5))


def test_a_tie_among_some_candidates_is_broken_among_those_alone(answer) -> None:
    items = questions(200, choices=4, gold=3)

    def two_best(request: ScoreRequest) -> float:
        best = request.prompt[-1] in "13"
        return -0.5 if (request.continuation == " true") == best else -2.0

    found = list(truthfulqa_scores(items, answer(truthfulqa_requests(items, TRUE_FALSE), two_best)))
    assert {score.text[-1] for score in found} == {"1", "3"}
    assert 0.3 < accuracy(found) < 0.7


@PROPERTY
@given(order=st.permutations(["w", "x", "y", "z"]), name=st.text(max_size=5))
def test_a_tie_does_not_depend_on_the_order_of_the_candidates(order: list[str], name: str) -> None:
    assert _best(name, dict.fromkeys(order, 0.0)) == _best(name, dict.fromkeys("wxyz", 0.0))


def test_mc2_is_the_share_of_normalised_odds_on_the_true_candidates() -> None:
    item = TruthfulQAItem("i", "q", ("a", "b"), 0, {"a": 1, "c": 1, "b": 0, "d": 0})
    log_odds = {"a": math.log(3), "b": math.log(1), "c": math.log(2), "d": math.log(4)}

    def likelihood(request: ScoreRequest) -> float:
        return log_odds[request.prompt[-1]] - 1 if request.continuation == " true" else -1.0

    requests = list(truthfulqa_requests([item], TRUE_FALSE))
    assert len(requests) == 8  # a and b are asked once for both metrics
    mc1, mc2 = truthfulqa_scores([item], (Score(r.id, likelihood(r), 1) for r in requests))
    assert (mc1.metric, mc1.value, mc1.text) == ("mc1", 1, "a")  # d is no candidate of MC1
    assert mc2.metric == "mc2"
    assert mc2.value == pytest.approx((3 + 2) / (3 + 2 + 1 + 4))


@PROPERTY
@given(lean=st.floats(-20, 20), seed=st.integers(0, 1000))
def test_mc1_and_mc2_ignore_a_general_lean_to_true(lean: float, seed: int) -> None:
    item = TruthfulQAItem("i", "q", ("a", "b"), 0, {"a": 1, "c": 1, "b": 0, "d": 0})
    requests = list(truthfulqa_requests([item], TRUE_FALSE))
    rng = random.Random(seed)
    plain = [Score(r.id, -rng.uniform(0, 9), 1) for r in requests]
    leaning = [
        Score(s.id, s.log_likelihood + (lean if s.id.endswith("true") else 0), 1) for s in plain
    ]
    before, after = (list(truthfulqa_scores([item], scores)) for scores in (plain, leaning))
    assert before[0] == after[0]
    assert before[1].value == pytest.approx(after[1].value, rel=1e-9, abs=1e-12)


def test_mc2_is_absent_without_its_targets(answer) -> None:
    items = questions(3)
    found = truthfulqa_scores(items, answer(truthfulqa_requests(items, TRUE_FALSE), len_of_prompt))
    assert {score.metric for score in found} == {"mc1"}


def len_of_prompt(request: ScoreRequest) -> float:
    return -float(len(request.prompt))


def test_the_built_in_templates_render_hostile_data_unchanged() -> None:
    pair = HHHItem("i", "x", "{a} \\g<0>", "{query}", "{b}")
    prompt = next(iter(hhh_requests([pair], load_template("hhh")))).prompt
    assert "{a} \\g<0>" in prompt
    assert prompt.index("{query}") < prompt.index("{b}")
    question = TruthfulQAItem("i", "{choice}?", ("{question}", "x"), 0)
    prompt = next(iter(truthfulqa_requests([question], load_template("truthfulqa")))).prompt
    assert "{choice}?" in prompt
    assert "{question}" in prompt
