"""`selfalign show --parquet`: what is written is what pandas and datasets read back."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner

from selfalign.cli import parquet
from selfalign.cli.main import cli
from selfalign.errors import ConfigurationError, DataError
from selfalign.pipeline import STAGES
from selfalign.records import (
    AlignedResponse,
    Candidate,
    EvaluationRecord,
    Prompt,
    Record,
    VerboseResponse,
)
from selfalign.store.artifact import read_rows
from selfalign.store.local import LocalStore
from tests.artifacts import publish_records

SEED = 2**63 - 1  # the largest there is
COMMON: dict[str, Any] = {
    "prompt": "Wie \u2028 geht das?", "response": "so", "verdicts": {"unfinished": "cut: 3"},
    "model": "m", "template": "t", "seed": SEED, "finish_reason": "stop",
}  # fmt: skip
RECORDS: dict[str, list[Record]] = {
    "candidates": [
        Candidate(id=f"c-{n}", source="topic_guided", text="t", topic=None, request="r")
        for n in range(5)
    ],
    "prompts": [Prompt(id="p", source="self_instruct", text="why?", type="why")],
    "aligned_responses": [
        AlignedResponse(id="a-0", thought="", rules=(), **{**COMMON, "verdicts": {}}),
        AlignedResponse(id="a-1", thought="fair: 3, 1", rules=(3, 1), **COMMON),
    ],
    "verbose_responses": [VerboseResponse(id="v", **COMMON)],
    "evaluation": [
        EvaluationRecord(
            id="e", model="m", item_id="i", metric="x", kind=None, value=0.5, length_words=None,
            text="",
        )
    ],
}  # fmt: skip


@pytest.mark.parametrize("artifact", RECORDS)
def test_every_record_comes_back_in_order_and_with_its_types(
    artifact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 2)
    store, target = LocalStore(tmp_path / "store"), tmp_path / "records.parquet"
    manifest = publish_records(store, artifact, RECORDS[artifact])
    arguments = ["show", artifact, "--store", str(tmp_path / "store"), "--json"]
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(cli, [*arguments, "--parquet", str(target)])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["records"] == len(RECORDS[artifact])
    file = pyarrow.parquet.ParquetFile(target)
    assert file.num_row_groups == -(-len(RECORDS[artifact]) // 2)
    assert file.schema_arrow.metadata[b"digest"] == manifest.digest.encode()
    rows = file.read().to_pylist()
    for row in rows:
        if "verdicts" in row:
            row["verdicts"] = {each["name"]: each["value"] for each in row["verdicts"]}
    expected = list(read_rows(store, manifest))
    assert rows == expected
    if importlib.util.find_spec("pandas") is not None:
        import pandas

        assert list(pandas.read_parquet(target)["id"]) == [row["id"] for row in expected]


def test_datasets_loads_it(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    store, target = LocalStore(tmp_path / "store"), tmp_path / "records.parquet"
    manifest = publish_records(store, "aligned_responses", RECORDS["aligned_responses"])
    parquet.write_parquet(store, manifest, target)
    loaded = datasets.load_dataset(
        "parquet", data_files=str(target), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded[1]["rules"] == [3, 1]
    assert loaded[1]["verdicts"] == [{"name": "unfinished", "value": "cut: 3"}]
    assert loaded[1]["seed"] == SEED


def test_half_of_a_surrogate_pair_is_written_as_its_escape() -> None:
    row = parquet._row(Prompt(id="p", source="self_instruct", text="half \udc00"))
    assert pyarrow.array([row["text"]]).to_pylist() == ["half \\udc00"]


def test_damage_and_artifacts_without_records_leave_no_file(tmp_path: Path) -> None:
    store, target = LocalStore(tmp_path / "store"), tmp_path / "records.parquet"
    manifest = publish_records(store, "prompts", RECORDS["verbose_responses"])  # of another kind
    with pytest.raises(DataError, match="corrupt"):
        parquet.write_parquet(store, manifest, target)
    models = [stage.writes for stage in STAGES if stage.writes not in RECORDS]
    assert models == ["engraved_model", "final_model", "promotion"]
    for artifact in models:
        other = manifest.model_copy(update={"artifact": artifact})
        with pytest.raises(ConfigurationError, match="holds files and no records"):
            parquet.write_parquet(store, other, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
    os.mkfifo(target)
    with pytest.raises(ConfigurationError, match="a pipe or a device, not a file"):
        parquet.write_parquet(store, manifest, target)
    assert target.is_fifo()
