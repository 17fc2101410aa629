"""Both stores under one fixture; S3 is a real server process on a loopback port."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selfalign.store.base import Store
from selfalign.store.open import open_store
from selfalign.store.s3 import S3Store
from selfalign.store.s3_options import load_options

from .proxy import Proxy, running_proxy

BUCKET = "selfalign-test"
PAGE_SIZE = 10  # keys per page of a listing; S3's own 1000 would need too many objects
SECRET_KEY = "dummySecretKey0dummySecretKey0dummySecre"
SESSION_TOKEN = "dummySessionToken/" + 10 * "0123456789abcdef+"


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    """The endpoint of a moto server that has `BUCKET`; one per session and xdist worker."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("moto_process.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE_SIZE)},
        text=True,
    )
    url = process.stdout.readline().strip()
    request = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()
    yield url
    process.communicate(input="")
    assert process.returncode == 0


@pytest.fixture
def aws(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An environment with dummy credentials in which the endpoint is moto; returns its URL."""
    for name in os.environ:
        if name.startswith(("AWS_", "SELFALIGN_S3_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIADUMMYDUMMYDUMMY0")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SESSION_TOKEN)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("SELFALIGN_S3_ENDPOINT_URL", moto_url)
    monkeypatch.setenv("SELFALIGN_S3_REGION", "us-east-1")
    monkeypatch.setenv("SELFALIGN_S3_PART_MIB", "5")
    return moto_url


def s3_store(url: str, **options: Any) -> S3Store:
    """The store at an S3 URL with other options than the environment's."""
    changed = load_options().model_copy(update=options)
    return S3Store(BUCKET, url.rpartition("/")[2], options=changed)


@pytest.fixture
def s3_url(aws: str) -> str:
    """A fresh prefix in the bucket."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(params=["local", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh, empty store of each kind."""
    if request.param == "local":
        return str(tmp_path / "store")
    url: str = request.getfixturevalue("s3_url")
    return url


@pytest.fixture
def store(store_url: str) -> Store:
    """The store at `store_url`."""
    return open_store(store_url)


@pytest.fixture
def proxy(aws: str) -> Iterator[Proxy]:
    """A proxy in front of moto that fails where the test says."""
    with running_proxy(aws) as running:
        yield running
