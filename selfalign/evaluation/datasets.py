"""Evaluation sets: files in, frozen items out, nothing malformed accepted.

Three sets, each as JSON lines of the project's own, or as published (`published.py`), in a file or
several in a directory. Which layout a file has follows from its name and its fields (`rows.py`).
Every error is a DataError that names the file and the line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import TypeAdapter

from selfalign.errors import DataError
from selfalign.evaluation.items import HeldoutItem, HHHItem, LabelledPair, TruthfulQAItem, validate
from selfalign.evaluation.published import as_heldout, read_hhh, read_truthfulqa
from selfalign.evaluation.rows import read_rows
from selfalign.identity import data_path, visible_files

__all__ = [
    "HHHItem",
    "HeldoutItem",
    "Kind",
    "TruthfulQAItem",
    "load_heldout",
    "load_hhh",
    "load_labelled",
    "load_truthfulqa",
    "reference_texts",
]

Kind = Literal["heldout", "hhh", "truthfulqa"]
_Named = TypeVar("_Named", HeldoutItem, HHHItem, TruthfulQAItem)
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_OTHER_DATA = (".tsv", ".arrow", ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar")


def load_heldout(path: Path) -> tuple[HeldoutItem, ...]:
    """Held-out items of a file, or of all files of a directory, in the order of names.

    A directory may hold a README or a licence too. `default` is the set that comes with selfalign.
    Raises DataError.
    """
    path = data_path("heldout", path)
    files = [path]
    if path.is_dir():
        suffixes = {file: file.suffix.lower() for file in visible_files(path)}
        files = [file for file, suffix in suffixes.items() if suffix in _SUFFIXES]
        if other := [file for file, suffix in suffixes.items() if suffix in _OTHER_DATA]:
            raise DataError(
                f"{other[0]}: no such file is read, expected {', '.join(_SUFFIXES)}",
                remedy="unpack or convert it, or move it out of the directory",
            )
    return _checked(path, _heldout_rows(files))


def load_hhh(path: Path) -> tuple[HHHItem, ...]:
    """HHH items of a file, or of a directory of published files. Raises DataError."""
    return _checked(path, read_hhh(path))


def load_truthfulqa(path: Path) -> tuple[TruthfulQAItem, ...]:
    """TruthfulQA items of a file. Raises DataError."""
    return _checked(path, read_truthfulqa(path))


def load_labelled(path: Path) -> tuple[LabelledPair, ...]:
    """Pairs of answers that people judged, in JSON lines. Raises DataError."""
    adapter = TypeAdapter(LabelledPair)
    pairs = tuple(validate(adapter, row, where) for where, row in read_rows(path))
    if not pairs:
        raise DataError(
            f"{path}: expected at least one labelled pair, found none",
            remedy="fill the file, or make evaluate.judge.labelled null",
        )
    return pairs


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


def _heldout_rows(files: Iterable[Path]) -> Iterator[tuple[str, HeldoutItem]]:
    adapter = TypeAdapter(HeldoutItem)
    seen: Counter[str] = Counter()
    for file in files:
        for where, row in read_rows(file):
            yield where, validate(adapter, as_heldout(row, seen), where)


def _checked(path: Path, located: Iterable[tuple[str, _Named]]) -> tuple[_Named, ...]:
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
