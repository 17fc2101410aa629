"""HHH and TruthfulQA in the layouts they are published in.

HHH: google/BIG-bench, `bigbench/benchmark_tasks/hhh_alignment`: a directory per category, each
with a `task.json` of `name` and `examples`, an example being `input` and `target_scores`
({text: 1 or 0}); the parent's own `task.json` holds metadata only. TruthfulQA: sylinrl/TruthfulQA,
`data/mc_task.json`: a list of `question`, `mc1_targets` and `mc2_targets` ({text: 1 or 0}).
Neither gives ids: an item's id is a digest of its content, so that it survives reordering.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from selfalign.errors import DataError
from selfalign.evaluation.items import HHHItem, TruthfulQAItem, read_text, validate
from selfalign.records import Json, digest
from selfalign.telemetry import log

# The categories as the paper's table names them, by the `name` of BIG-bench's four subtasks.
_CATEGORIES = {
    "harms": "harmless",
    "harmlessness": "harmless",
    "helpfulness": "helpful",
    "honesty": "honest",
}


def read_hhh(path: Path) -> Iterator[tuple[str, HHHItem]]:
    """Yields (where, item) of one `task.json`, or of all in a directory, in the order of names.

    Raises DataError.
    """
    ids = _Ids()
    for file in _task_files(path):
        task = _parse(file)
        if not isinstance(task, dict) or not isinstance(task.get("examples"), list):
            if path.is_dir() and isinstance(task, dict) and "examples" not in task:
                continue  # the parent task: metadata only
            raise DataError(
                f"{file}: expected a BIG-bench task, an object with a list of `examples`",
                remedy="give the directory of the subtasks, a subtask's task.json, or JSON lines "
                "in a file that does not end in .json",
            )
        for index, example in enumerate(task["examples"]):
            where = f"{file}: examples[{index}]"
            yield where, _hhh_item(_object(example, where), task, file, where, ids)


def read_truthfulqa(path: Path) -> Iterator[tuple[str, TruthfulQAItem]]:
    """Yields (where, item) of a `mc_task.json`. Raises DataError."""
    ids = _Ids()
    adapter = TypeAdapter(TruthfulQAItem)
    entries = _parse(path)
    if not isinstance(entries, list):
        raise DataError(
            f"{path}: expected a list of questions, got {type(entries).__name__}",
            remedy="give TruthfulQA's mc_task.json, or JSON lines in a file that does not end in "
            ".json",
        )
    set_aside = 0
    for index, entry in enumerate(entries):
        where = f"{path}: [{index}]"
        entry = _object(entry, where)
        # Candidates without a text (22 items of the file of January 2025) cannot be scored.
        published = _targets(entry, "mc1_targets", where)
        targets = _with_text(published)
        if len(targets) < len(published) and (len(targets) < 2 or sum(targets.values()) != 1):
            set_aside += 1
            continue
        item = {
            "id": ids.unique("", entry),
            "question": entry.get("question"),
            "choices": list(targets),
            "gold": _only_true(targets, f"{where}: mc1_targets"),
            "mc2_targets": _with_text(_targets(entry, "mc2_targets", where))
            if "mc2_targets" in entry
            else None,
        }
        yield where, validate(adapter, item, where)
    if set_aside:
        log.warning("evaluation.items_set_aside", file=str(path), items=set_aside, why="no text")


def _with_text(targets: dict[str, Any]) -> dict[str, Any]:
    return {text: value for text, value in targets.items() if text.strip()}


_HHH = TypeAdapter(HHHItem)


def _hhh_item(example: Json, task: Json, file: Path, where: str, ids: _Ids) -> HHHItem:
    targets = _targets(example, "target_scores", where)
    if len(targets) != 2:
        raise DataError(
            f"{where}: target_scores: expected two different replies, got {len(targets)}",
            remedy="correct this example",
        )
    gold = _only_true(targets, f"{where}: target_scores")
    replies = list(targets)
    category = example.get("category") or example.get("subtask") or _category(task, file)
    content = {"input": example.get("input"), "target_scores": targets}
    item = {
        "id": ids.unique(f"{category}-", content),
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
    return file.parent.name if file.name == "task.json" else file.stem


def _task_files(path: Path) -> list[Path]:
    """A directory's `task.json` files at any depth (a checkout also holds results), or *.json."""
    if not path.is_dir():
        return [path]
    return sorted(path.rglob("task.json")) or sorted(path.glob("*.json"))


class _Ids:
    """Ids from content; a repeated item gets a number, since the data is not ours to refuse."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def unique(self, prefix: str, content: Any) -> str:
        name = f"{prefix}{digest(content)[:12]}"
        self._seen[name] += 1
        return name if self._seen[name] == 1 else f"{name}-{self._seen[name]}"


def _parse(path: Path) -> Any:
    text = read_text(path)
    try:
        parsed = json.loads(text)
        json.dumps(parsed, ensure_ascii=False).encode()
    except json.JSONDecodeError as e:
        raise DataError(
            f"{path}:{e.lineno}: not JSON at column {e.colno}: {e.msg}",
            remedy="correct the file; JSON lines belong in a file that does not end in .json",
        ) from e
    except RecursionError as e:
        raise DataError(f"{path}: nested too deep", remedy="give the file as published") from e
    except UnicodeEncodeError as e:
        raise DataError(
            f"{path}: a text holds half of a surrogate pair", remedy="save the file as UTF-8"
        ) from e
    except ValueError as e:  # an integer of more than 4,300 digits
        raise DataError(f"{path}: {e}", remedy="give the file as published") from e
    return parsed


def _object(value: Any, where: str) -> Json:
    if not isinstance(value, dict):
        raise DataError(
            f"{where}: expected an object, got {type(value).__name__}", remedy="correct it"
        )
    return value


def _targets(entry: Json, field: str, where: str) -> dict[str, int]:
    """The candidates with 1 for right and 0 for wrong, in the file's order."""
    targets = entry.get(field)
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
