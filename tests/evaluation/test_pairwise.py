from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from selfalign.config import GateRule, PromoteConfig
from selfalign.engines.base import Score, ScoreRequest
from selfalign.evaluation.explanations import judged
from selfalign.evaluation.gate import judge
from selfalign.evaluation.pairwise import (
    OrderBias,
    Pair,
    PairVerdict,
    agreement,
    kappa,
    pairwise_requests,
    pairwise_verdicts,
)
from selfalign.evaluation.scores import (
    AGREEMENT,
    JUDGED,
    LENGTH_WORDS,
    WIN_RATE,
    WIN_RATE_SAME_LENGTH,
    ItemScore,
)
from selfalign.evaluation.statistics import score_interval
from selfalign.evaluation.summary import EvaluationSummary, JudgeSummary, summarise
from selfalign.evaluation.template import load_template
from selfalign.seeds import Template

PROPERTY = settings(deadline=None, derandomize=True)

RULE = {"metric": WIN_RATE, "against": "base"}
TEMPLATE = Template("t", "{query}|{a}|{b}|")
PAIR = Pair("p", "q", "one", "two words")


def verdict_of(pair: Pair, likelihoods: tuple[float, float, float, float]) -> str:
    requests = pairwise_requests([pair], TEMPLATE)
    scores = [Score(r.id, value, 1) for r, value in zip(requests, likelihoods, strict=True)]
    (verdict,) = pairwise_verdicts([pair], scores)
    return verdict.winner


@pytest.mark.parametrize(
    ("likelihoods", "winner"),
    [
        ((-1, -2, -2, -1), "first"),  # A then B: the first answer both times
        ((-2, -1, -1, -2), "second"),
        ((-1, -2, -1, -2), "tie"),  # A both times: a lean, not a judgement
        ((-2, -1, -2, -1), "tie"),
        ((-1, -9, -1, -2), "tie"),  # a disagreement is a tie however sure one order is
        ((-1, -1, -2, -1), "tie"),
    ],
)
def test_only_an_agreement_of_both_orders_wins(
    likelihoods: tuple[float, float, float, float], winner: str
) -> None:
    assert verdict_of(PAIR, likelihoods) == winner


@PROPERTY
@given(st.tuples(*[st.floats(-50, 0)] * 4))
def test_swapping_the_models_swaps_the_verdict(values: tuple[float, float, float, float]) -> None:
    forward_a, forward_b, backward_a, backward_b = values
    swapped = Pair("p", "q", PAIR.second, PAIR.first)
    mirrored = {"first": "second", "second": "first", "tie": "tie"}
    again = verdict_of(swapped, (backward_a, backward_b, forward_a, forward_b))
    assert again == mirrored[verdict_of(PAIR, values)]


def duel(
    pairs: list[Pair], verdicts: Iterable[PairVerdict], kinds: dict[str, str] | None = None
) -> EvaluationSummary:
    """The summary of these verdicts on a final model and a base, whose answers are the pairs'."""
    scores: dict[str, list[ItemScore]] = {"base": [], "final": []}
    for pair in pairs:
        for model, text in (("final", pair.first), ("base", pair.second)):
            words = len(text.split())
            scores[model].append(ItemScore(pair.id, LENGTH_WORDS, None, words, words, text))
    for verdict in verdicts:
        scores["final"] += [
            ItemScore(
                verdict.id, metric, (kinds or {}).get(verdict.id), verdict.value,
                verdict.first_words, verdict.letters, against="base",
            )
            for metric in (JUDGED if verdict.same_length else (WIN_RATE,))
        ]  # fmt: skip
    return summarise(scores, confidence=0.9, bootstrap_samples=50, tasks=("heldout",))


def test_a_judge_that_always_says_a_makes_every_pair_a_tie(answer) -> None:
    pairs = [Pair(f"p{n}", "q", f"x {n}", "y") for n in range(20)]
    prefers_a = lambda request: -0.1 if request.continuation == " A" else -4.0  # noqa: E731
    verdicts = list(pairwise_verdicts(pairs, answer(pairwise_requests(pairs, TEMPLATE), prefers_a)))
    assert {(verdict.winner, verdict.letters) for verdict in verdicts} == {("tie", "AA")}
    summary = duel(pairs, verdicts)
    found = summary.comparison("final", "base", WIN_RATE)
    assert (found.wins, found.losses, found.subject_mean, found.difference) == (0, 0, 0.5, 0.0)
    assert summary.judge.orders == (OrderBias(against="base", asked=20, disagree=1.0, chose_a=1.0),)
    better = judge(summary, PromoteConfig.model_validate({"rules": [RULE], "guards": None}))
    assert better.decision == "refused"


