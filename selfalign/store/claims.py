"""How those who use artifacts and `selfalign gc`, which deletes them, keep out of each other's way.

    worker                                   gc
    1. writes a claim below what it makes    1. writes gc.json: what it is about to delete
    2. reads gc.json: stops if it is there   2. looks again: what is claimed or younger stays
    3. reads its parents, works, publishes   3. deletes, manifests first; removes gc.json

Whichever way the steps interleave, at least one of the two sees the other, because a store is
strongly consistent. A claim counts by the time at which it was written, which is the store's. One
gc.json is heeded for `HEED`; who wrote it deletes for `DELETE` alone after it was written or
renewed, and renews it within `RENEW` or gives up. So a gc that died delays nobody for long, one
that was asleep deletes nothing that others began to use, and clocks may differ by what lies
between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from pydantic import AwareDatetime

from selfalign.errors import Condemned
from selfalign.store.base import Store
from selfalign.store.documents import StoredModel, StoredName, read_document

COLLECTION_KEY = "gc.json"
CLAIM_NAME = "claim.json"
HEED = timedelta(minutes=60)
RENEW = timedelta(minutes=40)  # S3 refuses clocks that differ by more than 15 minutes
DELETE = timedelta(minutes=20)


class Claim(StoredModel):
    """Somebody makes or uses what lies beside this object, from these artifacts (name: key)."""

    parents: dict[StoredName, StoredName]


class Collection(StoredModel):
    """What `gc.json` holds while a gc is at work.

    Attributes:
        by: a random name of the process.
        renewed_at: ISO 8601, UTC.
        condemned: prefixes, without a slash at the end.
    """

    by: str
    renewed_at: AwareDatetime
    condemned: list[StoredName]


def _now() -> datetime:
    return datetime.now(UTC)


def artifact_unit(artifact: str, key: str) -> str:
    """The prefix of an artifact, as gc.json names it."""
    return f"artifacts/{artifact}/{key}"


def claim(
    store: Store, unit: str, parents: dict[str, str], clock: Callable[[], datetime] = _now
) -> None:
    """Say that what lies under `unit` is about to be made or used, from `parents`.

    Whatever of it was read before has to be read again afterwards. Raises Condemned.
    """
    store.write(f"{unit}/{CLAIM_NAME}", Claim(parents=parents).to_bytes())
    used = [artifact_unit(artifact, key) for artifact, key in parents.items()]
    refuse_condemned(store, [unit, *used], clock)


def refuse_condemned(
    store: Store, units: Iterable[str], clock: Callable[[], datetime] = _now
) -> None:
    """Raise Condemned where a gc that is at work names one of them."""
    found = read_document(store, COLLECTION_KEY, Collection)
    if found is None or abs(clock() - found.renewed_at) > HEED:
        return
    condemned = set(found.condemned)
    for unit in units:
        if unit in condemned:
            raise Condemned(
                f"{store.url}/{unit}: selfalign gc, at work since {found.renewed_at}, is about to "
                "delete it",
                remedy="try again when it has ended; a gc that died is disregarded after "
                f"{HEED.total_seconds() / 60:.0f} minutes",
            )
