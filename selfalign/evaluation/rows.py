"""Rows of an evaluation file, whatever it is written in, in bounded memory.

`.csv` with a header line; `.parquet`, as the Hub publishes data sets (needs the extra `parquet`);
`.json` with a list of objects, or with JSON lines, as the Hub names them; anything else is JSON
lines, where blank lines and those that begin with # are passed over. Every error is a DataError
that names the file and the line.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from selfalign.errors import ConfigurationError, DataError
from selfalign.records import Json
from selfalign.store.documents import MAX_DOCUMENT_BYTES, decode_json
from selfalign.store.files import read_regular

MAX_ROWS = 1_000_000  # of a parquet file, which may unpack to far more than its own size
_PUBLISHED = "give the file as published"


def read_text(path: Path) -> str:
    """The file's text (UTF-8, a byte order mark allowed). Raises DataError."""
    try:
        content = io.BytesIO(read_regular(path, MAX_DOCUMENT_BYTES))
        return io.TextIOWrapper(content, encoding="utf-8-sig").read()  # line ends become \n
    except OSError as e:
        raise DataError(
            f"{path}: cannot read the evaluation set: {e.strerror}",
            remedy="correct the path or give a smaller file; null in evaluate.* leaves a set out",
        ) from e
    except UnicodeDecodeError as e:
        raise DataError(
            f"{path}: byte {e.start} is not UTF-8 ({e.reason})", remedy="save the file as UTF-8"
        ) from e


def read_rows(path: Path) -> Iterator[tuple[str, Json]]:
    """Yields (where, row) of a file, in its order. Raises DataError."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        yield from csv_rows(path)
    elif suffix == ".parquet":
        yield from _parquet_rows(path)
    elif is_json_document(path):
        rows = read_json(path)
        if not isinstance(rows, list):
            raise DataError(
                f"{path}: expected a list of objects, got {type(rows).__name__}",
                remedy=f"{_PUBLISHED}, or as JSON lines",
            )
        for index, row in enumerate(rows):
            yield f"{path}: [{index}]", as_object(row, f"{path}: [{index}]")
    else:
        for where, line in json_lines(path):
            try:
                row = decode_json(line)
            except ValueError as e:
                raise DataError(f"{where}: Invalid JSON: {e}", remedy="correct this line") from e
            yield where, as_object(row, where)


def is_json_document(path: Path) -> bool:
    """Whether a file is one JSON value: it is named .json, and is not an object on the first line
    with more lines after it. Raises DataError."""
    if path.suffix.lower() != ".json":
        return False
    lines = [line for _, line in islice(json_lines(path), 2)]
    try:
        return len(lines) < 2 or not isinstance(decode_json(lines[0]), dict)
    except ValueError:
        return True


def json_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (`file:line`, text) of JSON lines."""
    # Not splitlines(): a JSON string may hold U+2028 and its like unescaped.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip() and not line.startswith("#"):
            yield f"{path}:{number}", line


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises DataError."""
    text = read_text(path)
    try:
        return decode_json(text)
    except json.JSONDecodeError as e:
        raise DataError(
            f"{path}:{e.lineno}: not JSON at column {e.colno}: {e.msg}",
            remedy=f"{_PUBLISHED}, or as JSON lines, an object in each",
        ) from e
    except ValueError as e:  # nested too deep, or an integer of more than 4,300 digits
        raise DataError(f"{path}: {e}", remedy=_PUBLISHED) from e


def as_object(value: Any, where: str) -> Json:
    """The value, which must be an object of what JSON in UTF-8 can hold. Raises DataError."""
    if not isinstance(value, dict):
        raise DataError(
            f"{where}: expected an object, got {type(value).__name__}", remedy="correct it"
        )
    for name, each in value.items():
        try:
            json.dumps({name: each}, ensure_ascii=False).encode()
        except UnicodeEncodeError as e:
            raise DataError(
                f"{where}: {name}: a text holds half of a surrogate pair",
                remedy="correct it, and save the file as UTF-8",
            ) from e
        except TypeError as e:  # a parquet file's moments, decimals and bytes
            raise DataError(
                f"{where}: {name}: expected texts, numbers, lists and objects: {e}",
                remedy="leave this column out, or write it as text",
            ) from e
    return value


def csv_rows(path: Path) -> Iterator[tuple[str, Json]]:
    """Yields (`file:line`, row) of CSV with a header line. Raises DataError."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        names = Counter(filter(None, reader.fieldnames or ()))
        if twice := [name for name, count in names.items() if count > 1]:
            raise DataError(
                f"{path}:1: the column {twice[0]!r} is there twice", remedy="remove or rename one"
            )
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                expected = len(reader.fieldnames or ())
                raise DataError(
                    f"{where}: the row has another number of cells than the header, {expected}",
                    remedy="put a text with commas in double quotes",
                )
            yield where, row
    except csv.Error as e:
        raise DataError(f"{path}:{reader.line_num}: not CSV: {e}", remedy=_PUBLISHED) from e


def _parquet_rows(path: Path) -> Iterator[tuple[str, Json]]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
        arrow: Any = importlib.import_module("pyarrow")
    except ImportError as e:
        raise ConfigurationError(
            f"{path}: a parquet file is read by pyarrow, which is not installed",
            remedy='pip install -c constraints.txt -e ".[parquet]", or give CSV or JSON lines',
        ) from e
    try:
        content = read_regular(path, MAX_DOCUMENT_BYTES)
        with parquet.ParquetFile(io.BytesIO(content)) as file:
            unpacked = sum(
                file.metadata.row_group(index).total_byte_size
                for index in range(file.metadata.num_row_groups)
            )
            if file.metadata.num_rows > MAX_ROWS or unpacked > MAX_DOCUMENT_BYTES:
                raise DataError(
                    f"{path}: {file.metadata.num_rows} rows of {unpacked} bytes, expected at most "
                    f"{MAX_ROWS} rows and {MAX_DOCUMENT_BYTES} bytes",
                    remedy=_PUBLISHED,
                )
            rows = file.read().to_pylist()
    except (OSError, arrow.ArrowException) as e:
        raise DataError(f"{path}: cannot read the parquet file: {e}", remedy=_PUBLISHED) from e
    for index, row in enumerate(rows):
        yield f"{path}: row {index}", as_object(row, f"{path}: row {index}")
