"""The index must find what comparing all pairs finds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfalign.filters import similarity
from selfalign.filters.near_duplicates import shingles
from selfalign.filters.sequences import Sequences, Vocabulary, worded
from selfalign.filters.similarity import Jaccard, RougeL, SimilarityIndex
from tests.filters.all_pairs import jaccard, rouge_l

SHINGLE = 2


def texts_of(words: list[str], longest: int) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(words), max_size=longest).map(" ".join)


# What an index fears: few words that occur everywhere, one word over and over, texts that differ
# in order alone, lengths far apart, and none at all.
texts = st.one_of(
    texts_of(["a", "b", "c", "d", "e", "f"], 12),
    texts_of(["a", "b"], 40),
    st.integers(0, 70).map(lambda count: " ".join(["a"] * count)),
    st.permutations("abcdefgh").map(" ".join),
    texts_of([f"w{number}" for number in range(60)], 30),
)
thresholds = st.one_of(st.sampled_from([0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]), st.floats(0.01, 1))


def check(
    index: SimilarityIndex,
    encode: Callable[[list[str]], Sequences],
    known: list[str],
    asked: list[str],
    alike: Callable[[str, str], bool],
) -> None:
    for start in range(0, len(known), 3):
        index.add(encode(known[start : start + 3]))
    assert len(index) == len(known)
    found = index.find(encode(asked))
    assert found.tolist() == [any(alike(text, other) for other in known) for text in asked]
    later, earlier = index.pairs(encode(asked))
    pairs = list(zip(later.tolist(), earlier.tolist(), strict=True))
    assert set(pairs) == {
        (one, other)
        for one in range(len(asked))
        for other in range(one)
        if alike(asked[one], asked[other])
    }


@pytest.fixture(autouse=True, params=[16, 2])
def _few_hits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short texts need one hit only; with another divisor they need several, as long ones do."""
    monkeypatch.setattr(similarity, "_COMMON_PER_HIT", request.param)


@given(st.lists(texts, max_size=20), st.lists(texts, max_size=8), thresholds)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_rouge_l_finds_what_all_pairs_find(
    known: list[str], asked: list[str], threshold: float
) -> None:
    vocabulary = Vocabulary()
    check(
        SimilarityIndex(RougeL(threshold)),
        lambda some: vocabulary.encode(worded(some)),
        known,
        asked,
        lambda one, other: rouge_l(one, other) > threshold,
    )


@given(st.lists(texts, max_size=20), st.lists(texts, max_size=8), thresholds)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_shingles_find_what_all_pairs_find(
    known: list[str], asked: list[str], threshold: float
) -> None:
    vocabulary = Vocabulary()
    check(
        SimilarityIndex(Jaccard(threshold)),
        lambda some: shingles(vocabulary.encode(worded(some)), SHINGLE),
        known,
        asked,
        lambda one, other: jaccard(one, other, SHINGLE) >= threshold,
    )


@pytest.mark.parametrize(("at_once", "characters"), [(1, 0x110000), (5, 3), (64, 0)])
def test_a_search_in_many_turns_finds_the_same(
    at_once: int, characters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarity, "_NUM_CHARACTERS", characters)
    monkeypatch.setattr(similarity, "_PAIRS_AT_ONCE", at_once)
    monkeypatch.setattr(similarity, "_MEASURED_AT_ONCE", at_once)
    vocabulary = Vocabulary()
    known = [f"{'a ' * count}b c {'d ' * (count % 5)}" for count in range(30)]
    check(
        SimilarityIndex(RougeL(0.7)),
        lambda some: vocabulary.encode(worded(some)),
        known,
        [text.replace("c", "x") for text in known],
        lambda one, other: rouge_l(one, other) > 0.7,
    )


def test_texts_of_more_words_than_strings_have_characters_for_surrogates_too() -> None:
    vocabulary = Vocabulary()
    index = SimilarityIndex(RougeL(0.7))
    text = " ".join(f"w{number}" for number in range(60_000))  # beyond U+D800..U+DFFF
    index.add(vocabulary.encode(worded([text])))
    assert index.find(vocabulary.encode(worded([f"{text} x"]))).tolist() == [True]
