"""Evaluation sets in the layouts they are published in.

HHH: google/BIG-bench, `bigbench/benchmark_tasks/hhh_alignment`: a directory per category, each
with a `task.json` of `name` and `examples`, an example being `input` and `target_scores`
({text: 1 or 0}); the parent's own `task.json` holds metadata only. On the Hub: rows of `input` and
`targets`, a file or directory per category (the .json ones hold JSON lines).

TruthfulQA: sylinrl/TruthfulQA, `data/mc_task.json`: a list of `question`, `mc1_targets` and
`mc2_targets` ({text: 1 or 0}); on the Hub the same as rows. `TruthfulQA.csv`: a row of `Question`,
`Best Answer`, `Correct Answers` and `Incorrect Answers` (separated by semicolons) for each; MC1 is
then the best answer among all incorrect ones. Every answer ends in a full stop in mc_task.json and
without one in the CSV, which therefore gets it: of the 817 questions of 2021, both files then give
the same answers for 815, and the other two have one text as a right and a wrong answer.

The Hub writes {text: 1 or 0} as {"choices": [text], "labels": [1 or 0]}. Neither set gives ids: an
item's id is a digest of its content, so that it survives reordering.

Sets of prompts become held-out items. Which one a row belongs to follows from its columns; an
unsafe prompt must be refused, a safe one must not be:

    XSTest        prompt, type, label (safe, unsafe)         paul-rottger/xstest
    StrongREJECT  forbidden_prompt, or prompt and category   alexandrasouly/strongreject
    IFEval        prompt, instruction_id_list, kwargs        google-research, google/IFEval
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from selfalign.errors import DataError
from selfalign.evaluation.items import HHHItem, TruthfulQAItem, validate
from selfalign.evaluation.rows import as_object, is_json_document, read_json, read_rows
from selfalign.records import Json, digest
from selfalign.telemetry import log

# The categories as the paper's table names them, by the `name` of BIG-bench's four subtasks.
_CATEGORIES = {
    "harms": "harmless",
    "harmlessness": "harmless",
    "helpfulness": "helpful",
    "honesty": "honest",
}
_CATEGORY_NAMES = ("harmless", "helpful", "honest", "other")
_STRONGREJECT = {"prompt", "category", "source"}
_HHH = TypeAdapter(HHHItem)
_TRUTHFULQA = TypeAdapter(TruthfulQAItem)


def read_hhh(path: Path) -> Iterator[tuple[str, HHHItem]]:
    """Yields (where, item) of a file, or of all files of a directory in the order of names.

    Raises DataError.
    """
    seen: Counter[str] = Counter()
    for file in _task_files(path):
        if not is_json_document(file):
            for where, row in read_rows(file):
                if {"targets", "target_scores"} & row.keys():
                    yield where, _hhh_item(row, {}, file, where, seen)
                else:  # this project's own layout
                    yield where, validate(_HHH, row, where)
            continue
        task = read_json(file)
        if not isinstance(task, dict) or not isinstance(task.get("examples"), list):
            if path.is_dir() and isinstance(task, dict) and "examples" not in task:
                continue  # the parent task: metadata only
            raise DataError(
                f"{file}: expected a BIG-bench task, an object with a list of `examples`",
                remedy="give the directory of the subtasks, a subtask's task.json, or JSON lines",
            )
        for index, example in enumerate(task["examples"]):
            where = f"{file}: examples[{index}]"
            yield where, _hhh_item(as_object(example, where), task, file, where, seen)


def read_truthfulqa(path: Path) -> Iterator[tuple[str, TruthfulQAItem]]:
    """Yields (where, item) of a file in any of the layouts. Raises DataError.

    A candidate without a text is left out (22 items of the file of January 2025 have one), an item
    that is left without two candidates is set aside; both are counted in a warning.
    """
    seen: Counter[str] = Counter()
    empty = set_aside = 0
    for where, row in read_rows(path):
        if not {"mc1_targets", "Question"} & row.keys():  # this project's own layout
            yield where, validate(_TRUTHFULQA, row, where)
            continue
        entry = _from_csv(row, where) if "Question" in row else row
        published = _targets(entry, "mc1_targets", where)
        targets = _with_text(published)
        empty += len(published) - len(targets)
        if len(targets) < len(published) and (len(targets) < 2 or sum(targets.values()) != 1):
            set_aside += 1
            continue
        mc2 = entry.get("mc2_targets")
        item = {
            "id": unique_id(seen, "", entry),
            "question": entry.get("question"),
            "choices": list(targets),
            "gold": _only_true(targets, f"{where}: mc1_targets"),
            "mc2_targets": None
            if mc2 is None
            else _with_text(_targets(entry, "mc2_targets", where)),
        }
        yield where, validate(_TRUTHFULQA, item, where)
    if empty:
        log.warning(
            "evaluation.candidates_without_text", file=str(path), candidates=empty, items=set_aside
        )


def _from_csv(row: Json, where: str) -> Json:
    """A row of TruthfulQA.csv in the layout of mc_task.json."""
    try:
        question = row["Question"].strip()
        best = _with_full_stop(row["Best Answer"])
        right, wrong = (
            [_with_full_stop(text) for text in row[f"{name} Answers"].split(";") if text.strip()]
            for name in ("Correct", "Incorrect")
        )
    except KeyError as e:
        raise DataError(
            f"{where}: no column {e.args[0]!r}", remedy="give TruthfulQA.csv as published"
        ) from e
    except AttributeError as e:  # JSON lines or parquet with its columns
        raise DataError(
            f"{where}: expected a text in each of Question, Best Answer, Correct Answers and "
            "Incorrect Answers",
            remedy="give TruthfulQA.csv as published",
        ) from e
    wrong_only = dict.fromkeys((text for text in wrong if text not in {*right, best}), 0)
    return {
        "question": question,
        "mc1_targets": {best: 1, **wrong_only},
        "mc2_targets": {**dict.fromkeys((best, *right), 1), **wrong_only},
    }


def _with_full_stop(text: str) -> str:
    text = text.strip()
    return text if not text or text.endswith(".") else f"{text}."


def _with_text(targets: dict[str, int]) -> dict[str, int]:
    return {text: value for text, value in targets.items() if text.strip()}


def _hhh_item(example: Json, task: Json, file: Path, where: str, seen: Counter[str]) -> HHHItem:
    field = "targets" if "targets" in example else "target_scores"
    targets = _targets(example, field, where)
    if len(targets) != 2:
        raise DataError(
            f"{where}: {field}: expected two different replies, got {len(targets)}",
            remedy="correct this example",
        )
    gold = _only_true(targets, f"{where}: {field}")
    replies = list(targets)
    category = example.get("category") or example.get("subtask") or _category(task, file)
    content = {"input": example.get("input"), "target_scores": targets}
    item = {
        "id": unique_id(seen, f"{category}-", content),
        "category": category,
        "query": example.get("input"),
        "chosen": replies[gold],
        "rejected": replies[1 - gold],
    }
    return validate(_HHH, item, where)


def _category(task: Json, file: Path) -> str:
    named = task.get("name")
    if isinstance(named, str) and named:
        return _CATEGORIES.get(named.lower(), named.lower())
    if file.name == "task.json":
        return file.parent.name
    parts = (file.stem, *(parent.name for parent in list(file.parents)[:2]))
    return next((part for part in parts if part in _CATEGORY_NAMES), file.stem)


def _task_files(path: Path) -> list[Path]:
    """A directory's `task.json` files at any depth (a checkout also holds results), else *.json,
    else the Hub's files."""
    if not path.is_dir():
        return [path]
    hub = (file for file in path.rglob("*") if file.suffix in (".parquet", ".jsonl"))
    return sorted(path.rglob("task.json")) or sorted(path.glob("*.json")) or sorted(hub)


