"""What enters an identity is all there is, or an error."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfalign.config import EvaluateConfig
from selfalign.errors import ConfigurationError, DataError
from selfalign.identity import (
    DATA_FIELDS,
    Inputs,
    data_files,
    default_sha256,
    identity_key,
    is_default,
    path_sha256,
    stage_identity,
)
from selfalign.load import load_config
from selfalign.pipeline import BY_NAME


def test_a_directory_that_cannot_be_listed_is_an_error_and_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    listed: Callable[..., Any] = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "part":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    before = path_sha256(tmp_path)
    (tmp_path / "part" / "model.safetensors").write_bytes(b"others")
    assert path_sha256(tmp_path) != before
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        path_sha256(tmp_path)


def test_the_default_held_out_set_enters_by_its_digest_wherever_it_is_installed(
    tmp_path: Path,
) -> None:
    file = tmp_path / "selfalign.yaml"
    file.write_text("base_model: {path: m}\n")
    (tmp_path / "default").write_text("not this file")
    for overrides in ([], ["evaluate.heldout=default"]):
        evaluate = load_config(file, overrides).config.evaluate
        assert evaluate == EvaluateConfig()
        ((field, path),) = data_files(evaluate).items()
        assert (field, path_sha256(path)) == ("heldout", default_sha256())
    assert data_files(load_config(file, ["evaluate.heldout=null"]).config.evaluate) == {}
    own = load_config(file, ["evaluate.heldout=./default"]).config.evaluate
    assert data_files(own) == {"heldout": tmp_path / "default"}
    assert [field for field in DATA_FIELDS if is_default(field, Path("default"))] == ["heldout"]


def test_the_served_model_is_in_the_key_and_the_way_to_the_server_is_not(tmp_path: Path) -> None:
    file = tmp_path / "selfalign.yaml"
    file.write_text("base_model: {path: m}\nengine: {kind: openai, server: {url: http://a/v1}}\n")

    def key(*overrides: str) -> str:
        config = load_config(file, overrides).config
        inputs = Inputs(seeds={}, base_model="sha256:0", data={})
        return identity_key(
            stage_identity(BY_NAME["align"], config, inputs, {"prompts": "p"}, None)
        )

    assert key() == key("engine.server.url=https://b:1/v1", "engine.server.key_variable=KEY")
    assert key() == key("align.max_quarantined=0.5", "engine.server.concurrency=1")
    assert key() != key("engine.served_model=another")
    assert key() != key("engine.options={top_k: 3}")


def test_the_judge_is_in_the_key_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    file = tmp_path / "selfalign.yaml"

    def key(chosen: str, **inputs: Any) -> str:
        file.write_text(f"base_model: {{path: m}}\nevaluate: {{judge: {chosen}}}\n")
        known = Inputs(**{"seeds": {}, "base_model": "0", "data": {}, "judge": "1", **inputs})
        parents = {"engraved_model": "e", "final_model": "f"}
        config = load_config(file).config
        return identity_key(stage_identity(BY_NAME["evaluate"], config, known, parents, None))

    here = key("{model: {path: here}}")
    assert here == key("{model: {path: there}}") == key("{model: {path: j, revision: '1'}}")
    assert here != key("{model: {path: here}}", judge="2")
    assert here != key("{model: {path: here}, engine: {dtype: float16}}")
    assert here != key("{model: {path: here}, template: x}", data={"judge.template": "3"})
    assert here != key("null")


def test_an_evaluation_file_that_is_a_device_is_refused_by_its_key() -> None:
    with pytest.raises(ConfigurationError, match=r"evaluate\.hhh: '/dev/zero' is a pipe or a dev"):
        data_files(EvaluateConfig(heldout=None, hhh=Path("/dev/zero")))


def test_a_link_that_leads_nowhere_is_named_and_not_left_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    whole = path_sha256(tmp_path)
    (tmp_path / ".hidden").symlink_to("nowhere")
    assert path_sha256(tmp_path) == whole
    (tmp_path / "model.safetensors").symlink_to("../blobs/0123")
    with pytest.raises(DataError, match=r"model\.safetensors: a link to \.\./blobs/0123"):
        path_sha256(tmp_path)


def test_a_link_to_a_directory_is_named_and_not_left_out(tmp_path: Path) -> None:
    tasks, elsewhere = tmp_path / "tasks", tmp_path / "elsewhere"
    tasks.mkdir()
    elsewhere.mkdir()
    (elsewhere / "data.jsonl").write_text("{}")
    (tasks / ".hidden").symlink_to(elsewhere)
    path_sha256(tasks)
    (tasks / "linked").symlink_to(elsewhere)
    with pytest.raises(DataError, match=r"(?s)tasks/linked: a link to .*, a directory\n.*copy"):
        path_sha256(tasks)
