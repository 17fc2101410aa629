"""From a URL to a store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfalign.errors import ConfigurationError
from selfalign.store.local import LocalStore
from selfalign.store.open import open_store


def test_a_path_and_a_file_url_open_the_same_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "a store"
    for url in ("a store", "./a store", str(folder), "~/a store", f"file://{tmp_path}/a%20store"):
        store = open_store(url)
        assert isinstance(store, LocalStore)
        assert store.url == str(folder)
    assert not folder.exists()  # opening makes nothing


def test_an_s3_url_names_bucket_and_prefix(aws: str) -> None:
    for url in ("s3://bucket", "s3://bucket/", "s3://bucket/nightly/runs", "s3://bucket/nightly/"):
        assert open_store(url).url == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "a\0b",
            "a\x1b[2J",
            "s3://key:hunter2@b\n",
            "gs://bucket",
            "http://host/bucket",
            "file://relative",
            "file://host/path",
        ),
        *("s3://", "s3:///prefix", "s3://bucket/a//b", "s3://bucket/../x", "s3://bucket/ä"),
        "s3://bucket/" + "x" * 256,
        *("s3://key:hunter2@bucket/prefix", "s3://bucket/prefix?token=hunter2"),
        *("s3://hunter2@bucket", "s3://bucket:9000/prefix", "gs://key:hunter2@bucket"),
    ],
)
def test_a_url_that_names_no_store_is_refused_without_repeating_secrets(aws: str, url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_store(url)
    assert caught.value.remedy
    assert "hunter2" not in str(caught.value)
    assert caught.value.message.isprintable()


def test_a_path_that_is_no_utf_8_says_so() -> None:
    with pytest.raises(ConfigurationError, match=r"'/srv/caf\\udce9': .* in UTF-8"):
        open_store(os.fsdecode(b"/srv/caf\xe9"))


def test_a_local_store_needs_no_boto3(tmp_path: Path) -> None:
    program = (
        "import sys; import selfalign.store.check; "
        "from selfalign.store.open import open_store; "
        "open_store(sys.argv[1]).write('a', b''); "
        "print([name for name in sys.modules if name.startswith('boto')])"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
