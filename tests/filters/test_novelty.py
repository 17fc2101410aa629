"""ROUGE-L as the rouge_score package computes it."""

from __future__ import annotations

import pytest

from selfalign.filters.sequences import Vocabulary, worded
from selfalign.filters.similarity import RougeL, SimilarityIndex
from tests.filters.all_pairs import rouge_l


def novel(seed: str, text: str, threshold: float = 0.7) -> bool:
    vocabulary = Vocabulary()
    index = SimilarityIndex(RougeL(threshold))
    index.add(vocabulary.encode(worded([seed])))
    return not index.find(vocabulary.encode(worded([text])))[0]


def test_score_equal_to_the_threshold_is_novel() -> None:
    seed = "one two three four five six seven x y z"
    assert novel(seed, "one two three four five six seven p q r")  # 14 / 20
    assert not novel(seed, "one two three four five six seven x q r")  # 16 / 20


def test_rounding_at_the_threshold_is_that_of_rouge_score() -> None:
    seed = "one two three four five six seven"
    text = f"{seed} a b c d e f"  # 2 * 7 / 20, for which rouge_score gives 0.7000000000000001
    assert rouge_l(seed, text) > 0.7
    assert not novel(seed, text)


def test_order_of_words_counts_and_case_and_punctuation_do_not() -> None:
    assert not novel("Explain, briefly, how tides work.", "explain briefly HOW tides work")
    assert novel("Explain, briefly, how tides work.", "work tides how briefly explain")


@pytest.mark.parametrize(("text", "expected"), [("no", True), ("no no no", False)])
def test_repeated_words_count_as_often_as_they_occur(text: str, expected: bool) -> None:
    assert novel("no no no no", text) == expected


def test_text_without_words_is_like_nothing() -> None:
    assert novel("?!", "?!", 0.1)
    assert novel("?!", "words", 0.1)
