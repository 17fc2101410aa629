"""The rule that keeps candidates must be that of one at a time, each against all kept before."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import LCSseq

from selfalign.filters import selection
from selfalign.filters.near_duplicates import normalise
from selfalign.filters.screening import Screen, Screened
from selfalign.filters.selection import Selection
from selfalign.filters.words import words_of
from tests.filters.all_pairs import jaccard, rouge_l

REFERENCES = [("item", "who painted the red door of the old mill")]


def one_at_a_time(seeds: list[str], texts: list[str], room: int | None) -> list[str | None]:
    """The rule as it is written down."""
    screen = Screen(REFERENCES, ngram=4, overlap=0.8)
    kept = list(seeds)
    verdicts: list[str | None] = []
    for text in texts:
        reason = screen.screen([text]).reasons[0]
        if normalise(text) in map(normalise, kept):
            reason = "exact_duplicate"
        elif reason is None:
            if any(jaccard(text, other, 2) >= 0.8 for other in kept):
                reason = "near_duplicate"
            elif any(rouge_l(text, other) > 0.7 for other in kept):
                reason = "not_novel"
            elif room is not None and len(kept) - len(seeds) >= room:
                reason = "over_max_prompts"
        if reason is None:
            kept.append(text)
        verdicts.append(reason)
    return verdicts


def selected(
    seeds: list[str], texts: list[str], room: int | None, sizes: list[int]
) -> list[str | None]:
    screen = Screen(REFERENCES, ngram=4, overlap=0.8)
    chosen = Selection(novelty_threshold=0.7, near_duplicate_threshold=0.8, shingle=2)
    chosen.add(Screened.of(seeds))
    verdicts: list[str | None] = []
    while texts:
        size = sizes[len(texts) % len(sizes)]
        left = None if room is None else [room - verdicts.count(None)] * len(texts[:size])
        verdicts += chosen.judge(screen.screen(texts[:size]), left)
        texts = texts[size:]
    assert len(chosen) == len(seeds) + verdicts.count(None)
    return verdicts


words = st.sampled_from("who painted the red door of old mill A b c.".split())  # noqa: SIM905
texts = st.one_of(
    st.lists(words, max_size=9).map(" ".join),
    st.integers(0, 12).map(lambda count: " ".join(["a"] * count)),
    st.permutations("abcdef").map(" ".join),
)


@given(
    st.lists(texts, max_size=3),
    st.lists(texts, max_size=30),
    st.one_of(st.none(), st.integers(0, 6)),
    st.lists(st.integers(1, 20), min_size=1, max_size=3),
    st.sampled_from([1, 4, 512]),
)
@settings(max_examples=150, deadline=None)
def test_verdicts_are_those_of_one_at_a_time(
    seeds: list[str], texts: list[str], room: int | None, sizes: list[int], at_once: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_JUDGED_AT_ONCE", at_once)
        assert selected(seeds, texts, room, sizes) == one_at_a_time(seeds, texts, room)


def test_thousands_of_prompts_are_kept_as_comparing_all_pairs_keeps_them() -> None:
    rng = random.Random(3)
    vocabulary = [f"w{number}" for number in range(800)]
    made = [rng.choices(vocabulary, k=4)]
    while len(made) < 2_000:
        if rng.random() < 0.5:
            made.append(rng.choices(vocabulary[:: rng.choice((1, 50))], k=rng.randint(1, 30)))
        else:
            share = rng.uniform(0, 0.5)
            copied = rng.choice(made)
            made.append([rng.choice(vocabulary) if rng.random() < share else w for w in copied])
    texts = [" ".join(words) for words in made]
    kept: list[list[str]] = []
    expected = []
    for text in texts:
        mine = words_of(text)
        alike = False
        for other in kept:
            common = LCSseq.similarity(mine, other)
            if common:
                precision, recall = common / len(other), common / len(mine)
                alike = 2 * precision * recall / (precision + recall) > 0.7
            if alike:
                break
        expected.append(alike)
        if not alike:
            kept.append(mine)
    chosen = Selection(novelty_threshold=0.7, near_duplicate_threshold=1.0, shingle=100)
    verdicts = chosen.judge(Screened.of(texts))
    assert [verdict is not None for verdict in verdicts] == expected
    assert 400 < sum(expected) < 1_600


def test_a_thousand_texts_that_are_all_alike_leave_one() -> None:
    chosen = Selection(novelty_threshold=0.7, near_duplicate_threshold=0.8, shingle=5)
    texts = [f"what is the name of the capital of region {number}" for number in range(1500)]
    verdicts = chosen.judge(Screened.of(texts))
    assert verdicts[0] is None
    assert set(verdicts[1:]) == {"not_novel"}
