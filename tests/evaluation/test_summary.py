from __future__ import annotations

import json
import random

import pytest

from selfalign.errors import DataError
from selfalign.evaluation import statistics
from selfalign.evaluation.scores import (
    ALIGNED,
    HHH,
    LENGTH_WORDS,
    MC2,
    ItemScore,
    metric_name,
    split_metric_name,
)
from selfalign.evaluation.statistics import score_interval
from selfalign.evaluation.summary import Comparison, EvaluationSummary, MetricSummary, summarise


def aligned(values: dict[str, float], kind: str | None = None) -> list[ItemScore]:
    return [ItemScore(name, ALIGNED, kind, value, 3, "x") for name, value in values.items()]


def numbered(ones: int, n: int, kind: str | None = None) -> list[ItemScore]:
    return aligned({f"i{k}": int(k < ones) for k in range(n)}, kind)


def test_means_carry_intervals_and_models_keep_their_order() -> None:
    found = summarise({"final": numbered(9, 10), "base": numbered(2, 10)})
    assert found.models == ("final", "base")
    final = found.metric("final", ALIGNED)
    assert (final.n, final.mean, final.method) == (10, 0.9, "wilson")
    assert final.low == pytest.approx(0.5958, abs=1e-4)
    assert final.high == pytest.approx(0.9821, abs=1e-4)
    assert found.metric("final", "hhh") is None


def test_a_comparison_pairs_by_item_and_not_by_place() -> None:
    # Same means, yet every item differs: only pairing by id can see it.
    final = aligned({"a": 1, "b": 0, "c": 1, "d": 0})
    base = aligned({"d": 1, "c": 0, "b": 1, "a": 0})
    row = summarise({"base": base, "final": final}).comparison("final", "base", ALIGNED)
    assert (row.n, row.difference, row.wins, row.losses, row.p_value) == (4, 0.0, 2, 2, 1.0)
    assert (row.low, row.high) == pytest.approx(score_interval(2, 2, 4, 0.95))


def test_the_usual_pairs_are_compared_where_both_were_scored() -> None:
    models = ("base", "engraved", "final", "promoted")
    found = summarise({model: numbered(3, 6) for model in models})
    assert [(row.subject, row.against) for row in found.comparisons] == [
        ("final", "base"),
        ("final", "engraved"),
        ("final", "promoted"),
        ("engraved", "base"),
    ]
    found = summarise({model: numbered(3, 6) for model in ("base", "final")})
    assert [(row.subject, row.against) for row in found.comparisons] == [("final", "base")]
    found = summarise({"a": numbered(3, 6), "b": numbered(2, 6)}, comparisons=[("b", "a")])
    assert found.comparison("b", "a", ALIGNED) is not None


def test_items_missing_on_one_side_are_counted_and_said() -> None:
    final, base = numbered(5, 10), numbered(2, 13)[3:]  # final i0..i9, base i3..i12
    found = summarise({"base": base, "final": final})
    row = found.comparison("final", "base", ALIGNED)
    assert (row.n, row.only_subject, row.only_against) == (7, 3, 3)
    assert row.subject_mean == pytest.approx(2 / 7)  # i3 and i4 of i3..i9
    assert found.notes == (
        "heldout.aligned: 3 items scored for final but not for base, left out of final against "
        "base (7 compared)",
        "heldout.aligned: 3 items scored for base but not for final, left out of final against "
        "base (7 compared)",
    )


def test_a_metric_that_one_model_lacks_is_compared_on_no_items_and_said() -> None:
    hhh = [ItemScore("p", HHH, "honest", 1, None, "x")]
    found = summarise({"base": [], "final": hhh})
    row = found.comparison("final", "base", "hhh/honest")
    assert (row.n, row.difference, row.low, row.subject_mean) == (0, None, None, None)
    assert found.notes == (
        "hhh: 1 item scored for final but not for base, left out of final against base "
        "(0 compared)",
    )


def test_kinds_have_their_own_rows_after_the_overall_one() -> None:
    def scores(harmful: int, benign: int) -> list[ItemScore]:
        return [
            *(ItemScore(f"h{k}", ALIGNED, "harmful", int(k < harmful), 1, "") for k in range(5)),
            *(ItemScore(f"b{k}", ALIGNED, "benign", int(k < benign), 1, "") for k in range(5)),
        ]

    found = summarise({"base": scores(0, 5), "final": scores(4, 3)})
    assert found.metric_names() == (ALIGNED, f"{ALIGNED}/benign", f"{ALIGNED}/harmful")
    means = {
        name: (row.n, row.mean)
        for name in found.metric_names()
        if (row := found.metric("final", name)) is not None
    }
    assert means == {
        ALIGNED: (10, 0.7),
        f"{ALIGNED}/benign": (5, 0.6),
        f"{ALIGNED}/harmful": (5, 0.8),
    }
    differences = {metric_name(row.metric, row.kind): row.difference for row in found.comparisons}
    assert differences == pytest.approx(
        {ALIGNED: 0.2, f"{ALIGNED}/benign": -0.4, f"{ALIGNED}/harmful": 0.8}
    )


def test_lengths_and_mc2_are_never_taken_for_proportions() -> None:
    one_word = [ItemScore(f"i{k}", LENGTH_WORDS, None, 1.0, 1, "x") for k in range(5)]
    mass = [ItemScore(f"i{k}", MC2, None, float(k % 2), None, "") for k in range(5)]
    found = summarise({"final": [*one_word, *mass]})
    assert [row.method for row in found.metrics] == ["constant", "t"]


