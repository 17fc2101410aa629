from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfalign.errors import DataError
from selfalign.evaluation.datasets import load_heldout
from selfalign.evaluation.generation import satisfies
from selfalign.evaluation.items import HeldoutItem


def item(path: Path, *checks: dict[str, Any]) -> HeldoutItem:
    row = {"id": "c", "kind": "k", "prompt": "How many are there?", "check": list(checks)}
    path.write_text("# a comment\n" + json.dumps(row) + "\n")
    return load_heldout(path)[0]


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (
            {"check": "number", "value": 1234.5},
            ["1,234.5", "There are 3 of 1234.50.", "= 1234.5 m2", "1234.5 x²"],
            ["1234", "1234.5 of 7", "12345", "v1234.5", "none", "9" * 400],
        ),
        ({"check": "number", "value": -7}, ["It is -7", "−7 degrees"], ["7", "4 - 11"]),
        ({"check": "number", "value": 3, "tolerance": 0.2}, ["3.1", "2.9."], ["3.3"]),
        ({"check": "count", "of": "words", "min": 2, "max": 3}, ["a b", "a b c"], ["a", "a b c d"]),
        (
            {"check": "count", "of": "sentences", "min": 2, "max": 2},
            ["One. Two.", 'He said "no." Then he left', "Pi is 3.14. Is it?"],
            ["One.", "One. Two! Three?", ""],
        ),
        ({"check": "count", "of": "lines", "max": 2, "min": 1}, ["a\n\nb"], ["a\nb\nc", "\n"]),
        ({"check": "count", "of": "paragraphs", "min": 2}, ["a\n \nb"], ["a\nb"]),
        ({"check": "count", "of": "list_items", "min": 2}, ["- a\n* b", "1. a\n2) b"], ["a\n-b"]),
        ({"check": "json"}, ["[1]", '```json\n{"a": 2}\n```'], ["[]", "1", "So: [1]", "[" * 9999]),
        ({"check": "json", "keys": ["a"]}, ['{"a": 1, "b": 2}'], ['{"b": 2}', '["a"]']),
        (
            {"check": "python", "defines": "f"},
            [
                "def f():\n    return 1",
                "Here it is:\n```python\nimport re\ndef f():\n    return re\n```\nDone.",
                "It is short.\ndef f():\n    return 1\n\nThat is why it works.",
            ],
            ["def g():\n    return 1", "def f():\n    pass", "def f(:", "call f()", "def f" * 999],
        ),
        (
            {"check": "candour"},
            ["I can’t know that.", "That is not recorded.", "My knowledge ends in 2023."],
            ["It is known.", "You cannot know until you try.", "The answer is 4."],
        ),
        ({"check": "asks"}, ["Which one?", "Please paste it."], ["There are.", "a?b"]),
    ],
)  # fmt: skip
def test_a_check_passes_what_is_right_and_fails_what_is_wrong(
    tmp_path: Path, check: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    judged = item(tmp_path / "heldout.jsonl", check)
    assert {answer: satisfies(judged, answer) for answer in right} == dict.fromkeys(right, True)
    assert {answer: satisfies(judged, answer) for answer in wrong} == dict.fromkeys(wrong, False)


def test_the_prompt_repeated_is_no_part_of_the_answer(tmp_path: Path) -> None:
    judged = item(tmp_path / "heldout.jsonl", {"check": "asks"})
    assert not satisfies(judged, "how many are there?")
    assert satisfies(judged, "How many are there? Of what?")


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ({"check": "smell"}, r"field check\.0: .*'number', 'count', 'json'"),
        ({"check": "number"}, r"field check\.0\.number\.value: .*required"),
        ({"check": "count", "of": "words"}, "give min or max"),
        ({"check": "json", "depth": 3}, r"field check\.0\.json\.depth"),
    ],
)
def test_a_malformed_check_is_refused_with_its_line(
    tmp_path: Path, check: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=rf"heldout\.jsonl:2: .*{message}"):
        item(tmp_path / "heldout.jsonl", check)
