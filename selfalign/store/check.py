"""Does a backend keep the store's contract? Some S3-like servers accept conditions and ignore them.

Works under a scratch prefix of its own, which is removed at the end.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from selfalign.errors import SelfAlignError
from selfalign.store.base import NotFound, PreconditionFailed, Store
from selfalign.store.files import file_sha256

SCRATCH = "store-check"
LARGE_BYTES = 40 << 20  # more than one part of an S3 upload (S3Options.part_mib)
NUM_WRITERS = 8


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One property of the backend. `detail` says what was seen, or what was expected instead."""

    name: str
    ok: bool
    detail: str


class _Violation(Exception):
    """The backend answered, but not as the contract says."""


def check_store(store: Store, *, large_bytes: int = LARGE_BYTES) -> list[CheckResult]:
    """Prove that `store` keeps the contract, by using it.

    Args:
        store: needs permission to write, list and delete.
        large_bytes: size of the object that goes up and comes back from a file; needs twice
            that in the temporary directory.

    Returns:
        One result per property, in order. After a failure of the store itself (denied, out of
        reach) the remaining ones are not tried and say so. Never raises a SelfAlignError.
    """
    scratch = f"{SCRATCH}/{uuid.uuid4().hex}"
    checks = {
        **{name: partial(case, store, f"{scratch}/{_slug(name)}") for name, case in CASES},
        "large object": partial(_large, store, f"{scratch}/large", large_bytes),
        "clean up": partial(_clean_up, store, scratch),
    }
    results: list[CheckResult] = []
    failed = False
    for name, check in checks.items():
        if failed and name != "clean up":
            results.append(CheckResult(name, False, "not tried: the store failed before"))
            continue
        result, broken = _outcome(name, check)
        results.append(result)
        failed = failed or broken
    return results


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def _outcome(name: str, check: Callable[[], str]) -> tuple[CheckResult, bool]:
    """The result, and whether the store itself failed."""
    try:
        return CheckResult(name, True, check()), False
    except (_Violation, NotFound, PreconditionFailed) as error:
        return CheckResult(name, False, str(error)), False
    except SelfAlignError as error:
        return CheckResult(name, False, str(error)), True


def _expect(condition: bool, violation: str) -> None:
    if not condition:
        raise _Violation(violation)


def _refused(
    store: Store,
    key: str,
    *,
    if_absent: bool = False,
    if_version: str | None = None,
    data: bytes = b"intruder",
) -> bool:
    try:
        store.write(key, data, if_absent=if_absent, if_version=if_version)
    except PreconditionFailed:
        return True
    return False


def _write_and_read(store: Store, key: str) -> str:
    for data in (b"first", b"", b"\x00\xff" * 1000):
        version = store.write(key, data)
        read, read_version = store.read_versioned(key)
        _expect(read == data, f"wrote {data!r}, read {read[:40]!r}: a read is stale or wrong")
        _expect(read_version == version, "a write and the read after it name two versions")
    _expect(store.exists(key), "an object just written does not exist")
    return "a write is seen at once"


def _absent(store: Store, key: str) -> str:
    _expect(not store.exists(key), "an object never written exists")
    try:
        store.read(key)
    except NotFound:
        return "absent objects are reported as such"
    raise _Violation("an object never written can be read")


def _if_absent(store: Store, key: str) -> str:
    store.write(key, b"first", if_absent=True)
    _expect(
        _refused(store, key, if_absent=True),
        "a second write with if_absent (If-None-Match: *) was accepted: the condition is ignored",
    )
    _expect(_refused(store, key, if_absent=True, data=b"first"), "equal bytes won twice")
    _expect(store.read(key) == b"first", "a refused write changed the object")
    return "the second write is refused"


def _if_version(store: Store, key: str) -> str:
    _expect(
        _refused(store, key, if_version=store.write(f"{key}-other", b"other")),
        "a write with if_version (If-Match) made an object that was absent",
    )
    old = store.write(key, b"first")
    new = store.write(key, b"second", if_version=old)
    _expect(new != old, "two contents have the same version")
    _expect(
        _refused(store, key, if_version=old),
        "a write with an old if_version (If-Match) was accepted: the condition is ignored",
    )
    _expect(store.read(key) == b"second", "a refused write changed the object")
    return "a write against an old version is refused"