def test_a_judge_of_length_wins_by_length_and_answers_of_one_length_show_it(answer) -> None:
    longer = [Pair(f"l{n}", "q", "word " * 30, "word " * 10) for n in range(30)]
    equal = [Pair(f"e{n}", "q", "here " * 20, "this " * 20) for n in range(10)]
    pairs = [*longer, *equal]

    def longest(request: ScoreRequest) -> float:
        _, a, b, _ = request.prompt.split("|")
        words = len((a if request.continuation == " A" else b).split())
        return float(words) - 100

    verdicts = pairwise_verdicts(pairs, answer(pairwise_requests(pairs, TEMPLATE), longest))
    summary = duel(pairs, verdicts)
    every, alike, length = (
        summary.comparison("final", "base", name)
        for name in (WIN_RATE, WIN_RATE_SAME_LENGTH, LENGTH_WORDS)
    )
    assert alike is not None
    assert length is not None
    assert (every.wins, every.losses, every.n, every.subject_mean) == (30, 0, 40, 35 / 40)
    assert (alike.n, alike.subject_mean) == (10, 0.5)
    assert length.difference == pytest.approx(15.0)
    told = judged(summary)
    assert "a win rate of 0.875 [" in told[0]
    assert (
        "30 wins, 0 losses on 40 items. Among answers of about the same length it is 0.500"
        in (told[0])
    )
    assert told[0].endswith("Its answers differ by +15.0 words in the mean.")


def test_lengths_match_within_the_tolerance_of_the_longer() -> None:
    lengths = [(100, 90), (100, 89), (0, 0)]
    verdicts = [PairVerdict("a", "first", "AB", *each) for each in lengths]
    assert [verdict.same_length for verdict in verdicts] == [True, False, True]


def test_the_interval_of_a_win_rate_is_that_of_wins_less_losses() -> None:
    pairs = [Pair(f"p{n}", "q", f"first {n}", f"second {n}") for n in range(30)]
    verdicts = [
        PairVerdict(pair.id, "first" if n < 15 else "second" if n < 20 else "tie", "", 2, 2)
        for n, pair in enumerate(pairs)
    ]
    found = duel(pairs, verdicts).comparison("final", "base", WIN_RATE)
    assert (found.low, found.high) == score_interval(15, 5, 30, 0.9)
    assert found.subject_mean == pytest.approx((15 + 10 / 2) / 30)


def test_answers_of_the_same_text_are_ties_that_no_judge_is_asked_about() -> None:
    same, other = Pair("s", "q", "one", "one"), PAIR
    assert {r.id.partition("#")[0] for r in pairwise_requests([same, other], TEMPLATE)} == {"p"}
    (verdict,) = pairwise_verdicts([same], [])
    assert (verdict.winner, verdict.letters) == ("tie", "")
    assert duel([same], [verdict]).judge == JudgeSummary(
        orders=(OrderBias(against="base", asked=0, disagree=None, chose_a=None),)
    )


@pytest.mark.parametrize(
    ("rule", "decision", "said"),
    [
        ({}, "promoted", "final 0.900, base 0.100"),
        ({"at_least": 0.5}, "promoted", "within its floor of 0.5"),
        ({"at_least": 0.95}, "refused", "below its floor of 0.95"),
        ({"min_difference": 0.9}, "refused", "Its lower end is not above 0.9"),
        ({"metric": f"{WIN_RATE}/*"}, "promoted", "judge.win_rate/odd: final 0.8"),
        ({"against": "promoted"}, "refused", "nothing is promoted yet"),  # skipped, nothing passed
    ],
)
def test_a_rule_bounds_the_win_rate(rule: dict[str, Any], decision: str, said: str) -> None:
    pairs = [Pair(f"p{n}", "q", f"first {n}", f"second {n}") for n in range(60)]
    verdicts = [
        PairVerdict(pair.id, "second" if n % 10 == 1 else "first", "AB", 2, 2)
        for n, pair in enumerate(pairs)
    ]
    kinds = {pair.id: "odd" if n % 2 else "even" for n, pair in enumerate(pairs)}
    config = PromoteConfig.model_validate({"rules": [{**RULE, **rule}], "guards": None})
    verdict = judge(duel(pairs, verdicts, kinds), config)
    assert verdict.decision == decision
    assert said in " ".join(reason.explanation for reason in verdict.reasons)


