"""From a URL to a store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from selfalign.errors import ConfigurationError
from selfalign.store.base import Store
from selfalign.store.local import LocalStore

_FORMS = "write a path, file:///path or s3://bucket/prefix"


def open_store(url: str) -> Store:
    """The store at `url`: a path (maybe a relative one), `file:///path` or `s3://bucket/prefix`.

    Raises:
        ConfigurationError: another scheme, credentials in the URL, a wrong setting of the S3 store
            in the environment, or boto3 is not installed.
    """
    check_store_url(url)
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "s3":
        from selfalign.store.s3 import S3Store

        bucket, _, prefix = rest.partition("/")
        return S3Store(bucket, prefix.strip("/"))
    if separator and scheme == "file":
        return LocalStore(_file_path(url))
    if separator:
        raise ConfigurationError(f"store {scheme}://…: no such kind of store", remedy=_FORMS)
    return LocalStore(Path(url))


def check_store_url(url: str) -> None:
    """Raise ConfigurationError where a store's URL holds control characters or maybe a secret.

    It is shown and kept with every run. The message repeats nothing secret of it.
    """
    scheme, separator, rest = url.partition("://")
    host = rest.partition("/")[0]
    if separator and ("@" in host or ":" in host or "?" in rest or "#" in rest):
        raise ConfigurationError(
            f"store {scheme}://…: expected a URL without credentials, port or query",
            remedy="write s3://bucket/prefix alone: credentials come from the AWS default chain "
            "(service account, environment or profile), the endpoint from AWS_ENDPOINT_URL_S3",
        )
    if not url or not url.isprintable():
        raise ConfigurationError(
            f"store {url!r}: expected a path or a URL without control characters, in UTF-8",
            remedy=_FORMS,
        )


def _file_path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise ConfigurationError(
            "store file://…: expected three slashes and an absolute path",
            remedy="write file:///absolute/path, or the path alone",
        )
    return Path(unquote(parts.path))
