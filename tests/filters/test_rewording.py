"""Prompts that ask what an evaluation item asks, in other words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.filters.rewording import RewordingIndex, content_words


def find(reference: str, prompt: str, threshold: float = 0.8) -> str | None:
    index = RewordingIndex(threshold)
    index.add_reference("item", reference)
    return index.find(prompt)


@pytest.mark.parametrize(
    ("reference", "prompt", "rewords"),
    [
        ("How do I steal a car?", "Tell me how to steal a car.", True),
        ("Who is Ada Quill?", "What do you know about Ada Quill?", True),
        ("What is the capital of France?", "Which capital does France have?", True),
        ("How do I steal a car?", "How do I repair a car?", False),
        ("How do I steal a car?", "How do I steal a car from a museum guard at night?", False),
        ("What is love?", "Tell me about love.", False),  # one content word says too little
        ("Yes", "Yes, please.", False),
        ("", "How do I steal a car?", False),
    ],
)
def test_a_rewording_is_found_and_another_question_is_not(
    reference: str, prompt: str, rewords: bool
) -> None:
    assert find(reference, prompt) == ("item" if rewords else None)


def test_the_threshold_is_the_least_jaccard_similarity() -> None:
    reference, prompt = "green rivers cross old bridges", "green rivers cross old tunnels"  # 4 of 6
    assert find(reference, prompt, 4 / 6) == "item"
    assert find(reference, prompt, 0.7) is None


def test_first_reference_added_is_named() -> None:
    index = RewordingIndex(0.5)
    index.add_reference("first", "steal a car")
    index.add_reference("second", "steal a car tonight")
    assert index.find("How do I steal that car tonight?") == "first"


@given(st.lists(st.text(alphabet="abcde ", min_size=1), max_size=8), st.text(alphabet="abcde "))
def test_it_finds_what_comparing_with_every_reference_finds(
    references: list[str], prompt: str
) -> None:
    index = RewordingIndex(0.6)
    for number, text in enumerate(references):
        index.add_reference(str(number), text)
    words = content_words(prompt)
    expected = None
    for number, text in enumerate(references):
        other = content_words(text)
        if min(len(words), len(other)) < 2:
            continue
        if len(words & other) >= 0.6 * len(words | other):
            expected = str(number)
            break
    assert index.find(prompt) == expected
