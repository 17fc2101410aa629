"""Settings of the S3 store, from the environment. `selfalign.store.s3` lists them."""

from __future__ import annotations

import os
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from selfalign.errors import ConfigurationError

ENVIRONMENT_PREFIX = "SELFALIGN_S3_"


class S3Options(BaseModel):
    """How to reach the bucket and how to move data."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    endpoint_url: str | None = Field(None, description="null: the SDK's settings, then AWS")
    region: str | None = Field(None, description="null: the SDK's settings")
    sse_kms_key_id: str | None = Field(None, description="null: the bucket's default encryption")
    checksums: Literal["when_supported", "when_required"] | None = Field(
        None, description="when_required for servers that refuse CRC32; null: the SDK's settings"
    )
    addressing_style: Literal["auto", "path", "virtual"] = Field(
        "auto", description="path for servers without a DNS name per bucket"
    )
    max_attempts: int = Field(5, ge=1, description="per request, the first one included")
    connect_timeout_seconds: float = Field(10, gt=0)
    read_timeout_seconds: float = Field(60, gt=0, description="of silence on a connection")
    # Weights come in files of gigabytes. The SDK's 8 MiB and 10 threads spend themselves on
    # requests; 32 MiB keeps 5 GB under 160 requests and the loss of a broken part small, and 16
    # threads fill a 10 Gbit/s link at the some 85 MB/s that S3 gives one connection
    # (https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance-design-patterns.html).
    part_mib: int = Field(32, ge=5, le=5120, description="MiB per part; S3 takes 5 to 5120")
    transfer_threads: int = Field(16, ge=1, description="connections per file")

    @field_validator("endpoint_url")
    @classmethod
    def _endpoint_is_bare(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected http://host or https://host")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("credentials and queries do not belong into an endpoint")
        return value


def load_options() -> S3Options:
    """Options from the environment. Raises ConfigurationError."""
    values = {
        name: value
        for name in S3Options.model_fields
        if (value := os.environ.get(ENVIRONMENT_PREFIX + name.upper()))
    }
    try:
        return S3Options.model_validate(values)
    except ValidationError as error:
        # Values are left out: someone may have put a password into the endpoint.
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))} ({ENVIRONMENT_PREFIX}{str(e['loc'][0]).upper()}): "
            f"{e['msg']}"
            for e in error.errors(include_input=False, include_url=False)
        )
        raise ConfigurationError(
            f"options of the S3 store: {problems}",
            remedy=f"known options: {', '.join(S3Options.model_fields)}",
        ) from None
