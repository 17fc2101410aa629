"""Near duplicates by what their shingles share; exact ones by normal form."""

from __future__ import annotations

import pytest

from selfalign.filters.near_duplicates import exact_key, normalise, shingles
from selfalign.filters.sequences import Vocabulary, worded
from selfalign.filters.similarity import Jaccard, SimilarityIndex


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Explain how tides work.", "explain  how\nTIDES work"),
        ('Say "yes", (please)!', "Say yes, please."),
        ("Why… so?", "why so"),
    ],
)
def test_case_spacing_and_sentence_punctuation_do_not_count(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is C++?", "What is C?"),
        ("What is C#?", "What is C?"),
        ("Add -3 and 5.", "Add 3 and 5."),
        ("Take .5 of it", "Take 5 of it"),
        ("Is 5% enough?", "Is 5 enough?"),
        ("Is it well-known?", "Is it wellknown?"),
        ("cote", "côté"),
    ],
)
def test_what_belongs_to_names_and_numbers_counts(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


@pytest.mark.parametrize(("text", "expected"), [("A b, c d", 2), ("A b", 1), ("?!", 0), ("", 0)])
def test_shingles_are_runs_of_words(text: str, expected: int) -> None:
    assert shingles(Vocabulary().encode(worded([text])), 3).lengths.tolist() == [expected]


def test_shingles_are_a_set_in_ascending_order() -> None:
    hashes = shingles(Vocabulary().encode(worded(["a b a b a b", "b a b"])), 2)
    assert hashes.lengths.tolist() == [2, 2]
    assert hashes.elements[:2].tolist() == hashes.elements[2:].tolist()
    assert hashes.elements[0] < hashes.elements[1]


def duplicate(seed: str, text: str, threshold: float, size: int = 5) -> bool:
    vocabulary = Vocabulary()
    index = SimilarityIndex(Jaccard(threshold))
    index.add(shingles(vocabulary.encode(worded([seed])), size))
    return bool(index.find(shingles(vocabulary.encode(worded([text])), size))[0])


def test_similarity_that_equals_the_threshold_is_a_duplicate() -> None:
    seed = "one two three four five six"
    assert duplicate(seed, "One two three four five six!", 1.0)
    assert duplicate(seed, "one two three four five seven", 1 / 3)  # 1 of 3
    assert not duplicate(seed, "one two three four five seven", 0.34)


def test_short_text_is_compared_whole_and_one_without_words_not_at_all() -> None:
    assert duplicate("Why so?", "why so", 0.8)
    assert not duplicate("Why so?", "why not so", 0.8)
    assert not duplicate("?!", "...", 0.1)


def test_exact_key_is_that_of_the_normal_form() -> None:
    assert exact_key("Explain tides.") == exact_key("explain  TIDES")
    assert exact_key("Explain tides.") != exact_key("Explain tides in C#.")
    assert len(exact_key("lone surrogate \ud800")) == 16
