"""The held-out set that comes with selfalign is what its rubrics say it is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from selfalign.config import SeedsConfig
from selfalign.evaluation.datasets import load_heldout
from selfalign.evaluation.generation import satisfies
from selfalign.evaluation.items import HeldoutItem
from selfalign.evaluation.refusal import classify_refusal
from selfalign.filters.decontamination import Decontaminator
from selfalign.filters.rewording import RewordingIndex
from selfalign.seeds import load_seeds

SEEDS = Path(__file__).parents[2] / "seeds"
REFUSAL = "I'm sorry, but I can't help with that."
DEGENERATE = {
    "empty": "",
    "one word for ever": "the " * 400,
    "willing and nothing else": "Sure, I am glad to help you with that.",
    "two words": "Yes. No.",
}


@pytest.fixture(scope="module")
def items() -> tuple[HeldoutItem, ...]:
    return load_heldout(Path("default"))


def test_every_kind_has_as_many_items_and_each_item_a_rubric_and_a_reference(
    items: tuple[HeldoutItem, ...],
) -> None:
    kinds = Counter(item.kind for item in items)
    assert len(kinds) == 17
    assert set(kinds.values()) == {24}
    assert all(item.rubric and item.reference for item in items)
    assert all(item.refusal == "must" or satisfies(item, "") is not None for item in items)


def test_every_principle_is_put_to_the_test_by_some_items(items: tuple[HeldoutItem, ...]) -> None:
    principles = {rule.name for rule in load_seeds(SeedsConfig(directory=SEEDS)).principles}
    tested = Counter(item.principle for item in items)
    assert set(tested) == principles
    assert min(tested.values()) >= 6


def test_both_sides_of_refusal_are_asked_and_the_larger_one_is_to_answer(
    items: tuple[HeldoutItem, ...],
) -> None:
    sides = Counter(item.refusal for item in items)
    assert sides["must"] == 48
    assert sides["must_not"] == 168


def test_every_reference_is_right_and_refuses_only_what_must_be(
    items: tuple[HeldoutItem, ...],
) -> None:
    wrong = []
    for item in items:
        reference = item.reference or ""
        expected = "refuses" if item.refusal == "must" else "complies"
        found = classify_refusal(item.prompt, reference)
        if satisfies(item, reference) is False or found != expected:
            wrong.append((item.id, reference))
    assert wrong == []


@pytest.mark.parametrize("name", [*DEGENERATE, "the prompt", "the prompt, louder"])
def test_a_degenerate_answer_satisfies_no_item(items: tuple[HeldoutItem, ...], name: str) -> None:
    passed = [
        item.id
        for item in items
        if satisfies(item, DEGENERATE.get(name, f"{item.prompt} {item.prompt.upper()}"))
    ]
    assert passed == []


def test_one_refusal_of_everything_satisfies_none_of_the_items_that_judge_no_refusal(
    items: tuple[HeldoutItem, ...],
) -> None:
    assert [item.id for item in items if item.refusal is None and satisfies(item, REFUSAL)] == []


def test_another_items_reference_is_seldom_right(items: tuple[HeldoutItem, ...]) -> None:
    """A pattern that most answers hold would measure nothing."""
    judged = [item for item in items if satisfies(item, "") is not None]
    shifted = judged[7:] + judged[:7]
    by_kind = Counter(
        item.kind
        for item, other in zip(judged, shifted, strict=True)
        if satisfies(item, other.reference or "")
    )
    # these three are judged by their form: not to know, to ask, or to be kind
    assert sum(by_kind.values()) - sum(by_kind[k] for k in ("unknowable", "current", "ambiguous")) \
        <= 0.05 * len(judged)  # fmt: skip


def test_no_item_rewords_another_or_a_seed(items: tuple[HeldoutItem, ...]) -> None:
    seeds = load_seeds(SeedsConfig(directory=SEEDS))
    runs, words = Decontaminator(8), RewordingIndex(0.6)
    for index, text in enumerate([*seeds.general, *(s.question for s in seeds.topic_guided)]):
        runs.add_reference(f"seed {index}", text)
        words.add_reference(f"seed {index}", text)
    found = []
    for item in items:
        found += [(item.id, other) for other in (runs.find(item.prompt), words.find(item.prompt))]
        runs.add_reference(item.id, item.prompt)
        words.add_reference(item.id, item.prompt)
    assert [pair for pair in found if pair[1] is not None] == []
