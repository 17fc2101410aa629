"""The S3 store when the server refuses, stumbles or falls silent."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from urllib3.exceptions import ProtocolError

from selfalign.errors import (
    ConfigurationError,
    SelfAlignError,
    StorageFull,
    StoreDenied,
    StoreUnavailable,
)
from selfalign.store import s3
from selfalign.store.base import NotFound, PreconditionFailed
from selfalign.store.s3 import S3Store
from selfalign.store.s3_errors import redact

from .conftest import BUCKET, SECRET_KEY, SESSION_TOKEN, s3_store
from .proxy import Fault, Proxy

Use = Callable[[S3Store], object]
USES: tuple[Use, ...] = (
    lambda store: store.read("key"),
    lambda store: store.write("key", b"data"),
    lambda store: store.write("key", b"data", if_absent=True),
    lambda store: store.exists("key"),
    lambda store: list(store.list("")),
    lambda store: store.delete("key"),
    lambda store: store.upload(Path(__file__), "key"),
    lambda store: store.download("key", Path("never-made")),
)
METHODS = ("GET", "PUT", "HEAD", "POST", "DELETE")


@pytest.fixture
def store(s3_url: str, proxy: Proxy) -> S3Store:
    """A store whose requests pass through the proxy, each sent twice at most."""
    return s3_store(s3_url, endpoint_url=proxy.url, max_attempts=2)


@pytest.fixture
def direct(s3_url: str, store: S3Store) -> S3Store:
    """The same store, past the proxy: what another writer sees and does."""
    return S3Store(BUCKET, s3_url.rpartition("/")[2])


@pytest.fixture(autouse=True)
def in_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads that must not happen would land here; nothing waits before it is sent again."""
    monkeypatch.chdir(tmp_path)
    backoff = "botocore.retries.standard.ExponentialBackoff.delay_amount"
    monkeypatch.setattr(backoff, lambda *_: 0)


def always(status: int, code: str, message: str = "as the test asked") -> list[Fault]:
    """This answer to every request."""
    return [Fault(m, "answer", 1000, status, code, message) for m in METHODS]


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "AccessDenied", StoreDenied),
        (403, "SignatureDoesNotMatch", StoreDenied),
        (503, "ServiceUnavailable", StoreUnavailable),
        (507, "XMinioStorageFull", StorageFull),
        (501, "NotImplemented", ConfigurationError),
    ],
)
def test_the_answer_decides_whether_to_retry(
    store: S3Store, proxy: Proxy, status: int, code: str, expected: type[SelfAlignError]
) -> None:
    proxy.faults = always(status, code)
    for use in USES:
        with pytest.raises(SelfAlignError, match=rf"store s3://{BUCKET}.*HTTP {status}") as caught:
            use(store)
        assert type(caught.value) is expected
        assert caught.value.remedy
        assert caught.value.__cause__ is not None
    assert not Path("never-made").exists()


def test_a_refused_connection_is_unavailable(s3_url: str) -> None:
    with socket.socket() as bound:  # bound and never listening: every connection is refused
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        store = s3_store(s3_url, endpoint_url=url, max_attempts=1)
        for use in USES:
            with pytest.raises(StoreUnavailable, match="Could not connect") as caught:
                use(store)
            assert url in str(caught.value)
            assert "list-type" not in str(caught.value)


def test_a_missing_bucket_is_said(aws: str) -> None:
    store = S3Store("no-such-bucket")
    for use in USES:
        with pytest.raises(ConfigurationError, match="store s3://no-such-bucket"):
            use(store)


