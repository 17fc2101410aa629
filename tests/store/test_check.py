"""`check_store` passes the stores that keep the contract and catches those that do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from selfalign.store.base import Store
from selfalign.store.check import check_store
from selfalign.store.local import LocalStore
from tests.memory_store import MemoryStore

from .conftest import s3_store
from .proxy import Fault, Proxy

LARGE = 6 << 20  # two parts of 5 MiB and less


def failed(store: Store) -> set[str]:
    """Names of the checks that did not pass."""
    return {result.name for result in check_store(store, large_bytes=LARGE) if not result.ok}


def test_a_good_store_passes_and_is_left_as_it_was(store: Store) -> None:
    store.write("mine", b"")
    results = check_store(store, large_bytes=LARGE)
    assert [(r.name, r.detail) for r in results if not r.ok] == []
    assert len(results) == 11
    assert list(store.list("")) == ["mine"]


def test_the_store_in_memory_that_other_tests_use_passes() -> None:
    assert failed(MemoryStore()) == set()


def test_a_server_that_ignores_conditions_is_caught(s3_url: str, proxy: Proxy) -> None:
    proxy.strip = ("if-match", "if-none-match")
    store = s3_store(s3_url, endpoint_url=proxy.url)
    results = {result.name: result for result in check_store(store, large_bytes=LARGE)}
    assert {name for name, result in results.items() if not result.ok} == {
        *("if_absent", "if_absent, writers at once"),
        *("if_version", "if_version, writers at once"),
    }
    assert "the condition is ignored" in results["if_absent"].detail
    assert list(store.list("")) == []


@pytest.mark.parametrize(
    ("header", "kind"), [("if-none-match", "if_absent"), ("if-match", "if_version")]
)
def test_a_server_that_ignores_one_condition_is_caught(
    s3_url: str, proxy: Proxy, header: str, kind: str
) -> None:
    proxy.strip = (header,)
    store = s3_store(s3_url, endpoint_url=proxy.url)
    assert failed(store) == {kind, f"{kind}, writers at once"}


class Backwards(LocalStore):
    """Lists in the wrong order."""

    def list(self, prefix: str) -> Iterator[str]:
        return iter(sorted(super().list(prefix), reverse=True))


class Lagging(LocalStore):
    """Lists without the newest object."""

    def list(self, prefix: str) -> Iterator[str]:
        return iter(list(super().list(prefix))[:-1])


class Folders(LocalStore):
    """Takes a prefix for a folder."""

    def list(self, prefix: str) -> Iterator[str]:
        folder = prefix.rstrip("/") + "/" if prefix else ""
        return super().list(folder)


class Undeletable(LocalStore):
    """Forgets to delete."""

    def delete(self, key: str) -> None:
        return None


class Truncating(LocalStore):
    """Loses the end of uploads."""

    def upload(self, source: Path, key: str) -> None:
        self.write(key, source.read_bytes()[:-1])


class Checked(LocalStore):
    """Compares and writes in two steps, with everyone else in between."""

    def write(
        self, key: str, data: bytes, *, if_absent: bool = False, if_version: str | None = None
    ) -> str:
        if "at-once" in key and if_absent:
            return super().write(key, data)
        return super().write(key, data, if_absent=if_absent, if_version=if_version)


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (Backwards, {"list"}),
        (Lagging, {"list", "clean up"}),
        (Folders, {"list"}),
        (Undeletable, {"delete", "clean up"}),
        (Truncating, {"large object"}),
        (Checked, {"if_absent, writers at once"}),
    ],
)
def test_a_store_with_one_fault_fails_that_check_alone(
    tmp_path: Path, broken: Callable[[Path], Store], expected: set[str]
) -> None:
    assert failed(broken(tmp_path)) - {"clean up"} == expected - {"clean up"}


def test_a_store_that_denies_is_reported_once_and_not_tried_again(
    s3_url: str, proxy: Proxy
) -> None:
    proxy.faults = [
        Fault(method, "answer", 1000, 403, "AccessDenied") for method in ("GET", "PUT", "HEAD")
    ]
    results = check_store(s3_store(s3_url, endpoint_url=proxy.url))
    assert not any(result.ok for result in results)
    assert "AccessDenied" in results[0].detail
    assert {result.detail for result in results[1:-1]} == {"not tried: the store failed before"}
    assert proxy.count("PUT") == 1