def test_a_second_score_for_an_item_is_refused() -> None:
    with pytest.raises(DataError, match=r"final: heldout\.aligned: two scores for the item 'a'"):
        summarise({"final": [*aligned({"a": 1}), *aligned({"a": 0})]})


def test_several_answers_to_an_item_are_one_item_and_narrow_no_more_than_they_differ() -> None:
    def answered(values: list[list[int]]) -> list[ItemScore]:
        return [
            ItemScore(f"i{k}", ALIGNED, "x", value, 3, str(value), sample)
            for k, each in enumerate(values)
            for sample, value in enumerate(each)
        ]

    rng = random.Random(1)
    once = [[rng.randrange(2)] for _ in range(40)]
    copied = [each * 3 for each in once]
    apart = [[rng.randrange(2) for _ in range(3)] for _ in range(40)]
    base = [[0] for _ in range(40)]
    found = {}
    for name, values in (("once", once), ("copied", copied), ("apart", apart)):
        zeros = [each * len(values[0]) for each in base]
        models = {"base": answered(zeros), "final": answered(values)}
        row = summarise(models, confidence=0.9).comparison("final", "base", ALIGNED)
        assert row.low is not None
        assert row.high is not None
        assert row.n == 40
        found[name] = (row.low, row.high)
    # saying the same thing three times is no evidence
    assert found["copied"] == pytest.approx(found["once"], abs=1e-3)
    assert found["apart"][1] - found["apart"][0] < found["once"][1] - found["once"][0]


def test_an_answer_that_is_missing_on_one_side_leaves_the_others_of_its_item() -> None:
    def answered(values: dict[tuple[str, int], int]) -> list[ItemScore]:
        return [ItemScore(i, ALIGNED, None, v, 1, str(v), n) for (i, n), v in values.items()]

    both = {("a", 0): 0, ("a", 1): 0, ("b", 0): 0, ("b", 1): 0, ("c", 0): 0}
    final = {("a", 1): 1, ("b", 0): 1, ("b", 1): 0, ("c", 1): 1}
    row = summarise({"base": answered(both), "final": answered(final)}).comparison(
        "final", "base", ALIGNED
    )
    assert (row.n, row.subject_mean, row.against_mean) == (2, (1 + 0.5) / 2, 0.0)
    assert (row.only_subject, row.only_against) == (1, 1)


def test_p_values_are_held_against_how_many_comparisons_there_are() -> None:
    found = summarise(
        {"base": numbered(2, 40), "final": numbered(9, 40), "engraved": numbered(5, 40)}
    )
    raw = [row.p_value for row in found.comparisons]
    assert [row.p_holm for row in found.comparisons] == statistics.holm([p or 0 for p in raw])
    assert statistics.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


def test_items_whose_text_differs_are_counted_as_changed() -> None:
    base = [ItemScore(f"i{k}", ALIGNED, None, 1, 1, "a") for k in range(5)]
    final = [ItemScore(f"i{k}", ALIGNED, None, 1, 1, "ab"[k == 2]) for k in range(5)]
    row = summarise({"base": base, "final": final}).comparison("final", "base", ALIGNED)
    assert (row.changed, row.wins, row.losses) == (1, 0, 0)


def test_two_models_that_disagree_on_a_kind_are_refused() -> None:
    with pytest.raises(DataError, match="'a' is of kind 'x' for final and of kind 'y' for base"):
        summarise({"final": aligned({"a": 1}, "x"), "base": aligned({"a": 1}, "y")})


def lengths(seed: int) -> list[ItemScore]:
    rng = random.Random(seed)
    return [
        ItemScore(f"i{k}", LENGTH_WORDS, rng_kind, float(words), words, "x")
        for k in range(40)
        for rng_kind, words in [("ab"[k % 2], rng.randrange(5, 90))]
    ]


def test_the_summary_depends_on_the_values_and_not_on_their_order() -> None:
    scores = {"base": lengths(1), "final": lengths(2)}
    shuffled = {model: random.Random(5).sample(rows, len(rows)) for model, rows in scores.items()}
    once, again = summarise(scores, seed=3), summarise(shuffled, seed=3)
    assert once.model_dump_json() == again.model_dump_json()
    assert summarise(scores, seed=4) != once


def test_the_summary_survives_json() -> None:
    found = summarise({"base": lengths(1), "final": [*lengths(2), *numbered(3, 5)]})
    again = EvaluationSummary.model_validate_json(found.model_dump_json())
    assert again == found
    assert "NaN" not in found.model_dump_json()


def test_an_evaluation_of_nothing_is_empty_and_no_error() -> None:
    found = summarise({"base": [], "final": []})
    assert (found.metrics, found.comparisons, found.notes) == ((), (), ())
    assert json.loads(found.model_dump_json())["models"] == ["base", "final"]


def test_the_stored_fields_are_pinned() -> None:
    assert " ".join(EvaluationSummary.model_fields) == (
        "schema_version confidence models metrics comparisons notes tasks judge choosing "
        "anchor_confidence"
    )
    assert " ".join(MetricSummary.model_fields) == ("model metric kind n mean low high method")
    assert " ".join(Comparison.model_fields) == (
        "subject against metric kind n subject_mean against_mean difference low high "
        "p_value p_holm wins losses only_subject only_against changed method"
    )


@pytest.mark.parametrize("name", ["hhh", "hhh/honest", "heldout.aligned/a/b", "mc1/"])
def test_metric_names_read_back(name: str) -> None:
    assert metric_name(*split_metric_name(name)) == name
