"""A repository of an OCI registry: blobs by digest and the manifest under a tag, over HTTP.

The OCI distribution specification 1.1, as far as pushing needs it. Not by oras-py, which reads each
file into memory, waits for an answer without a bound, and repeats what a wrong password failed.
HTTPS is spoken everywhere but on this machine (localhost). Logins are found by `registry_login`.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urljoin

import httpx2

from selfalign.errors import (
    ConfigurationError,
    SelfAlignError,
    StorageFull,
    StoreDenied,
    StoreUnavailable,
)
from selfalign.store.documents import decode_json
from selfalign.store.files import COPY_BYTES, os_errors
from selfalign.store.registry_login import RegistryAuth, find_login
from selfalign.store.s3_errors import redact

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
WAITS_SECONDS = (1.0, 4.0, 16.0)  # before each further attempt at one request or upload
_TIMEOUT_SECONDS = 60.0  # for a connection, and for each read and write
_LONGEST_ANSWER = 4 << 20  # of a manifest, which the specification asks registries to take
_LONGEST_ANSWER_SECONDS = 300.0
_DOCKER_HUB = ("docker.io", "registry-1.docker.io")  # what people write; where its API is

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    r"oci://(?P<host>[A-Za-z0-9.-]+(?::\d+)?|\[[0-9a-f:]+\](?::\d+)?)"
    rf"/(?P<name>{_COMPONENT}(?:/{_COMPONENT})*)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}}))?"
)
_LOOPBACK = re.compile(r"(?:localhost|127(?:\.\d+){3}|\[::1\])(?::\d+)?")


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an artifact is: oci://host/name:tag. `tag` is None where none was written."""

    host: str
    name: str
    tag: str | None

    def __str__(self) -> str:
        return f"oci://{self.host}/{self.name}" + (f":{self.tag}" if self.tag else "")


def parse_reference(url: str) -> Reference:
    """Raises ConfigurationError for anything but oci://REGISTRY/REPOSITORY[:TAG]."""
    if (found := _REFERENCE.fullmatch(url)) is None:
        raise ConfigurationError(
            "oci://…: expected oci://REGISTRY/REPOSITORY:TAG, the repository in small letters, "
            f"without credentials or digest; got {redact(url.rpartition('@')[2])!r}",
            remedy="write it so; credentials come from `docker login REGISTRY`",
        )
    return Reference(found["host"], found["name"], found["tag"])


