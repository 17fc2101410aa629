"""Parsing what list prompts bring back, and judging each item."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfalign.filters.candidates import (
    candidate_verdict,
    parse_numbered_list,
    parse_questions,
    parse_topics,
)
from selfalign.seeds import Hint


@pytest.mark.parametrize(
    ("completion", "items"),
    [
        (" Write a poem.\n7. Explain tides.\n8. Why?", ["Write a poem.", "Explain tides.", "Why?"]),
        ("6. Write a poem.\n7. Explain tides.", ["Write a poem.", "Explain tides."]),
        (
            "6. Write a poem. 7. Explain tides.\n8. Why?",
            ["Write a poem.", "Explain tides.", "Why?"],
        ),
        (" Who won? 7. 'Tides', why? 8. Is 3. odd?", ["Who won?", "'Tides', why?", "Is 3. odd?"]),
        (" Is 7. odd, or 9. Why?\n7. Explain tides.", ["Is 7. odd, or 9. Why?", "Explain tides."]),
        (" 6) Write a poem.\n7) Explain tides.", ["Write a poem.", "Explain tides."]),
        ("\n1. Write a poem.\n2. Explain tides.", ["Write a poem.", "Explain tides."]),
        (" Write a poem.\n\n7. Explain tides.\n", ["Write a poem.", "Explain tides."]),
        (" Sort these words:\n  pear, fig\n7. Why?", ["Sort these words: pear, fig", "Why?"]),
        ("\nWrite a poem.\n7 . Explain tides.", ["Write a poem.", "Explain tides."]),
        (" Write a poem.\n7. \n8. Why?", ["Write a poem.", "Why?"]),
        (" Write 3.5 as a fraction.\n7. Why?", ["Write 3.5 as a fraction.", "Why?"]),
        ("", []),
        ("\n\n", []),
    ],
)
def test_items_are_read_in_order(completion: str, items: list[str]) -> None:
    assert parse_numbered_list(completion, 6, "stop") == items


@pytest.mark.parametrize(
    ("completion", "items"),
    [
        (" One.\n9. Nine.\n10. Ten.", ["One."]),
        (" One.\n7. Two.\n7. Three.", ["One.", "Two."]),
        (" One.\n1. Again one.", ["One."]),
        (" One.\n7. Two.\n\nI hope this helps!\n8. Three.", ["One.", "Two."]),
    ],
)
def test_list_ends_where_its_numbering_breaks(completion: str, items: list[str]) -> None:
    assert parse_numbered_list(completion, 6, "stop") == items
    assert parse_numbered_list(completion, 6, "length") == items  # what was cut came later


@pytest.mark.parametrize(
    ("completion", "items"),
    [
        (" One.\n7. Two is cut of", ["One."]),
        (" One.\n7. Two.\n8.", ["One.", "Two."]),
        (" One.\n7. Two.\n1", ["One."]),
        (" One is cut of", []),
        ("", []),
    ],
)
def test_last_item_of_a_truncated_generation_is_dropped(completion: str, items: list[str]) -> None:
    assert parse_numbered_list(completion, 6, "length") == items


line_text = st.builds(str.__add__, st.sampled_from("abc"), st.text("abc 5.-", max_size=14))


@settings(deadline=None)
@given(st.lists(line_text, min_size=1, max_size=8), st.integers(1, 120), st.sampled_from(".)"))
def test_whatever_was_numbered_is_read_back(items: list[str], first: int, mark: str) -> None:
    listed = "\n".join(f"{n}{mark} {item}" for n, item in enumerate(items, first))
    clean = [" ".join(item.split()) for item in items]
    assert parse_numbered_list(listed, first, "stop") == clean
    assert parse_numbered_list(listed.removeprefix(f"{first}{mark}"), first, "stop") == clean
    assert parse_numbered_list(listed, first, "length") == clean[:-1]


@settings(deadline=None)
@given(st.text(alphabet="a 123.)\n", max_size=60), st.sampled_from(["stop", "length"]))
def test_no_completion_breaks_the_parser(completion: str, finish_reason: str) -> None:
    for item in parse_numbered_list(completion, 3, finish_reason):  # type: ignore[arg-type]
        assert item
        assert "\n" not in item


HINTS = [Hint("art", "oil paint"), Hint("current events", "Mayor's (new) race")]


def test_question_counts_only_if_it_repeats_its_hint() -> None:
    completion = (
        " (art; oil paint) Who first mixed oil paint?\n"
        "4. Who will win the race?\n"
        "5. (art; water paint) Who thins it?"
    )
    assert parse_questions(completion, HINTS, 3, "stop") == {0: "Who first mixed oil paint?"}


def test_question_is_found_by_its_hint_whatever_its_place_case_and_spacing() -> None:
    completion = " ( Current  events; mayor's (NEW) race ) Who leads?\n4. (ART; oil paint) Why oil?"
    assert parse_questions(completion, HINTS, 3, "stop") == {1: "Who leads?", 0: "Why oil?"}


def test_first_question_of_a_hint_counts_and_an_empty_one_does_not() -> None:
    completion = " (art; oil paint)\n4. (art; oil paint) First?\n5. (art; oil paint) Second?"
    assert parse_questions(completion, HINTS, 3, "stop") == {0: "First?"}


def test_question_that_was_cut_is_dropped() -> None:
    completion = " (art; oil paint) Who?\n4. (current events; Mayor's (new) race) Who is ah"
    assert parse_questions(completion, HINTS, 3, "length") == {0: "Who?"}


def test_topics_are_short_phrases_each_once() -> None:
    completion = (
        ' "Oil paint".\n4. oil Paint\n5. The history of dyes\n6. What is art?\n7. Rembrandt\n'
        "8. art & craft\n9. (none)\n10. Marie Curie's lab\n11. Rembrandt's"
    )
    known = ["Art & Craft"]
    assert parse_topics(completion, 3, "stop", known=known) == [
        "Oil paint", "Rembrandt", "Marie Curie's lab", "Rembrandt's",
    ]  # fmt: skip
    assert parse_topics(completion, 3, "length", known=known)[-1] == "Marie Curie's lab"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Explain how tides work.", None),
        ("Why is this?", "too_short"),
        ("", "too_short"),
        ("word " * 150, None),
        ("word " * 151, "too_long"),
        ("Draw a horse for me.", "impossible_medium"),
        ("Describe the Maps you know.", "impossible_medium"),
        ("Write a flowchart of it.", "impossible_medium"),
        ("Please go to the shop.", "impossible_medium"),
        ("Name the drawer of bitmaps.", None),
        ("Is geography a profile subject?", None),
        ("(Explain how tides work.)", "bad_start"),
        ('"Tides" are caused by what?', "bad_start"),
        ("Étienne was a king, when?", None),
        ("E\u0301tienne was a king, when?", None),
        ("¿Qué comen los osos?", None),
        ("\u200bWho was the first king?", None),
        ("Объясни, почему идёт снег.", None),
        ("写一首关于春天的诗。", None),
        ("你好", "too_short"),
        ("诗" * 151, "too_long"),
        ("“Tides” are caused by what?", "bad_start"),
        ("- Explain how tides work.", "bad_start"),
        ("3 apples cost 2 euros, so?", None),
        ("- draw", "too_short"),
    ],
)
def test_verdict_names_the_first_filter_that_drops(text: str, verdict: str | None) -> None:
    assert candidate_verdict(text, min_words=4, max_words=150) == verdict


def test_topics_that_look_the_same_are_one_topic_in_any_script() -> None:
    completion = " café noir\n4. cafe\u0301 noir\n5. ＣＡＦÉ noir\n6. हिन्दी भाषा\n7. 茶道"
    assert parse_topics(completion, 3, "stop") == ["café noir", "हिन्दी भाषा", "茶道"]