def test_pairs_that_no_judge_could_be_shown_fail_a_rule_and_are_said() -> None:
    pairs = [Pair(f"p{n}", "q", f"first {n}", f"second {n}") for n in range(60)]
    verdicts = [PairVerdict(pair.id, "first", "AB", 2, 2) for pair in pairs[:50]]
    summary = duel(pairs, verdicts)
    config = PromoteConfig.model_validate({"rules": [RULE], "guards": None})
    (reason,) = judge(summary, config).reasons
    assert reason.outcome == "failed"
    assert "So many missing answers fail a rule." in reason.explanation
    assert any(note.startswith("judge.win_rate: 10 items") for note in summary.notes)


@pytest.mark.parametrize("metric", [*JUDGED, AGREEMENT])
def test_a_rule_without_a_judge_to_measure_it_fails(metric: str) -> None:
    bounds = {"at_least": 0.0} if metric == AGREEMENT else {"against": "promoted"}
    rules = [{"metric": LENGTH_WORDS, "at_least": 0.0}, {"metric": metric, **bounds}]
    config = PromoteConfig.model_validate({"rules": rules, "guards": None})
    verdict = judge(duel([PAIR], []), config)
    assert [reason.outcome for reason in verdict.reasons] == ["passed", "failed"]
    assert "evaluate.judge" in verdict.reasons[1].explanation


@pytest.mark.parametrize(
    "rule", [{"at_least": 0.5}, {"against": "anchor"}, {"metric": AGREEMENT, "against": "base"}]
)
def test_a_rule_of_a_judge_names_whom_it_compares_with(rule: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"judge\..*`against`"):
        GateRule.model_validate({"metric": WIN_RATE, **rule})


def test_kappa_is_agreement_beyond_chance() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.7, by chance 0.5
    counts = [("first", "first", 20), ("first", "second", 5), ("second", "first", 10)]
    counts.append(("second", "second", 15))
    scores = [
        agreement(f"{judge}{people}{n}", judge, people)
        for judge, people, count in counts
        for n in range(count)
    ]
    assert kappa(scores) == pytest.approx(0.4)
    summary = summarise({"base": [], "judge": scores})
    assert judged(summary) == [
        "It agrees with people on 70% of 50 labelled pairs (Cohen's kappa 0.40)."
    ]
    rule = {"metric": AGREEMENT, "at_least": 0.65}
    config = PromoteConfig.model_validate({"rules": [rule], "guards": None})
    (reason,) = judge(summary, config).reasons
    assert reason.outcome == "passed"
    assert "judge.agreement: judge 0.700 on 50 items" in reason.explanation
    assert kappa([]) is None
    assert kappa([agreement("0", "tie", "tie")]) is None


def test_the_built_in_template_shows_the_prompt_and_both_answers() -> None:
    pair = Pair("p", "<prompt>", "<first>", "<second>")
    first, _, third, _ = pairwise_requests([pair], load_template("pairwise"))
    assert re.findall("<.*>", first.prompt) == ["<prompt>", "<first>", "<second>"]
    assert re.findall("<.*>", third.prompt) == ["<prompt>", "<second>", "<first>"]
    assert "\n<prompt>\n\nAnswer A)" in first.prompt
    assert (first.continuation, third.continuation) == (" A", " A")


def test_the_rubric_of_an_item_is_a_paragraph_of_the_judge_s_prompt() -> None:
    pair = replace(PAIR, rubric="Says {a} number.")
    request, *_ = pairwise_requests([pair], load_template("pairwise"))
    assert "q\n\nWhat a right answer does: Says {a} number.\n\nAnswer A) one" in request.prompt
    ruled = replace(pair, principle="Be brief.")
    request, *_ = pairwise_requests([ruled], load_template("pairwise"))
    assert " number.\n\nThe principle to judge by: Be brief.\n\nAnswer A) one" in request.prompt
    plain, *_ = pairwise_requests([pair], TEMPLATE)  # a template need not show it
    assert plain.prompt == "q|one|two words|"