def _if_absent_race(store: Store, key: str) -> str:
    return _race(store, key, lambda data: store.write(key, data, if_absent=True))


def _if_version_race(store: Store, key: str) -> str:
    version = store.write(key, b"start")
    return _race(store, key, lambda data: store.write(key, data, if_version=version))


def _race(store: Store, key: str, write: Callable[[bytes], str]) -> str:
    """`NUM_WRITERS` writers under one condition: exactly one may win, and its content stays."""

    def attempt(number: int) -> bytes | None:
        data = b"writer %d" % number
        try:
            write(data)
        except PreconditionFailed:
            return None
        return data

    with ThreadPoolExecutor(NUM_WRITERS) as pool:
        winners = [data for data in pool.map(attempt, range(NUM_WRITERS)) if data is not None]
    _expect(len(winners) == 1, f"{len(winners)} of {NUM_WRITERS} writers at once won, expected 1")
    _expect(store.read(key) == winners[0], "the object is not the winner's")
    return f"one of {NUM_WRITERS} writers wins"


def _list(store: Store, prefix: str) -> str:
    names = ("B", "a-b/c", "a.b", "a/b", "a/c", "a0", "ab", "b/c-d/e", "b/c.d", "b/c/d")
    expected = [f"{prefix}/{name}" for name in names]
    for key in reversed(expected):
        store.write(key, b"")
    listed = list(store.list(f"{prefix}/"))
    _expect(
        sorted(listed) == expected,
        f"wrote {len(expected)} objects, listed {len(listed)}: listings lag behind writes",
    )
    _expect(listed == expected, "listings are not in lexicographic order")
    _expect(
        list(store.list(f"{prefix}/a/")) == expected[3:5]
        and list(store.list(f"{prefix}/a")) == expected[1:7],
        "a prefix selects other keys than those that start with it",
    )
    return "complete at once, in order"


def _delete(store: Store, key: str) -> str:
    store.write(key, b"")
    store.delete(key)
    _expect(not store.exists(key), "a deleted object exists")
    _expect(key not in store.list(key), "a deleted object is listed")
    store.delete(key)
    store.write(key, b"again", if_absent=True)
    return "seen at once, and repeatable"


def _copy(store: Store, key: str) -> str:
    store.write(key, b"one")
    store.copy(key, f"{key}-copy")
    store.write(key, b"another")
    _expect(store.read(f"{key}-copy") == b"one", "a copy changed when its source was written")
    store.copy(key, f"{key}-copy")
    _expect(store.read(f"{key}-copy") == b"another", "a copy onto an object did not replace it")
    try:
        store.copy(f"{key}-absent", f"{key}-copy")
    except NotFound:
        return "copies are objects of their own"
    raise _Violation("copied an object that is absent")


# The cases of the contract that hold of every store; `tests/store/test_contract.py` runs them too.
CASES: tuple[tuple[str, Callable[[Store, str], str]], ...] = (
    ("write and read", _write_and_read),
    ("read of an absent object", _absent),
    ("if_absent", _if_absent),
    ("if_absent, writers at once", _if_absent_race),
    ("if_version", _if_version),
    ("if_version, writers at once", _if_version_race),
    ("copy", _copy),
    ("list", _list),
    ("delete", _delete),
)


def _large(store: Store, key: str, size: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source"), Path(folder, "target")
        block = os.urandom(min(size, 1 << 20))
        with source.open("wb") as file:
            for start in range(0, size, len(block)):
                file.write(block[: size - start])
        store.upload(source, key)
        store.download(key, target)
        _expect(file_sha256(source) == file_sha256(target), f"{size} bytes came back changed")
    return f"{size} bytes came back unchanged"


def _clean_up(store: Store, scratch: str) -> str:
    keys = list(store.list(f"{scratch}/"))
    for key in keys:
        store.delete(key)
    _expect(not list(store.list(f"{scratch}/")), f"objects remain under {scratch}/")
    return f"{len(keys)} objects removed"
