"""Options of the S3 store, and how it shares a bucket with others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from selfalign.errors import ConfigurationError
from selfalign.store.base import NotFound
from selfalign.store.s3 import S3Store
from selfalign.store.s3_options import load_options

from .conftest import BUCKET, s3_store
from .proxy import Proxy


def test_multipart_and_kms_reach_the_server(s3_url: str, tmp_path: Path) -> None:
    key_id = "arn:aws:kms:us-east-1:123456789012:key/abc"
    store = s3_store(s3_url, sse_kms_key_id=key_id)
    (tmp_path / "large").write_bytes(bytes(11 << 20))
    store.write("plain", b"")
    store.write("once", b"", if_absent=True)
    store.upload(tmp_path / "large", "large")
    client, prefix = store._client, s3_url.rpartition("/")[2]
    for key in ("plain", "once", "large"):
        head = client.head_object(Bucket=BUCKET, Key=f"{prefix}/{key}")
        assert head["ServerSideEncryption"] == "aws:kms"
        assert head["SSEKMSKeyId"] == key_id
    assert head["ETag"].endswith('-3"')  # three parts of 5 MiB and less
    version = store.read_versioned("large")[1]
    store.write("large", b"small", if_version=version)
    assert store.read("large") == b"small"


def test_checksums_can_be_left_out(s3_url: str, proxy: Proxy) -> None:
    def sent(checksums: str) -> bool:
        store = s3_store(s3_url, endpoint_url=proxy.url, checksums=checksums)
        store.write("key", b"data")
        return any(name.startswith("x-amz-checksum") for name in proxy.headers)

    assert sent("when_supported")
    assert not sent("when_required")


def test_options_are_of_the_environment_and_an_empty_one_is_unset(
    aws: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFALIGN_S3_MAX_ATTEMPTS", "7")
    monkeypatch.setenv("SELFALIGN_S3_ADDRESSING_STYLE", "")
    assert load_options().max_attempts == 7
    assert load_options().addressing_style == "auto"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"part_mib": "1"}, r"part_mib \(SELFALIGN_S3_PART_MIB\): .*greater than or equal to 5"),
        ({"endpoint_url": "minio:9000"}, "expected http://host or https://host"),
        ({"endpoint_url": "http://me:hunter2@host"}, "credentials and queries do not belong"),
        ({"endpoint_url": "http://host/?token=hunter2"}, "credentials and queries do not belong"),
    ],
)
def test_a_wrong_option_is_named_and_its_value_is_not(
    aws: str, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], said: str
) -> None:
    for name, value in options.items():
        monkeypatch.setenv(f"SELFALIGN_S3_{name.upper()}", value)
    with pytest.raises(ConfigurationError, match=f"(?s){said}") as caught:
        load_options()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "client"),
    [
        (None, "auto"),
        ("http://127.0.0.1:9000", "classic"),
        ("https://bucket.vpce-1a.s3.us-east-1.vpce.amazonaws.com", "classic"),
        ("https://s3.example.org", "classic"),
    ],
)
def test_an_endpoint_of_ones_own_never_uses_crt(
    aws: str, monkeypatch: pytest.MonkeyPatch, endpoint: str | None, client: str
) -> None:
    monkeypatch.delenv("SELFALIGN_S3_ENDPOINT_URL")
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    config = S3Store(BUCKET)._transfer
    assert vars(config)["preferred_transfer_client"] == client


def test_without_boto3_the_remedy_is_to_install_it(
    aws: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'selfalign\[s3\]'"):
        S3Store(BUCKET)


def test_objects_of_others_that_are_no_keys_are_not_listed(s3_url: str) -> None:
    store = S3Store(BUCKET, s3_url.rpartition("/")[2])
    store.write("a", b"")
    for name in ("folder/", "with space"):
        store._client.put_object(Bucket=BUCKET, Key=f"{s3_url.rpartition('/')[2]}/{name}")
    assert list(store.list("")) == ["a"]


def test_stores_of_one_bucket_do_not_see_each_other(s3_url: str) -> None:
    prefix = s3_url.rpartition("/")[2]
    one, other = S3Store(BUCKET, prefix), S3Store(BUCKET, prefix + "-2")
    one.write("a", b"")
    assert list(other.list("")) == []
    with pytest.raises(NotFound):
        other.read("a")
