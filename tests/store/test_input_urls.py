"""Evaluation files that lie in a bucket, not in the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfalign.errors import ConfigurationError
from selfalign.inputs import is_stored, localise, push_inputs
from selfalign.load import load_config
from selfalign.store.open import open_store

ITEM = '{"id": "a", "kind": "k", "prompt": "p", "refusal": "must"}\n'


def test_an_s3_url_is_read_anew_each_time_and_pushed_into_the_store(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFALIGN_CACHE_DIR", str(tmp_path / "cache"))
    file = tmp_path / "selfalign.yaml"
    file.write_text(
        f"base_model: {{path: m, revision: r}}\nevaluate: {{heldout: {s3_url}/x.jsonl}}\n"
    )
    config = load_config(file, ["seeds.directory=store:inputs/seeds/0"]).config
    bucket, store = open_store(s3_url), open_store(str(tmp_path / "store"))
    no_seeds = config.model_copy(
        update={"seeds": config.seeds.model_copy(update={"directory": tmp_path})}
    )
    with pytest.raises(ConfigurationError, match=r"s3://.*/x\.jsonl: no such object"):
        localise(no_seeds, store)
    for text in (ITEM, ITEM * 2):
        bucket.write("x.jsonl", text.encode())
        local = localise(no_seeds, store).evaluate.heldout
        assert (local.name, local.read_text()) == ("x.jsonl", text)
    pushed = push_inputs(config, store).evaluate.heldout
    assert pushed is not None
    assert is_stored(pushed)
