"""An artifact's records as one Parquet file.

    datasets.load_dataset("parquet", data_files=FILE)        pandas.read_parquet(FILE)

Records stream in row groups, so memory does not grow with the artifact. The columns are the fields
of the artifact's record type; a mapping becomes a list of {name, value}, which both readers take.
"""

from __future__ import annotations

import importlib
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from selfalign.errors import ConfigurationError, needing
from selfalign.records import (
    AlignedResponse,
    Candidate,
    EvaluationRecord,
    Json,
    Prompt,
    Record,
    VerboseResponse,
)
from selfalign.store.artifact import read_records
from selfalign.store.base import Store
from selfalign.store.files import os_errors, replacing
from selfalign.store.manifest import Manifest
from selfalign.telemetry import Progress

ROWS_PER_GROUP = 2000  # of at most 4 MiB each, in practice of a few KiB
_RECORDS: dict[str, type[Record]] = {
    "candidates": Candidate,
    "prompts": Prompt,
    "aligned_responses": AlignedResponse,
    "verbose_responses": VerboseResponse,
    "evaluation": EvaluationRecord,
}


def write_parquet(store: Store, manifest: Manifest, target: Path) -> int:
    """Write every record of an artifact, verified and in the order of ids; whole or not at all.

    Returns:
        The number of rows.

    Raises:
        ConfigurationError: the artifact holds no records, or pyarrow is not installed.
        DataError: the artifact is damaged.
    """
    record_type = _RECORDS.get(manifest.artifact)
    if record_type is None:
        raise ConfigurationError(
            f"{manifest.artifact}: holds files and no records, so there is nothing for Parquet",
            remedy=f"records are in {', '.join(_RECORDS)}; files come out by `selfalign export`",
        )
    with needing("--parquet needs pyarrow", "parquet", ", or take JSON lines: --records"):
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    source = {"selfalign": f"{manifest.artifact}/{manifest.key}", "digest": manifest.digest}
    fields = {
        name: _type(arrow, each.annotation) for name, each in record_type.model_fields.items()
    }
    schema = arrow.schema(fields.items(), metadata=source)
    records = read_records(store, manifest, record_type)
    progress = Progress("records", sum(e.records or 0 for e in manifest.entries))
    with (
        os_errors("--parquet", "write"),
        replacing(target) as file,
        parquet.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        while rows := [_row(record) for record in islice(records, ROWS_PER_GROUP)]:
            writer.write_table(arrow.Table.from_pylist(rows, schema=schema))
            progress.advance(len(rows))
    progress.finish()
    return progress.done


def _type(arrow: Any, annotation: Any) -> Any:
    """The Arrow type of a record's field."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return arrow.string()
    if origin is tuple:
        return arrow.list_(_type(arrow, arguments[0]))
    if origin is dict:
        name, value = (_type(arrow, each) for each in arguments)
        return arrow.list_(arrow.struct([("name", name), ("value", value)]))
    if arguments:  # a type or None; every column may hold null
        (annotation,) = (each for each in arguments if each is not type(None))
    return {str: arrow.string(), int: arrow.int64(), float: arrow.float64()}[annotation]


def _row(record: Record) -> Json:
    return {name: _value(value) for name, value in record.model_dump().items()}


def _value(value: Any) -> Any:
    if isinstance(value, str):  # half of a surrogate pair, which UTF-8 does not have, as its escape
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return [{"name": _value(name), "value": _value(each)} for name, each in value.items()]
    return value