def test_missing_credentials_are_denied(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    store = S3Store(BUCKET)
    for use in USES:
        with pytest.raises(StoreDenied, match="Unable to locate credentials"):
            use(store)


def test_a_passing_failure_is_overcome(store: S3Store, proxy: Proxy) -> None:
    proxy.faults = [Fault("PUT", "answer"), Fault("GET", "answer"), Fault("HEAD", "lose")]
    store.write("key", b"data")
    assert store.read("key") == b"data"
    assert store.exists("key")
    assert proxy.requests == ["PUT", "PUT", "GET", "GET", "HEAD", "HEAD"]


def test_a_body_that_breaks_off_is_read_again(store: S3Store, proxy: Proxy) -> None:
    store.write("key", b"data" * 1000)
    proxy.faults = [Fault("GET", "cut", times=2)]
    assert store.read("key") == b"data" * 1000
    proxy.faults = [Fault("GET", "cut", times=s3.READ_ATTEMPTS)]
    with pytest.raises(StoreUnavailable, match="key key: cannot read"):
        store.read("key")


def test_an_error_whose_body_breaks_off_is_no_traceback(
    store: S3Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.faults = [Fault("GET", "cut", times=1000)]  # in the XML that says NoSuchKey
    with pytest.raises(NotFound):
        store.read("key")

    def broken(**request: object) -> None:
        raise ProtocolError("Connection broken: InvalidChunkLength")  # botocore lets it pass

    monkeypatch.setattr(store._client, "get_object", broken)
    with pytest.raises(StoreUnavailable, match="key key: cannot read: Connection broken"):
        store.read("key")


def test_a_server_without_etags_is_said(store: S3Store, proxy: Proxy) -> None:
    proxy.hide = ("etag",)
    for use in (
        lambda: store.write("key", b"data"),
        lambda: store.write("other", b"data", if_absent=True),
        lambda: store.read("key"),
    ):
        with pytest.raises(ConfigurationError, match="has no ETag"):
            use()


LISTED = "<ListBucketResult><Name>bucket</Name><Contents>%s</Contents></ListBucketResult>"


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (302, {"Location": "https://sign-in.example/"}, ""),
        (206, {"ETag": '"x"'}, "{}"),
        (200, {}, "<html>Sign in</html>"),
        (200, {"ETag": '"x"'}, LISTED % f"<Key>{'k' * 99}</Key>"),
        (200, {"ETag": '"x"'}, LISTED % "<Size>1</Size>"),
        (200, {"ETag": '"x"'}, LISTED % "<Key>key</Key><LastModified>never</LastModified>"),
    ],
)
def test_an_answer_that_is_none_of_s3_s_is_no_traceback(
    store: S3Store, proxy: Proxy, status: int, headers: dict[str, str], body: str
) -> None:
    proxy.faults = [Fault(m, "answer", 10_000, status, headers=headers, body=body) for m in METHODS]
    for use in USES if status != 302 else ():  # botocore follows it a hundred times
        with contextlib.suppress(SelfAlignError):
            use(store)
    with pytest.raises(StoreUnavailable, match=r"cannot list: .* the answer is none of S3's") as e:
        list(store.list(""))
    assert "login page" in str(e.value.remedy)


def test_refused_checksums_have_a_remedy(store: S3Store, proxy: Proxy) -> None:
    proxy.faults = always(501, "NotImplemented")
    with pytest.raises(ConfigurationError, match="SELFALIGN_S3_CHECKSUMS=when_required"):
        store.write("key", b"data")