class Repository:
    """One repository; a context manager, which closes its connections.

    Methods raise StoreDenied, StoreUnavailable, StorageFull or ConfigurationError: what the
    registry answers decides. Requests that fail in a way that passes are tried `WAITS_SECONDS`.
    """

    def __init__(self, host: str, name: str) -> None:
        api = _DOCKER_HUB[1] if host == _DOCKER_HUB[0] else host
        scheme = "http" if _LOOPBACK.fullmatch(host) else "https"
        full = f"library/{name}" if host == _DOCKER_HUB[0] and "/" not in name else name
        self._base, self._where = f"{scheme}://{api}/v2/{full}/", f"oci://{host}/{name}"
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for each request
        self._http = httpx2.Client(
            timeout=_TIMEOUT_SECONDS,
            auth=RegistryAuth(self._base, full, find_login(host)),
            headers={"Accept-Encoding": "identity"},
            event_hooks={"response": [_bound]},
        )
        self._host = host

    def __enter__(self) -> Repository:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def has_blob(self, sha256: str) -> bool:
        """Whether the repository holds the blob: a registry keeps nothing under a wrong digest."""
        return self._request("HEAD", f"blobs/sha256:{sha256}", missing=True).status_code != 404

    def upload_blob(self, source: Path, sha256: str, name: str) -> None:
        """Send a file, streaming; the registry refuses what has another digest.

        Args:
            name: what errors call it.
        """
        size = source.stat().st_size

        def send() -> httpx2.Response:
            begun = self._once("POST", "blobs/uploads/", headers={"Content-Length": "0"})
            if not begun.is_success:
                return begun
            target = httpx2.URL(urljoin(str(begun.url), begun.headers.get("Location", "")))
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
            with source.open("rb") as file:
                url = str(target.copy_merge_params({"digest": f"sha256:{sha256}"}))
                return self._once("PUT", url, content=_pieces(file), headers=headers)

        with os_errors(str(source), "read"):
            self._persist(send, f"{name} (sha256:{sha256[:12]})")

    def read_manifest(self, tag: str) -> bytes | None:
        """The manifest under a tag, or None."""
        accept = {"Accept": MANIFEST_TYPE}
        found = self._request("GET", f"manifests/{tag}", headers=accept, missing=True)
        return None if found.status_code == 404 else found.content

    def write_manifest(self, tag: str, manifest: bytes) -> None:
        """Put a manifest under a tag; the registry refuses one whose blobs it has not."""
        kind = {"Content-Type": MANIFEST_TYPE}
        self._request("PUT", f"manifests/{tag}", content=manifest, headers=kind)

    def _request(
        self, method: str, path: str, *, missing: bool = False, **options: Any
    ) -> httpx2.Response:
        return self._persist(lambda: self._once(method, path, **options), path, missing=missing)

    def _once(self, method: str, path: str, **options: Any) -> httpx2.Response:
        follow = method in ("GET", "HEAD")  # registries keep blobs elsewhere; a login stays here
        return self._http.request(
            method, urljoin(self._base, path), follow_redirects=follow, **options
        )

    def _persist(self, ask: Any, what: str, *, missing: bool = False) -> httpx2.Response:
        """Ask until there is an answer; `missing`: 404 is one."""
        for wait in (*WAITS_SECONDS, None):
            try:
                response: httpx2.Response = ask()
            # ValueError: of addresses and headers in an answer that cannot be ones
            except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
                failure = self._error(None, f"{what}: {error or type(error).__name__}")
                failure.__cause__ = error
            else:
                if response.is_success or (missing and response.status_code == 404):
                    return response
                failure = self._error(response, what)
            if wait is None or not failure.retryable:
                raise failure
            time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _error(self, response: httpx2.Response | None, what: str) -> SelfAlignError:
        if response is None:
            return StoreUnavailable(
                f"{self._where}: {redact(what)}",
                remedy="check the registry's name and the network; run it again: it goes on",
            )
        status, told = response.status_code, f"{self._where}: {what}: {_told(response)}"
        if status in (401, 403):
            return StoreDenied(
                told,
                remedy=f"docker login {self._host}, with an account that may push there "
                "(or REGISTRY_AUTH_FILE or DOCKER_CONFIG, where the login is kept elsewhere)",
            )
        if status == 507:
            return StorageFull(told, remedy="free space in the registry, or raise its quota")
        if status in (408, 429) or status >= 500 or "DIGEST_INVALID" in told:
            return StoreUnavailable(told, remedy="run it again: what is there stays")
        return ConfigurationError(
            told, remedy="check the repository's name, and that the registry takes OCI artifacts"
        )


class _Bounded(httpx2.SyncByteStream):
    """An answer's bytes, within a size and a time, whatever the registry sends."""

    def __init__(self, stream: httpx2.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        size, until = 0, time.monotonic() + _LONGEST_ANSWER_SECONDS
        for piece in self._stream:
            size += len(piece)
            if size > _LONGEST_ANSWER or time.monotonic() > until:
                raise httpx2.ReadError(
                    f"the answer has more than {_LONGEST_ANSWER} bytes, or takes longer than "
                    f"{_LONGEST_ANSWER_SECONDS:g} s"
                )
            yield piece

    def close(self) -> None:
        self._stream.close()


def _bound(response: httpx2.Response) -> None:
    assert isinstance(response.stream, httpx2.SyncByteStream)
    response.stream = _Bounded(response.stream)
    response.headers.pop("Content-Encoding", None)  # not asked for; it may unpack to anything


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(COPY_BYTES):
        yield piece


def _told(response: httpx2.Response) -> str:
    """The registry's words: the specification's errors, else the status alone."""
    try:
        errors = decode_json(response.content)["errors"]
        words = "; ".join(f"{each['code']}: {each.get('message', '')}" for each in errors)
    except (ValueError, KeyError, TypeError):
        words = response.reason_phrase
    return f"HTTP {response.status_code} {redact(words)}"
