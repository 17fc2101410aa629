"""Where answers are cut, and where they must not be."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfalign.filters.cuts import cut_at_next_turn, cut_repeated_clause, cut_to_complete_sentence
from selfalign.seeds import Labels

LABELS = Labels("User:", "Assistant (internal thoughts):", "Assistant:")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("It is so.\n\nUser: And then?", "It is so."),
        ("It is so.\nAssistant (internal thoughts): hm", "It is so."),
        ("It is so.\n  Assistant: again", "It is so."),
        ("User: me", ""),
        ("The User: field is required.\nUsers: many", "The User: field is required.\nUsers: many"),
        ("It is so.\n", "It is so.\n"),
    ],
)
def test_next_turn_opens_at_the_start_of_a_line(text: str, kept: str) -> None:
    assert cut_at_next_turn(text, LABELS) == kept


CODE = """The program counts twice.
```python
for i in range(10):
    for j in range(10):
        print("this is a line of five words or more. It ends here.")
for i in range(10):
    for j in range(10):
        print("this is a line of five words or more. It ends here.")
```
It prints two hundred lines."""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Stir well. Add the flour. Stir well. Add the eggs. Stir well.",
        "If you like, add salt. If you like, add sugar, and if you like, add pepper.",
        "Ha ha ha, no, no, no, that is very, very, very funny.",
        "1. Read the first chapter.\n2. Read the second chapter.\n3. Read the third chapter.",
        CODE,
        "for i in range(3):\n    total = total + i\nfor i in range(3):\n    total = total + i",
        "Row, row, row your boat\ngently down the stream\nRow, row, row your boat\nlife is a dream",
        "Fill in your name: " + "_" * 20,
        "At 12:30, not at 12:45. The ratio is 1,000 to 1,000.",
        "| a | b |\n| - | - |\n| yes | no |\n| yes | no |\n",
        "Some say it is a good idea to wait; others say it is a good idea to hurry.",
    ],
)
def test_what_may_recur_is_left_alone(text: str) -> None:
    assert cut_repeated_clause(text) == text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (
            "I am only a language model. I cannot see it. I am only a LANGUAGE model! So no.",
            "I am only a language model. I cannot see it.",
        ),
        (
            "Drink enough water every day.\n\n2. Drink enough water every day.\n3. Sleep.",
            "Drink enough water every day.",
        ),
        (
            "As a program that was trained on a lot of text, I err. Still, as a program that was "
            "trained on a lot of text, I try.",
            "As a program that was trained on a lot of text, I err.",
        ),
        (
            "He said that the old house on the hill was haunted, and smiled, and he said; "
            "he said that the old house on the hill was haunted, again.",
            "He said that the old house on the hill was haunted, and smiled, and he said",
        ),
        ("It is very " + "very " * 30, "It is very"),
        ("The sea was calm and blue" + ", blue and green and deep" * 3 + ", blue and",
         "The sea was calm and blue, blue and green and deep"),
        ("Rest:\n" + "- more sleep at night\n" * 4, "Rest:\n- more sleep at night"),
        ("a b c d\n" * 3, "a b c d"),
        ("How nice" + "!" * 60, "How nice!"),
    ],
)  # fmt: skip
def test_text_is_cut_before_its_first_repetition(text: str, kept: str) -> None:
    assert cut_repeated_clause(text) == kept


def test_loop_shorter_than_three_copies_or_twelve_words_stays() -> None:
    twice = "one two three four five six seven eight\n" * 2
    assert cut_repeated_clause(twice) == twice
    eleven = "so " * 11
    assert cut_repeated_clause(eleven) == eleven
    assert cut_repeated_clause("so " * 12) == "so"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("It is so. It will be", "It is so."),
        ("It is so.", "It is so."),
        ('He said: "It is so." Then he', 'He said: "It is so."'),
        ("Is it? Yes! But", "Is it? Yes!"),
        ("It costs 3.5 euros or", ""),
        ("Do this:\n1. Rest.\n2. Sleep.\n3.", "Do this:\n1. Rest.\n2. Sleep."),
        ("Do this:\n1. Rest.\n2. Sle", "Do this:\n1. Rest."),
        ("You may choose\n- tea\n- coffee\n- wat", "You may choose\n- tea\n- coffee"),
        ("Ask someone, e.g. Dr. Who, or", ""),
        ("So it is. Ask Dr.", "So it is."),
        ("Here it is.\n```python\nprint(1)\npri", "Here it is."),
        ("Here it is.\n```python\nprint(1)\n```\nAnd the", "Here it is.\n```python\nprint(1)\n```"),
        ("これはペンです。そして", "これはペンです。"),
        ("nothing complete", ""),
        ("These are they:\n", ""),
        ("", ""),
    ],
)
def test_broken_off_text_ends_at_its_last_complete_sentence_or_line(text: str, kept: str) -> None:
    assert cut_to_complete_sentence(text) == kept


texts = st.lists(
    st.sampled_from(
        ["so it is today again.", "and ", "because it was late at night and nobody had come, ",
         "User:", "\n", "```", "1. ", "- ", "Why? ", "yes ", "(", "”", "…"]
    ),
    max_size=14,
).map("".join)  # fmt: skip


@settings(deadline=None)
@given(texts)
def test_cut_keeps_a_beginning(text: str) -> None:
    for kept in (
        cut_repeated_clause(text),
        cut_to_complete_sentence(text),
        cut_at_next_turn(text, LABELS),
    ):
        assert text.startswith(kept)


@settings(deadline=None)
@given(texts)
def test_nothing_repeats_in_what_is_kept(text: str) -> None:
    kept = cut_repeated_clause(text)
    assert cut_repeated_clause(kept) == kept
