"""Evaluation sets: files in, frozen items out, nothing malformed accepted.

Three sets, each as JSON lines; HHH and TruthfulQA also in the layouts they are published in
(`published.py`). A file whose name ends in `.json` is taken for the published layout, anything
else for JSON lines. Every error is a DataError that names the file and the line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from selfalign.errors import DataError
from selfalign.evaluation.items import (
    HeldoutItem,
    HHHItem,
    Item,
    TruthfulQAItem,
    read_text,
    validate,
)
from selfalign.evaluation.published import read_hhh, read_truthfulqa
from selfalign.identity import data_path

__all__ = [
    "HHHItem",
    "HeldoutItem",
    "Kind",
    "TruthfulQAItem",
    "load_heldout",
    "load_hhh",
    "load_truthfulqa",
    "reference_texts",
]

Kind = Literal["heldout", "hhh", "truthfulqa"]


def load_heldout(path: Path) -> tuple[HeldoutItem, ...]:
    """Items of a held-out file, in its order; `default` is the one that comes with selfalign.

    Raises DataError.
    """
    path = data_path("heldout", path)
    return _checked(path, _read_lines(path, HeldoutItem))


def load_hhh(path: Path) -> tuple[HHHItem, ...]:
    """HHH items of a JSON lines file, a BIG-bench `task.json`, or a directory of those.

    Raises DataError.
    """
    if path.is_dir() or path.suffix == ".json":
        return _checked(path, read_hhh(path))
    return _checked(path, _read_lines(path, HHHItem))


def load_truthfulqa(path: Path) -> tuple[TruthfulQAItem, ...]:
    """TruthfulQA items of a JSON lines file, or of the published `mc_task.json`.

    Raises DataError.
    """
    if path.suffix == ".json":
        return _checked(path, read_truthfulqa(path))
    return _checked(path, _read_lines(path, TruthfulQAItem))


def reference_texts(path: Path, kind: Kind) -> Iterator[tuple[str, str]]:
    """Every text of an evaluation set that no training prompt may repeat, as (id, text).

    The question comes under the item's id, each candidate answer under `<id>/<what it is>`, so
    that ids stay unique and a match says where it was. Raises DataError.
    """
    if kind == "heldout":
        yield from ((item.id, item.prompt) for item in load_heldout(path))
    elif kind == "hhh":
        for pair in load_hhh(path):
            yield pair.id, pair.query
            yield f"{pair.id}/chosen", pair.chosen
            yield f"{pair.id}/rejected", pair.rejected
    else:
        for question in load_truthfulqa(path):
            yield question.id, question.question
            candidates = dict.fromkeys((*question.choices, *(question.mc2_targets or ())))
            for index, candidate in enumerate(candidates):
                yield f"{question.id}/choices/{index}", candidate


def _read_lines(path: Path, cls: type[Item]) -> Iterator[tuple[str, Item]]:
    """Yields (`file:line`, item); blank lines and those that begin with # are passed over."""
    adapter = TypeAdapter(cls)
    # Not splitlines(): a JSON string may hold U+2028 and its like unescaped.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip() and not line.startswith("#"):
            where = f"{path}:{number}"
            yield where, validate(adapter, line, where)


def _checked(path: Path, located: Iterable[tuple[str, Item]]) -> tuple[Item, ...]:
    """All items; refuses an empty set and an id that occurs twice."""
    seen: dict[str, str] = {}
    items = []
    for where, item in located:
        if item.id in seen:
            raise DataError(
                f"{where}: the id {item.id!r} is taken by {seen[item.id]}",
                remedy="give every item its own id",
            )
        seen[item.id] = where
        items.append(item)
    if not items:
        raise DataError(
            f"{path}: expected at least one item, found none",
            remedy="fill the file, or make this evaluation set null in the configuration",
        )
    return tuple(items)