def test_a_download_that_keeps_breaking_off_leaves_no_file(
    store: S3Store, proxy: Proxy, tmp_path: Path
) -> None:
    store.write("key", b"data" * 1000)
    proxy.faults = [Fault("GET", "cut", times=1000)]
    with pytest.raises(StoreUnavailable, match="cannot download"):
        store.download("key", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


# Conditional writes: the outcome is in doubt when the answer is lost.


def test_an_if_absent_write_whose_answer_is_lost_has_won(store: S3Store, proxy: Proxy) -> None:
    proxy.faults = [Fault("PUT", "lose")]  # the SDK sends it again and gets 412
    version = store.write("manifest", b"mine", if_absent=True)
    assert proxy.requests == ["PUT", "PUT", "HEAD"]
    assert store.read_versioned("manifest") == (b"mine", version)


def test_an_if_version_write_whose_answer_is_lost_has_won(store: S3Store, proxy: Proxy) -> None:
    old = store.write("current", b"old")
    proxy.faults = [Fault("PUT", "lose")]
    version = store.write("current", b"mine", if_version=old)
    assert store.read_versioned("current") == (b"mine", version)
    assert version != old


def test_a_write_with_every_answer_lost_has_won(store: S3Store, proxy: Proxy) -> None:
    proxy.faults = [Fault("PUT", "lose", times=2)]
    version = store.write("manifest", b"mine", if_absent=True)
    assert store.read_versioned("manifest") == (b"mine", version)


def test_a_write_that_took_effect_before_a_5xx_has_won(
    store: S3Store, proxy: Proxy, direct: S3Store
) -> None:
    # First attempt: written, answer lost. Second: the server stumbles before looking.
    proxy.faults = [Fault("PUT", "lose"), Fault("PUT", "answer", status=503)]
    store.write("manifest", b"mine", if_absent=True)
    assert direct.read("manifest") == b"mine"


def test_a_lost_answer_does_not_make_a_winner_of_who_lost(
    store: S3Store, proxy: Proxy, direct: S3Store
) -> None:
    direct.write("manifest", b"same bytes", if_absent=True)
    proxy.faults = [Fault("PUT", "lose")]
    with pytest.raises(PreconditionFailed):
        store.write("manifest", b"same bytes", if_absent=True)
    old = direct.write("current", b"old")
    direct.write("current", b"same bytes", if_version=old)
    proxy.faults = [Fault("PUT", "lose")]
    with pytest.raises(PreconditionFailed):
        store.write("current", b"same bytes", if_version=old)


@pytest.mark.parametrize("condition", ["if_absent", "if_version"])
def test_a_write_without_answer_or_effect_is_unavailable_and_safe_to_repeat(
    store: S3Store, proxy: Proxy, condition: str
) -> None:
    def write() -> str:
        if condition == "if_absent":
            return store.write("key", b"mine", if_absent=True)
        return store.write("key", b"mine", if_version=old)

    old = "" if condition == "if_absent" else store.write("key", b"old")
    proxy.faults = [Fault("PUT", "answer", times=2)]
    with pytest.raises(StoreUnavailable, match="may still take effect"):
        write()
    write()
    assert store.read("key") == b"mine"


def test_a_write_in_doubt_that_cannot_be_looked_at_is_unavailable(
    store: S3Store, proxy: Proxy
) -> None:
    proxy.faults = [Fault("PUT", "lose", times=2), Fault("HEAD", "answer", times=2)]
    with pytest.raises(StoreUnavailable, match="cannot tell whether a write took effect"):
        store.write("manifest", b"mine", if_absent=True)


def test_a_conflict_is_tried_again(store: S3Store, proxy: Proxy) -> None:
    conflict = {"status": 409, "code": "ConditionalRequestConflict"}
    proxy.faults = [Fault("PUT", "answer", 2, **conflict)]  # type: ignore[arg-type]
    store.write("manifest", b"mine", if_absent=True)
    assert proxy.count("PUT") == 3


def test_conflicts_without_end_are_unavailable(
    store: S3Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "CONFLICT_ATTEMPTS", 3)
    proxy.faults = always(409, "ConditionalRequestConflict")
    with pytest.raises(StoreUnavailable, match="cannot write in 3 attempts"):
        store.write("manifest", b"mine", if_absent=True)
    assert proxy.count("PUT") == 3


# Nothing secret is said.


def test_an_error_holds_no_secret(store: S3Store, proxy: Proxy) -> None:
    said = (
        f"token {SESSION_TOKEN} key {SECRET_KEY} AWSAccessKeyId=AKIADUMMYDUMMYDUMMY0 "
        "see http://host/bucket/key?X-Amz-Signature=0a1b2c3d&amp;X-Amz-Credential=AKIADUMMY "
        "or http://me:pass@host/ Authorization: AWS4-HMAC-SHA256"
    )
    for code, status in (("AccessDenied", 403), ("InternalError", 500), ("Strange", 400)):
        proxy.faults = always(status, code, said)
        for use in USES:
            with pytest.raises(SelfAlignError) as caught:
                use(store)
            text = str(caught.value)
            for secret in (SESSION_TOKEN, SECRET_KEY, "AKIA", "0a1b2c3d", "me:pass", "HMAC"):
                assert secret not in text, text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GET http://h:1/b/k?list-type=2&X=y failed", "GET http://h:1/b/k?… failed"),
        ("https://user:pass@host/x", "https://…@host/x"),
        ("x-amz-security-token: abc, next", "x-amz-security-token: …, next"),
        ("aws_secret_access_key = abc/def+1", "aws_secret_access_key = …"),
        ("key AKIAIOSFODNN7EXAMPLE is unknown", "key … is unknown"),
        ("two\n  lines", "two lines"),
        (
            "User: arn:aws:sts::123456789012:assumed-role/generate-production/session-1 is not "
            "authorized to perform: s3:PutObject",
        )
        * 2,
    ],
)
def test_redact_cuts_secrets_and_keeps_the_rest(text: str, expected: str) -> None:
    assert redact(text) == expected
