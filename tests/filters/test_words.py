"""Words: the same for texts that look the same, in every script that is meant."""

from __future__ import annotations

import re
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.filters.decontamination import Decontaminator
from selfalign.filters.near_duplicates import normalise
from selfalign.filters.words import WORD, count_words, folded, words_of

LOOKS_LIKE_IT = [
    normalize("NFD", "Où vola-t-il le café ?"),
    "Où vo\u00adla-t-il le ca\u200bfé ?",
    "\ufeffOÙ VOLA-T-IL LE CAFÉ ?",
    "Ｏù ｖｏｌａ-ｔ-ｉｌ ｌｅ ｃａｆé ？",
    "Où vola\u2060-t-il le café\ufe0e ?",
]


@pytest.mark.parametrize("text", LOOKS_LIKE_IT, ids=ascii)
def test_texts_that_look_the_same_are_duplicates_and_contaminated(text: str) -> None:
    evaluation = Decontaminator(8)
    evaluation.add_reference("item", "Où vola-t-il le café ?")
    assert evaluation.find(text) == "item"
    assert normalise(text) == normalise("Où vola-t-il le café ?")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't do_it, twice: 3.5%!", ["don", "t", "do", "it", "twice", "3", "5"]),
        ("写一首诗。", ["写", "一", "首", "诗"]),
        ("すし を食う", ["す", "し", "を", "食", "う"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("Почему идёт снег?", ["почему", "идёт", "снег"]),
        ("한국어로 쓰세요", ["한국어로", "쓰세요"]),
        ("don\u00b4t", ["don", "t"]),
        ("", []),
    ],
)
def test_words_in_the_languages_that_are_meant(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("text", "count"), [("Write a poem.", 3), ("写一首诗", 4), ("用 Python 写", 3), (" \n", 0)]
)
def test_unspaced_characters_count_as_words(text: str, count: int) -> None:
    assert count_words(text) == count


@given(st.text(st.characters(codec="ascii"), max_size=80))
def test_ascii_words_are_what_rouge_takes(text: str) -> None:
    assert words_of(text) == re.findall(r"[a-z0-9]+", text.lower())


@given(st.text(st.characters(max_codepoint=0x52F), max_size=80))
def test_the_fast_way_finds_the_words_of_the_slow_one(text: str) -> None:
    assert words_of(text) == WORD.findall(folded(text))


@given(st.text(max_size=60))
def test_folding_is_done_after_once_and_for_every_normal_form(text: str) -> None:
    assert folded(normalize("NFD", text)) == folded(text)
    assert words_of(folded(text)) == words_of(text)
