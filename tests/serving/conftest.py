"""A real S3 server for these tests too."""

from __future__ import annotations

from tests.store.conftest import aws, moto_url, s3_url  # noqa: F401 - fixtures
