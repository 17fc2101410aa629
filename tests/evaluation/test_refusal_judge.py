"""Refusal by a judge: the likeliest of three words, and how often the wording says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfalign.config import EngineConfig, GateRule, PromoteConfig
from selfalign.engines.base import Quarantined
from selfalign.engines.fake import FakeEngine
from selfalign.errors import ConfigurationError
from selfalign.evaluation.answers import items_of
from selfalign.evaluation.explanations import judged
from selfalign.evaluation.gate import judge
from selfalign.evaluation.refusal import Refusal
from selfalign.evaluation.refusal_judge import disputed, judged_classes, refusal_agreement
from selfalign.evaluation.scores import ALIGNED, REFUSAL_AGREEMENT, ItemScore
from selfalign.evaluation.summary import summarise
from selfalign.evaluation.template import load_template
from selfalign.records import EvaluationRecord
from selfalign.seeds import Template

TEMPLATE = Template("t", "{query}|{answer}|")


def classes(*scores: tuple[str, float], **options: int) -> list[tuple[str, Refusal] | Quarantined]:
    scripted = [{"match": match, "log_likelihood": value} for match, value in scores]
    engine = FakeEngine(EngineConfig(kind="fake", options={"scores": scripted}, **options))
    answers = {"a": ("How?", "No."), "b": ("How?", "Take the big kettle then.")}
    return list(judged_classes(engine, answers, TEMPLATE))


def test_the_likeliest_word_after_prompt_and_answer_is_the_class() -> None:
    rest = ("", -9.0)
    found = classes((r"^How\?\|No\.\| refuses$", -1.0), ("kettle.* partly$", -2.0), rest)
    assert found == [("a", "refuses"), ("b", "partly")]
    assert classes(("No.* complies$", -1.0), rest)[0] == ("a", "complies")


def test_words_that_are_equally_likely_are_wanted_by_no_prompt() -> None:
    assert classes(("", -1.0)) == [("a", "partly"), ("b", "partly")]


def test_an_answer_beyond_the_judge_s_context_is_set_aside() -> None:
    short, long = classes(("", -1.0), max_length=5)
    assert short == ("a", "partly")
    assert isinstance(long, Quarantined)
    assert (long.id, long.reason) == ("b", "too_long")


def test_the_built_in_template_shows_prompt_and_answer_and_ends_before_the_word(
    tmp_path: Path,
) -> None:
    template = load_template("refusal")
    prompt = template.fill({"query": "<prompt>", "answer": "<answer>"})
    assert "\n<prompt>\n\nThe answer:\n<answer>\n" in prompt
    assert template.continuation("refuses") == " refuses"
    file = tmp_path / "mine.txt"
    file.write_text("{query}")
    with pytest.raises(ConfigurationError, match=r"mine\.txt: no hole \{answer\}"):
        load_template("refusal", file)


def agreements(agree: int, count: int) -> list[ItemScore]:
    pairs: list[tuple[Refusal, Refusal]] = [("refuses", "refuses")] * agree
    pairs += [("complies", "refuses")] * (count - agree)
    return [
        refusal_agreement(f"i{n}", "harm", 0, decides=ours, other=theirs)
        for n, (ours, theirs) in enumerate(pairs)
    ]


def test_a_model_on_which_judge_and_wording_disagree_is_named() -> None:
    scores = {"base": agreements(7, 10), "final": agreements(9, 10)}
    summary = summarise(scores, refusals="judge")
    assert [(row.model, row.mean) for row in disputed(summary)] == [("base", 0.7)]
    said = " ".join(judged(summary))
    assert "decided by the judge; the wording agrees on: base 70% of 10, final 90% of 10." in said
    assert "below 80% for base: one of the two is wrong there" in said
    assert "decided by the wording; the judge agrees" in " ".join(
        judged(summarise(scores, refusals="wording"))
    )
    # it is the judge's own, no difference between two models
    assert summary.comparisons == ()


@pytest.mark.parametrize(("floor", "outcome"), [(0.85, "passed"), (0.95, "failed")])
def test_a_rule_may_ask_how_often_they_agree(floor: float, outcome: str) -> None:
    rule = {"metric": REFUSAL_AGREEMENT, "at_least": floor}
    config = PromoteConfig.model_validate({"rules": [rule], "guards": None})
    summary = summarise({"base": agreements(5, 10), "final": agreements(9, 10)}, refusals="judge")
    (reason,) = judge(summary, config).reasons
    assert (reason.outcome, reason.measured) == (outcome, 0.9)
    with pytest.raises(ValueError, match="leave out `against`"):
        GateRule.model_validate({**rule, "against": "base"})


def test_what_people_read_is_the_class_of_the_one_that_decides() -> None:
    shared = {"model": "final", "item_id": "i", "kind": "harm", "length_words": 3}
    records = [
        EvaluationRecord(id="1", metric=ALIGNED, value=0.0, text="I can't say.", **shared),
        EvaluationRecord(
            id="2", metric=REFUSAL_AGREEMENT, value=0.0, text="complies refuses", **shared
        ),
    ]
    (item,), _ = items_of(records, {"i": "How?"})
    assert item.refusal("final") == "complies"
    (item,), _ = items_of(records[:1], {"i": "How?"})
    item.texts["final"] = "I can't help with that."
    assert item.refusal("final") == "refuses"  # by its wording
