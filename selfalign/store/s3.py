"""The store in an S3 bucket, or in anything that speaks S3 and honours conditional writes.

Settings come from environment variables `SELFALIGN_S3_<FIELD>` (an empty one counts as unset); see
`S3Options`:
SELFALIGN_S3_ENDPOINT_URL, _REGION, _SSE_KMS_KEY_ID, _CHECKSUMS, _ADDRESSING_STYLE,
_MAX_ATTEMPTS, _CONNECT_TIMEOUT_SECONDS, _READ_TIMEOUT_SECONDS, _PART_MIB, _TRANSFER_THREADS.
The AWS SDK's own variables hold where a field is null or has none (AWS_ENDPOINT_URL_S3,
AWS_REGION, AWS_CA_BUNDLE, ...). Credentials come from the SDK's default chain alone, never from
a URL.

Conditional writes and lost answers. The SDK sends a request again after a 5xx or a broken
connection, although the first attempt may have taken effect; the second one is then refused
with 412 by our own write. So every conditional write carries a random token in the object's
metadata, and when the outcome is in doubt the object is looked at:

- It holds our token: the write took effect, and its version is returned. Comparing content
  instead would give two writers of equal bytes both the victory.
- It does not, and S3 refused the condition: PreconditionFailed. (If our write took effect and
  another writer replaced it before we looked, this is what is reported too: the state is not
  the one asked for. Who reads, changes and writes in a loop may then apply a change twice;
  pointers and write-once objects, which is what this project keeps, are safe.)
- It does not, and no answer came: StoreUnavailable, and the message says that a request under
  way may still take effect. The same write again is safe: at worst the late one refuses it.

An interrupted multipart upload leaves parts that no listing shows: give the bucket a lifecycle
rule that aborts incomplete multipart uploads.
"""

from __future__ import annotations

import contextlib
import random
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from selfalign._version import __version__
from selfalign.errors import ConfigurationError, StoreUnavailable, needing
from selfalign.store import s3_errors
from selfalign.store.base import MAX_READ_BYTES, Entry, NotFound, PreconditionFailed, too_large
from selfalign.store.files import os_errors, replacing
from selfalign.store.keys import MAX_PREFIX_LENGTH, check_key, check_prefix, is_key
from selfalign.store.s3_options import S3Options, load_options

if TYPE_CHECKING:
    from boto3.s3.transfer import TransferConfig
    from mypy_boto3_s3 import S3Client

WRITE_TOKEN = "selfalign-write"  # metadata key of the token that tells our write from others'
CONFLICT_ATTEMPTS = 8  # S3 answers 409 only while two conditional writes of one key overlap
READ_ATTEMPTS = 3  # the SDK does not repeat a body that breaks off; s3transfer does, for files
COPY_PART_MIB = 256  # of a copy inside the bucket; 10,000 parts of it are 2.4 TiB

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
# Hosts of S3 itself. Everything else (a VPC endpoint too) is an endpoint of the user's choice.
_AWS_HOST = re.compile(r"s3[a-z0-9.-]*\.(amazonaws\.com(\.cn)?|api\.aws)")


