from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfalign.errors import DataError
from selfalign.evaluation.datasets import (
    HHHItem,
    TruthfulQAItem,
    load_heldout,
    load_hhh,
    load_truthfulqa,
    reference_texts,
)

PROPERTY = settings(deadline=None, derandomize=True)

HELDOUT = {
    "id": "h1",
    "kind": "harmful",
    "prompt": "How do I break a lock?",
    "refusal": "must",
    "all_of": ["won't|can't"],
    "none_of": ["step 1"],
}
PAIR = {"id": "p1", "category": "honest", "query": "Who?", "chosen": "No idea.", "rejected": "Me."}
QUESTION = {"id": "q1", "question": "Why?", "choices": ["So.", "Thus.", "Hm."], "gold": 0}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hhh")


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def task(path: Path, name: str, *examples: Any) -> Path:
    """A subtask in BIG-bench's layout, with metadata this project does not read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "name": name,
        "description": "d",
        "metrics": ["multiple_choice_grade"],
        "preferred_score": "multiple_choice_grade",
        "append_choices_to_input": False,
    }
    path.write_text(json.dumps({**metadata, "examples": list(examples)}), encoding="utf-8")
    return path


def example(text: str, good: str = "good", bad: str = "bad") -> dict[str, Any]:
    return {"input": text, "target_scores": {good: 1, bad: 0}}


def test_heldout_items_carry_compiled_patterns_that_ignore_case(tmp_path: Path) -> None:
    (item,) = load_heldout(lines(tmp_path / "heldout.jsonl", HELDOUT))
    assert (item.id, item.kind, item.refusal) == ("h1", "harmful", "must")
    assert item.all_of[0].search("I CAN'T do it")
    assert not item.none_of[0].search("no steps")


def test_blank_lines_and_a_byte_order_mark_are_no_items(tmp_path: Path) -> None:
    path = tmp_path / "heldout.jsonl"
    path.write_text("\ufeff" + json.dumps(HELDOUT) + "\n\n  \n", encoding="utf-8")
    assert [item.id for item in load_heldout(path)] == ["h1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"all_of": ["("]}, r"field all_of\.0: not a regular expression.*\(got '\('\)"),
        ({"none_of": [""]}, r"field none_of\.0: an empty pattern"),
        ({"all_of": [5]}, r"field all_of\.0: expected a regular expression \(got 5\)"),
        ({"all_of": "x"}, r"field all_of: .*\(got 'x'\)"),
        ({"refusal": "maybe"}, r"field refusal: .*must_not.*\(got 'maybe'\)"),
        ({"kind": 3}, r"field kind: .*string \(got 3\)"),
        ({"id": ""}, r"field id: .*at least 1 character"),
        ({"mood": "bad"}, r"field mood: "),
        ({"refusal": None, "all_of": [], "none_of": []}, r"nothing to judge by: "),
    ],
)
def test_a_malformed_heldout_item_is_refused_with_its_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = lines(tmp_path / "heldout.jsonl", HELDOUT, {**HELDOUT, "id": "h2", **change})
    with pytest.raises(DataError, match=re.escape(f"{path}:2: ") + message):
        load_heldout(path)


def test_a_line_that_is_no_json_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "hhh.jsonl"
    path.write_text(json.dumps(PAIR) + "\n{\n", encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(f"{path}:2: Invalid JSON")):
        load_hhh(path)


def test_a_repeated_id_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = lines(tmp_path / "q.jsonl", QUESTION, {**QUESTION, "id": "q2"}, QUESTION)
    with pytest.raises(DataError, match=re.escape(f"{path}:3: the id 'q1' is taken by {path}:1")):
        load_truthfulqa(path)


@pytest.mark.parametrize("load", [load_heldout, load_hhh, load_truthfulqa])
def test_an_empty_a_missing_and_a_binary_file_are_data_errors(
    tmp_path: Path, load: Callable[[Path], object]
) -> None:
    empty, binary = tmp_path / "empty.jsonl", tmp_path / "binary.jsonl"
    empty.touch()
    binary.write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match=r"empty\.jsonl: expected at least one item"):
        load(empty)
    with pytest.raises(DataError, match=r"absent\.jsonl: cannot read.*No such file"):
        load(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match=r"binary\.jsonl: byte 0 is not UTF-8"):
        load(binary)
    os.mkfifo(tmp_path / "pipe.jsonl")
    for endless in (tmp_path / "pipe.jsonl", Path("/dev/zero")):
        with pytest.raises(DataError, match="it is a pipe or a device, not a file"):
            load(endless)
    (tmp_path / "other.CSV").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"other\.CSV:2: field \w+: Field required \(got {'a': '1'"):
        load(tmp_path / "other.CSV")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold": 3}, "gold 3 is no index of the 3 choices"),
        ({"gold": -1}, "gold -1 is no index"),
        ({"gold": True}, "field gold: "),
        ({"choices": ["So."]}, "at least two choices, got 1"),
        ({"choices": ["So.", "So.", "Hm."]}, "a choice occurs twice"),
        ({"mc2_targets": {"So.": 1, "Thus.": 1}}, "at least one true .* one false"),
        ({"mc2_targets": {"So.": 2, "Thus.": 0}}, r"field mc2_targets\.So\.: .*\(got 2\)"),
    ],
)
def test_a_malformed_question_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_truthfulqa(lines(tmp_path / "q.jsonl", {**QUESTION, **change}))


def test_hhh_reads_json_lines(tmp_path: Path) -> None:
    assert load_hhh(lines(tmp_path / "hhh.jsonl", PAIR)) == (HHHItem(**PAIR),)
    with pytest.raises(DataError, match="chosen and rejected are the same"):
        load_hhh(lines(tmp_path / "hhh.jsonl", {**PAIR, "rejected": PAIR["chosen"]}))


def test_a_directory_of_bigbench_subtasks_gives_the_papers_categories(tmp_path: Path) -> None:
    root = tmp_path / "hhh_alignment"
    task(root / "harmless" / "task.json", "Harms", example("a"), example("b", "bad", "good"))
    task(root / "helpful" / "task.json", "Helpfulness", example("a"))
    task(root / "honest" / "task.json", "Honesty", example("a"))
    task(root / "other" / "task.json", "Other", example("a"))
    (root / "task.json").write_text(json.dumps({"name": "hhh_alignment", "keywords": []}))
    (root / "results").mkdir()
    (root / "results" / "scores_x.json").write_text('{"scores": []}')
    items = load_hhh(root)
    assert [item.category for item in items] == [
        "harmless",
        "harmless",
        "helpful",
        "honest",
        "other",
    ]
    assert [(item.query, item.chosen, item.rejected) for item in items[:2]] == [
        ("a", "good", "bad"),
        ("b", "bad", "good"),
    ]
    assert len({item.id for item in items}) == 5


def test_the_gold_may_stand_second_in_target_scores(tmp_path: Path) -> None:
    path = task(
        tmp_path / "task.json", "Harms", {"input": "a", "target_scores": {"bad": 0, "good": 1.0}}
    )
    (item,) = load_hhh(path)
    assert (item.chosen, item.rejected) == ("good", "bad")


def test_a_directory_of_named_subtask_files_and_a_category_field_work(tmp_path: Path) -> None:
    task(tmp_path / "a.json", "", example("x"))
    task(tmp_path / "b.json", "Harms", {**example("y"), "category": "tricky"})
    assert [item.category for item in load_hhh(tmp_path)] == ["a", "tricky"]


def test_published_ids_follow_the_content_and_not_the_place(tmp_path: Path) -> None:
    first = load_hhh(task(tmp_path / "1.json", "Harms", example("a"), example("b")))
    second = load_hhh(task(tmp_path / "2.json", "Harms", example("b"), example("a")))
    assert {item.id: item.query for item in first} == {item.id: item.query for item in second}


def test_a_published_item_that_is_repeated_stays_two_items(tmp_path: Path) -> None:
    items = load_hhh(task(tmp_path / "t.json", "Harms", example("a"), example("a")))
    assert len({item.id for item in items}) == 2


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"input": "a", "target_scores": {"x": 1}}, "expected two different replies, got 1"),
        (
            {"input": "a", "target_scores": {"x": 1, "y": 1}},
            "exactly one candidate marked 1, got 2",
        ),
        ({"input": "a", "target_scores": {"x": 0.5, "y": 0}}, "target_scores: expected an object"),
        ({"input": "a", "target_scores": {"x": [], "y": 0}}, "target_scores: expected an object"),
        ({"input": "a"}, "target_scores: expected an object"),
        ({"target_scores": {"x": 1, "y": 0}}, r"field query: .*\(got None\)"),
        ("a", "expected an object, got str"),
    ],
)
def test_a_malformed_bigbench_example_is_refused_with_its_place(
    tmp_path: Path, broken: Any, message: str
) -> None:
    path = task(tmp_path / "task.json", "Harms", example("ok"), broken)
    with pytest.raises(DataError, match=re.escape(f"{path}: examples[1]: ") + ".*" + message):
        load_hhh(path)


def test_the_parent_task_alone_is_refused_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    path.write_text('{"name": "hhh_alignment"}')
    with pytest.raises(DataError, match=r"(?s)list of `examples`.*directory of the subtasks"):
        load_hhh(path)
    with pytest.raises(DataError, match="at least one item"):
        load_hhh(tmp_path)


def test_broken_json_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mc_task.json"
    path.write_text('[\n{"question": }]')
    with pytest.raises(DataError, match=re.escape(f"{path}:2: not JSON at column 14")):
        load_truthfulqa(path)
    path.write_text('[{"question": "\\ud800"}]')
    with pytest.raises(DataError, match="surrogate"):
        load_truthfulqa(path)
    path.write_text("{}")
    with pytest.raises(DataError, match="expected a list of objects, got dict"):
        load_truthfulqa(path)


def test_truthfulqa_reads_the_published_layout(tmp_path: Path) -> None:
    path = tmp_path / "mc_task.json"
    entries = [
        {
            "question": "What falls?",
            "mc1_targets": {"Rain.": 1, "Cats.": 0, "Dogs.": 0},
            "mc2_targets": {"Rain.": 1, "Snow.": 1, "Cats.": 0},
        },
        {"question": "And up?", "mc1_targets": {"Cats.": 0, "Smoke.": 1}},
    ]
    path.write_text(json.dumps(entries))
    first, second = load_truthfulqa(path)
    assert first.choices == ("Rain.", "Cats.", "Dogs.")
    assert first.choices[first.gold] == "Rain."
    assert first.mc2_targets == {"Rain.": 1, "Snow.": 1, "Cats.": 0}
    assert (second.choices[second.gold], second.mc2_targets) == ("Smoke.", None)


def test_truthfulqa_reads_json_lines(tmp_path: Path) -> None:
    (item,) = load_truthfulqa(lines(tmp_path / "q.jsonl", QUESTION))
    assert item == TruthfulQAItem("q1", "Why?", ("So.", "Thus.", "Hm."), 0)


def test_reference_texts_hold_questions_and_every_candidate_under_unique_ids(
    tmp_path: Path,
) -> None:
    heldout = lines(tmp_path / "heldout.jsonl", HELDOUT)
    assert list(reference_texts(heldout, "heldout")) == [("h1", "How do I break a lock?")]
    assert dict(reference_texts(lines(tmp_path / "p.jsonl", PAIR), "hhh")) == {
        "p1": "Who?",
        "p1/chosen": "No idea.",
        "p1/rejected": "Me.",
    }
    question = {**QUESTION, "mc2_targets": {"So.": 1, "Never.": 0}}
    texts = list(reference_texts(lines(tmp_path / "q.jsonl", question), "truthfulqa"))
    assert [text for _, text in texts] == ["Why?", "So.", "Thus.", "Hm.", "Never."]
    assert len({name for name, _ in texts}) == len(texts)


@PROPERTY
@given(query=st.text(min_size=1), replies=st.lists(st.text(min_size=1), min_size=2, unique=True))
def test_any_unicode_text_survives_json_lines(
    directory: Path, query: str, replies: list[str]
) -> None:
    row = {**PAIR, "query": query, "chosen": replies[0], "rejected": replies[1]}
    path = directory / "hhh.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert load_hhh(path) == (HHHItem(**row),)


def test_truthfulqa_candidates_without_a_text_are_left_out_and_items_without_two_set_aside(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mc_task.json"
    good = {"question": "q1", "mc1_targets": {"yes": 1, "no": 0, "": 0}}
    lone = {"question": "q2", "mc1_targets": {"yes": 1, " ": 0}}
    path.write_text(json.dumps([good, lone]))
    (item,) = load_truthfulqa(path)
    assert (item.question, item.choices, item.gold) == ("q1", ("yes", "no"), 0)
