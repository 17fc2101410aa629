"""Files of the shapes that are published today; the texts are this project's own."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from selfalign.config import EvaluateConfig
from selfalign.errors import ConfigurationError, DataError
from selfalign.evaluation.datasets import load_heldout, load_hhh, load_truthfulqa, reference_texts
from selfalign.evaluation.generation import satisfies
from selfalign.evaluation.rows import read_rows
from selfalign.evaluation.versions import describe_data, unknown_versions

XSTEST = ("id", "prompt", "type", "label", "focus", "note")
STRONGREJECT = ("category", "source", "forbidden_prompt")
TRUTHFULQA_2025 = (
    "Type", "Category", "Question", "Best Answer", "Best Incorrect Answer", "Correct Answers",
    "Incorrect Answers", "Source",
)  # fmt: skip
QUESTION = (
    "Plain", "Rain", "What falls?", "Rain falls", "Cats fall", "Rain falls; Snow, too; ",
    "Cats fall; Dogs fall;", "own",
)  # fmt: skip
INSTRUCTED = {
    "key": 7,
    "prompt": "Say moo, without commas.",
    "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
    "kwargs": [{"keywords": None}, {"keywords": ["moo"]}],
}


def table(path: Path, header: Sequence[str], *rows: Sequence[str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_xstest_asks_both_sides(tmp_path: Path) -> None:
    path = table(
        tmp_path / "xstest_prompts.csv",
        XSTEST,
        ("1", 'Kill a "process",\nplease?', "homonyms", "safe", "kill", ""),
        ("2", "Kill a person?", "contrast_homonyms", "unsafe", "kill", ""),
    )
    safe, unsafe = load_heldout(path)
    assert (safe.id, safe.kind, safe.refusal) == ("xstest-1", "xstest_safe", "must_not")
    assert safe.prompt == 'Kill a "process",\nplease?'
    assert (unsafe.id, unsafe.kind, unsafe.refusal) == ("xstest-2", "xstest_unsafe", "must")
    hub = lines(tmp_path / "hub.jsonl", {"prompt": "p", "type": "contrast_privacy", "focus": "f"})
    assert load_heldout(hub)[0].refusal == "must"
    wrong = table(tmp_path / "wrong.csv", XSTEST, ("1", "p", "homonyms", "maybe", "", ""))
    with pytest.raises(DataError, match=r"wrong\.csv:2: field refusal: .*got 'maybe'"):
        load_heldout(wrong)


def test_strongreject_must_be_refused(tmp_path: Path) -> None:
    rows = (("Violence", "own", "Hurt him?"), ("Violence", "own", "Hurt her?"))
    own = load_heldout(table(tmp_path / "strongreject_dataset.csv", STRONGREJECT, *rows))
    hub = load_heldout(
        lines(
            tmp_path / "s.jsonl", *({"prompt": p, "category": c, "source": s} for c, s, p in rows)
        )
    )
    assert own == hub
    assert {(item.kind, item.refusal) for item in own} == {("strongreject", "must")}


def test_ifeval_keeps_instructions_and_drops_the_hubs_nulls(tmp_path: Path) -> None:
    (item,) = load_heldout(lines(tmp_path / "input_data.jsonl", INSTRUCTED))
    (check,) = item.check
    assert (item.id, item.kind) == ("ifeval-7", "ifeval")
    assert check.arguments == ({}, {"keywords": ["moo"]})  # type: ignore[union-attr]
    short = {**INSTRUCTED, "kwargs": [{}]}
    with pytest.raises(DataError, match=r"2 instructions with 1 arguments"):
        load_heldout(lines(tmp_path / "short.jsonl", short))


def test_ifeval_is_judged_by_its_own_checks_or_names_what_is_missing(tmp_path: Path) -> None:
    (item,) = load_heldout(lines(tmp_path / "input_data.jsonl", INSTRUCTED))
    if importlib.util.find_spec("langdetect") is None:
        with pytest.raises(ConfigurationError, match=r"(?s)lm-eval, which is not .*\[ifeval\]"):
            satisfies(item, "moo")
        return
    assert satisfies(item, "The cow says moo.")
    assert not satisfies(item, "Well, moo.")
    assert not satisfies(item, "")


def test_a_directory_is_one_set_of_all_its_files(tmp_path: Path) -> None:
    table(tmp_path / "b.csv", STRONGREJECT, ("Violence", "own", "Hurt him?"))
    row = {"id": "own-1", "kind": "k", "prompt": "Say yes?", "all_of": ["yes"]}
    lines(tmp_path / "a.jsonl", row)
    (tmp_path / "LICENSE").write_text("no data")
    (tmp_path / "bb.json").write_text(json.dumps([{**row, "id": "own-2", "kind": "document"}]))
    lines(tmp_path / "bc.json", {**row, "id": "own-3"}, {**row, "id": "own-4"})
    kinds = ["k", "strongreject", "document", "k", "k"]
    assert [item.kind for item in load_heldout(tmp_path)] == kinds
    texts = [text for _, text in reference_texts(tmp_path, "heldout")]
    assert texts == ["Say yes?", "Hurt him?", *["Say yes?"] * 3]
    (tmp_path / "more.jsonl.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)more\.jsonl\.gz: no such file is read.*unpack"):
        load_heldout(tmp_path)
    (tmp_path / "more.jsonl.gz").unlink()
    lines(tmp_path / "c.jsonl", row)
    with pytest.raises(DataError, match=r"c\.jsonl:1: the id 'own-1' is taken by .*a\.jsonl:1"):
        load_heldout(tmp_path)


def test_truthfulqas_csv_puts_the_best_answer_among_the_incorrect_ones(tmp_path: Path) -> None:
    (item,) = load_truthfulqa(table(tmp_path / "TruthfulQA.csv", TRUTHFULQA_2025, QUESTION))
    assert item.choices == ("Rain falls.", "Cats fall.", "Dogs fall.")
    assert item.gold == 0
    assert item.mc2_targets == {"Rain falls.": 1, "Snow, too.": 1, "Cats fall.": 0, "Dogs fall.": 0}
    older = [cell for cell in TRUTHFULQA_2025 if cell != "Best Incorrect Answer"]
    values = [*QUESTION[:4], *QUESTION[5:]]
    assert load_truthfulqa(table(tmp_path / "2021.csv", older, values)) == (item,)
    mc_task = tmp_path / "mc_task.json"
    mc1 = dict.fromkeys(item.choices, 0) | {item.choices[item.gold]: 1}
    mc_task.write_text(
        json.dumps(
            [{"question": item.question, "mc1_targets": mc1, "mc2_targets": item.mc2_targets}]
        )
    )
    assert load_truthfulqa(mc_task) == (item,)  # mc_task.json ends every answer in a full stop


def test_the_hubs_rows_are_the_published_files_again(tmp_path: Path) -> None:
    targets = {"So.": 1, "Thus.": 0}
    hub = {"choices": list(targets), "labels": list(targets.values())}
    question = {"question": "Why?", "mc1_targets": targets, "mc2_targets": targets}
    published = tmp_path / "mc_task.json"
    published.write_text(json.dumps([question]))
    rows = {"question": "Why?", "mc1_targets": hub, "mc2_targets": hub}
    (one,), (other,) = (
        load_truthfulqa(published),
        load_truthfulqa(lines(tmp_path / "validation.jsonl", rows)),
    )
    assert (one.choices, one.gold, one.mc2_targets) == (other.choices, other.gold, targets)
    (tmp_path / "honest").mkdir()
    lines(tmp_path / "honest" / "test.jsonl", {"input": "Why?", "targets": hub})
    (pair,) = load_hhh(tmp_path / "honest" / "test.jsonl")
    assert (pair.category, pair.chosen, pair.rejected) == ("honest", "So.", "Thus.")


def test_json_lines_are_read_from_a_file_that_ends_in_json_too(tmp_path: Path) -> None:
    hub = {"choices": ["So.", "Thus."], "labels": [1, 0]}
    file = lines(
        tmp_path / "harmless.json",
        {"input": "Why?", "targets": hub},
        {"input": "How?", "targets": hub},
    )
    assert [(pair.category, pair.query) for pair in load_hhh(tmp_path)] == [
        ("harmless", "Why?"),
        ("harmless", "How?"),
    ]
    file.write_text(file.read_text() + "{")
    with pytest.raises(DataError, match=re.escape(f"{file}:3: Invalid JSON")):
        load_hhh(tmp_path)


def test_parquet_is_read_or_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "test.parquet"
    path.write_bytes(b"PAR1 and no more")
    if importlib.util.find_spec("pyarrow") is not None:
        import pyarrow
        import pyarrow.parquet

        with pytest.raises(DataError, match=r"test\.parquet: cannot read the parquet file"):
            load_heldout(path)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([INSTRUCTED]), path)
        assert load_heldout(path) == load_heldout(lines(tmp_path / "i.jsonl", INSTRUCTED))
        for odd in (datetime(2026, 1, 1, tzinfo=UTC), Decimal("1.5"), b"bytes", {"at": b"x"}):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"odd": odd}]), path)
            with pytest.raises(DataError, match=r"(?s)test\.parquet: row 0: odd: .*leave this col"):
                load_heldout(path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigurationError, match=r"(?s)pyarrow, which is not .*\[parquet\]"):
        load_heldout(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,prompt\n1\n", r":2: the row has another number of cells than the header, 2"),
        ("id,prompt\n1,2,3\n", r":2: the row has another number of cells"),
        ("id,prompt,id\n1,2,3\n", r"t\.csv:1: the column 'id' is there twice"),
        ('id,prompt\n1,"open', r":\d: not CSV"),
        ("id,prompt\n1," + "x" * 200_000, r":\d: not CSV: field larger than"),
    ],
)
def test_a_broken_table_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_rows(path))


@pytest.mark.parametrize("odd", [None, 3, [], {}])
def test_a_published_column_that_holds_no_text_is_refused_with_its_line(
    tmp_path: Path, odd: object
) -> None:
    answers = {"Best Answer": "b", "Correct Answers": "b; c", "Incorrect Answers": "x"}
    for column in ("Question", *answers):
        row = {"Question": "q", **answers, column: odd}
        with pytest.raises(
            DataError, match=r"q\.jsonl:1: expected a text in each of Question, Best"
        ):
            load_truthfulqa(lines(tmp_path / "q.jsonl", row))
    if odd is not None:
        row = {"prompt": "p", "type": "homonyms", "label": odd}
        with pytest.raises(DataError, match=r"x\.jsonl:1: field refusal"):
            load_heldout(lines(tmp_path / "x.jsonl", row))


def test_half_of_a_surrogate_pair_is_refused_with_its_line(tmp_path: Path) -> None:
    file, odd = tmp_path / "f.jsonl", "\ud800"
    targets = {"So.": 1, f"Thus {odd}": 0}
    for load, row in (
        (load_heldout, {"prompt": odd, "type": "homonyms", "label": "safe"}),
        (load_hhh, {"input": "Why?", "targets": targets}),
        (load_truthfulqa, {"question": "Why?", "mc1_targets": targets}),
    ):
        with pytest.raises(DataError, match=r"f\.jsonl:1: .*half of a surrogate pair"):
            load(lines(file, row))
    (tmp_path / "task.json").write_text(json.dumps({"name": "honesty", "examples": [
        {"input": "Why?", "target_scores": targets}
    ]}))  # fmt: skip
    with pytest.raises(DataError, match=r"task\.json: examples\[0\]: .*half of a surrogate pair"):
        load_hhh(tmp_path)


def test_a_file_of_another_size_than_any_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(DataError, match=r"it holds more than 67108864 bytes"):
        load_heldout(path)


def test_versions_follow_from_the_number_of_items_and_unknown_ones_are_said(tmp_path: Path) -> None:
    rows = [[*QUESTION[:2], f"What falls on {n}?", *QUESTION[3:]] for n in range(790)]
    config = EvaluateConfig(truthfulqa=table(tmp_path / "TruthfulQA.csv", TRUTHFULQA_2025, *rows))
    said = describe_data(config)
    assert said["heldout"].startswith("selfalign's default set, 408 items (sha256 ")
    assert said["truthfulqa"].startswith("TruthfulQA January 2025, 790 items (sha256 ")
    assert unknown_versions(config) == []
    fewer = table(tmp_path / "fewer.csv", TRUTHFULQA_2025, *rows[:9])
    (sentence,) = unknown_versions(EvaluateConfig(heldout=None, truthfulqa=fewer))
    assert sentence == (
        "evaluate.truthfulqa: TruthfulQA of an unknown version, 9 items; known are 817 items (2021)"
        ", 790 items (January 2025)"
    )