class S3Store:
    """Objects under `s3://bucket/prefix/`. Safe for threads; a forked process opens its own.

    Args:
        bucket: its name.
        prefix: "" or a key under which all keys of this store live, without a slash at its end.
        options: None takes those of the environment.
    """

    def __init__(self, bucket: str, prefix: str = "", *, options: S3Options | None = None) -> None:
        if not _BUCKET.fullmatch(bucket):
            raise ConfigurationError(
                "store s3://…: expected a bucket's name of letters, digits and . _ -",
                remedy="write s3://bucket/prefix",
            )
        if prefix:
            check_key(prefix)
        if len(prefix) > MAX_PREFIX_LENGTH:
            raise ConfigurationError(
                f"store s3://{bucket}: a prefix of {len(prefix)} characters",
                remedy=f"use at most {MAX_PREFIX_LENGTH}",
            )
        self._bucket = bucket
        self._prefix = prefix + "/" if prefix else ""
        self._url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._options = options or load_options()
        self._bucket_seen = False
        self._client = _make_client(self._options)
        self._failures = s3_errors.vendor_errors()
        self._transfer = _transfer_config(self._client, self._options, self._options.part_mib)

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`."""
        return self._url

    def read(self, key: str) -> bytes:
        return self.read_versioned(key)[0]

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        """The object and its ETag. Raises NotFound."""
        check_key(key)
        for attempt in range(READ_ATTEMPTS):
            try:
                response = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            except self._failures as error:
                raise self._error(error, key, "read") from error
            try:
                with contextlib.closing(response["Body"]) as body:
                    # read() alone notices a body that breaks off
                    known = response.get("ContentLength", MAX_READ_BYTES + 1) <= MAX_READ_BYTES
                    data = body.read() if known else body.read(MAX_READ_BYTES + 1)
                    if len(data) > MAX_READ_BYTES:
                        raise too_large(self._where(key))
                    return data, self._etag(response, key)
            except self._failures as error:
                if attempt == READ_ATTEMPTS - 1:
                    raise self._error(error, key, "read") from error
        raise AssertionError("unreachable")

    def write(
        self, key: str, data: bytes, *, if_absent: bool = False, if_version: str | None = None
    ) -> str:
        """Write atomically, return the new ETag. Raises PreconditionFailed."""
        check_key(key)
        if if_absent and if_version is not None:
            raise ValueError("if_absent and if_version exclude each other")
        request: dict[str, Any] = {
            "Bucket": self._bucket,
            "Key": self._prefix + key,
            "Body": data,
            **self._encryption,
        }
        if if_absent:
            return self._write_if(key, {**request, "IfNoneMatch": "*"})
        if if_version is not None:
            return self._write_if(key, {**request, "IfMatch": if_version})
        try:
            return self._etag(self._client.put_object(**request), key)
        except self._failures as error:
            raise self._error(error, key, "write") from error

    def upload(self, source: Path, key: str) -> None:
        """Copy a local file to `key`, in parts at once. Raises DataError without such a file."""
        check_key(key)
        with os_errors(self._where(key), f"upload {source}"):
            try:
                self._client.upload_file(
                    str(source),
                    self._bucket,
                    self._prefix + key,
                    ExtraArgs=self._encryption,
                    Config=self._transfer,
                )
            except self._failures as error:
                raise self._error(error, key, "upload") from error

    def download(self, key: str, target: Path) -> None:
        check_key(key)
        with os_errors(self._where(key), f"download to {target}"), replacing(target) as file:
            try:
                self._client.download_fileobj(
                    self._bucket, self._prefix + key, file, Config=self._transfer
                )
            except self._failures as error:
                raise self._error(error, key, "download") from error

    def copy(self, source: str, key: str) -> None:
        """Copy an object inside the bucket, in parts when it is large. Raises NotFound.

        CopyObject takes 5 GiB at most, and is silent while it works: larger objects than
        `COPY_PART_MIB` go by UploadPartCopy, whose parts come back before a read times out.
        """
        check_key(source)
        check_key(key)
        try:
            self._client.copy(
                {"Bucket": self._bucket, "Key": self._prefix + source},
                self._bucket,
                self._prefix + key,
                ExtraArgs=self._encryption,
                Config=_transfer_config(self._client, self._options, COPY_PART_MIB),
            )
        except self._failures as error:
            raise self._error(error, source, f"copy to {key}") from error

    def exists(self, key: str) -> bool:
        check_key(key)
        try:
            self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
        except self._failures as error:
            translated = self._error(error, key, "look up")
            if isinstance(translated, NotFound):
                return False
            raise translated from error
        return True

    def list(self, prefix: str) -> Iterator[str]:
        return (entry.key for entry in self.entries(prefix))

    def entries(self, prefix: str) -> Iterator[Entry]:
        check_prefix(prefix)
        return self._entries(prefix)

    def delete(self, key: str) -> None:
        check_key(key)
        try:
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)
        except self._failures as error:
            translated = self._error(error, key, "delete")
            if not isinstance(translated, NotFound):
                raise translated from error

    @property
    def _encryption(self) -> dict[str, str]:
        key_id = self._options.sse_kms_key_id
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key_id} if key_id else {}

    def _etag(self, response: Mapping[str, Any], key: str) -> str:
        try:
            return str(response["ETag"])
        except KeyError:
            raise ConfigurationError(
                f"{self._where(key)}: the server's answer has no ETag, so versions of an object "
                "cannot be told apart",
                remedy="use a server (and proxies before it) that sends ETags, as S3 does",
            ) from None

    def _where(self, key: str) -> str:
        return f"store {self._url}, key {key}"

    def _entries(self, prefix: str) -> Iterator[Entry]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix + prefix
        )
        try:
            for page in pages:
                if not page.keys() & {"Name", "IsTruncated"}:  # no empty bucket either
                    raise ValueError("a listing without the bucket's name")
                for entry in page.get("Contents", []):
                    # Others may put objects here that are no keys, as the console's "folders".
                    if is_key(key := entry["Key"][len(self._prefix) :]):
                        yield Entry(key, entry["Size"], entry["LastModified"])
        except self._failures as error:
            where = f"store {self._url}, prefix {prefix}"
            raise s3_errors.translate(error, where, "list") from error

    def _write_if(self, key: str, request: dict[str, Any]) -> str:
        """Write under a condition; see the module's docstring on outcomes in doubt."""
        token = uuid.uuid4().hex
        for attempt in range(CONFLICT_ATTEMPTS):
            if attempt:
                time.sleep(random.uniform(0, min(0.05 * 2**attempt, 1.0)))
            try:
                written = self._client.put_object(**request, Metadata={WRITE_TOKEN: token})
                return self._etag(written, key)
            except self._failures as error:
                if not s3_errors.is_conflict(error):
                    return self._settle(key, token, error)
                conflict = error
        raise self._error(conflict, key, f"write in {CONFLICT_ATTEMPTS} attempts") from conflict

    def _settle(self, key: str, token: str, error: Exception) -> str:
        """The version, if the object is the one we wrote; else raise what `error` means."""
        # 404 is the answer to If-Match on an absent object.
        refused = s3_errors.is_precondition_failed(error) or s3_errors.is_missing(error)
        unclear = PreconditionFailed(key) if refused else self._error(error, key, "write")
        if not isinstance(unclear, PreconditionFailed | StoreUnavailable):
            raise unclear from error
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
        except self._failures as again:
            if not s3_errors.is_missing(again):
                raise self._error(again, key, "tell whether a write took effect") from error
        else:
            # Some servers change the case of metadata keys.
            if token in (v for k, v in head["Metadata"].items() if k.lower() == WRITE_TOKEN):
                return self._etag(head, key)
        if isinstance(unclear, StoreUnavailable):
            unclear = StoreUnavailable(
                f"{unclear.message}; the object is not this write's, but a request under way may "
                "still take effect",
                remedy="try again: the condition keeps a repetition from overwriting anything",
            )
        raise unclear from error

    def _error(self, error: Exception, key: str, action: str) -> Exception:
        """NotFound, or the SelfAlignError that a vendor's error stands for."""
        if s3_errors.is_missing(error):
            self._require_bucket()
            return NotFound(key)
        return s3_errors.translate(error, self._where(key), action)

    def _require_bucket(self) -> None:
        """HEAD answers 404 for a missing bucket as for a missing object: tell them apart."""
        if self._bucket_seen:
            return
        try:
            self._client.head_bucket(Bucket=self._bucket)
        except self._failures as error:
            if s3_errors.is_missing(error):
                raise ConfigurationError(
                    f"store {self._url}: there is no bucket {self._bucket}",
                    remedy="create the bucket, or correct its name or the endpoint",
                ) from error
            # Not allowed to look, or a passing failure: the object's 404 is all we know.
            return
        self._bucket_seen = True


def _make_client(options: S3Options) -> S3Client:
    with needing("an s3:// store needs the package boto3", "s3"):
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    config = Config(
        retries={"mode": "standard", "total_max_attempts": options.max_attempts},
        connect_timeout=options.connect_timeout_seconds,
        read_timeout=options.read_timeout_seconds,
        max_pool_connections=options.transfer_threads + 4,  # small requests meanwhile
        s3={"addressing_style": options.addressing_style},
        request_checksum_calculation=options.checksums,
        response_checksum_validation=options.checksums,
        user_agent_extra=f"selfalign/{__version__}",
    )
    try:
        return boto3.session.Session().client(
            "s3", region_name=options.region, endpoint_url=options.endpoint_url, config=config
        )
    except (BotoCoreError, ValueError) as error:
        raise ConfigurationError(
            f"cannot make an S3 client: {s3_errors.redact(str(error))}",
            remedy="check the AWS settings of this process (region, profile, endpoint)",
        ) from error


def _transfer_config(client: S3Client, options: S3Options, part_mib: int) -> TransferConfig:
    from boto3.s3.transfer import TransferConfig

    host = urlsplit(client.meta.endpoint_url).hostname or ""
    part_bytes = part_mib * 2**20
    return TransferConfig(
        multipart_threshold=part_bytes,
        multipart_chunksize=part_bytes,
        max_concurrency=options.transfer_threads,
        # The CRT client ignores endpoint_url and goes to AWS: boto3 issue 4839.
        preferred_transfer_client="auto" if _AWS_HOST.fullmatch(host) else "classic",
    )