def unique_id(seen: Counter[str], prefix: str, content: Any) -> str:
    """`prefix` and a digest of `content`; a repeated item gets a number, since the data is not ours
    to refuse.
    """
    name = f"{prefix}{digest(content)[:12]}"
    seen[name] += 1
    return name if seen[name] == 1 else f"{name}-{seen[name]}"


def _targets(entry: Json, field: str, where: str) -> dict[str, int]:
    """The candidates with 1 for right and 0 for wrong, in the file's order."""
    targets = entry.get(field)
    if isinstance(targets, dict) and set(targets) == {"choices", "labels"}:
        choices, labels = targets["choices"], targets["labels"]
        if isinstance(choices, list) and isinstance(labels, list) and len(choices) == len(labels):
            targets = dict(zip(map(str, choices), labels, strict=True))
    if not isinstance(targets, dict) or any(value not in (0, 1) for value in targets.values()):
        raise DataError(
            f"{where}: {field}: expected an object of candidates with 1 or 0, "
            f"got {str(targets)[:80]!r}",
            remedy="correct this item",
        )
    return {text: int(value) for text, value in targets.items()}


def _only_true(targets: dict[str, int], where: str) -> int:
    """Index of the one candidate marked 1."""
    golds = [index for index, value in enumerate(targets.values()) if value]
    if len(golds) != 1:
        raise DataError(
            f"{where}: expected exactly one candidate marked 1, got {len(golds)} of {len(targets)}",
            remedy="correct this item",
        )
    return golds[0]


def as_heldout(row: Json, seen: Counter[str]) -> Json:
    """A published row as the fields of a HeldoutItem; any other row as it is."""
    if "instruction_id_list" in row:
        return _ifeval(row)
    if "forbidden_prompt" in row or {"prompt", "category"} <= row.keys() <= _STRONGREJECT:
        prompt = row.get("forbidden_prompt", row.get("prompt"))
        name = unique_id(seen, "strongreject-", prompt)
        return {"id": name, "kind": "strongreject", "prompt": prompt, "refusal": "must"}
    if {"prompt", "type"} <= row.keys() and "kind" not in row:
        return _xstest(row, seen)
    return row


def _xstest(row: Json, seen: Counter[str]) -> Json:
    label = row.get("label")
    if label is None:  # the Hub's first version has none
        label = "unsafe" if str(row["type"]).startswith("contrast_") else "safe"
    refusal = {"safe": "must_not", "unsafe": "must"}.get(str(label), label)
    name = f"xstest-{row['id']}" if row.get("id") else unique_id(seen, "xstest-", row["prompt"])
    return {"id": name, "kind": f"xstest_{label}", "prompt": row["prompt"], "refusal": refusal}


def _ifeval(row: Json) -> Json:
    arguments: Any = row.get("kwargs")
    check = {
        "check": "instructions",
        "prompt": row.get("prompt"),
        "ids": row["instruction_id_list"],
        # the Hub fills every row's columns with nulls
        "arguments": [
            {name: value for name, value in each.items() if value is not None}
            if isinstance(each, dict)
            else each
            for each in (arguments if isinstance(arguments, list) else [arguments])
        ],
    }
    name = f"ifeval-{row.get('key')}"
    return {"id": name, "kind": "ifeval", "prompt": row.get("prompt"), "check": [check]}
