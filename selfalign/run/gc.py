"""`selfalign gc`: delete what nothing needs any more. See `reachable` and `store/claims.py`.

It may be killed at any moment: what is deleted first is what makes an artifact whole, so that
nothing half deleted is taken for it, and the next gc deletes the rest. What is deleted is gone for
everybody who did not claim it before; a run that needs it makes it anew.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from selfalign.errors import SelfAlignError, TemporaryError
from selfalign.run.reachable import CHECKPOINTS, Retention, Unit, find_units, unreachable
from selfalign.store.base import NotFound, PreconditionFailed, Store
from selfalign.store.claims import COLLECTION_KEY, DELETE, HEED, RENEW, Collection
from selfalign.store.documents import parse_document
from selfalign.telemetry import Progress, log

_WHOLE = ("/manifest.json", "/run.json", "/selfalign.json")
_LATER = f"try again later; one that died is disregarded after {HEED.total_seconds() / 60:.0f} min"


class Collecting(TemporaryError):
    """Another gc is at work, or has taken over."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a gc found and did.

    Attributes:
        units: all of the store's, by prefix.
        condemned: prefixes of the units that nothing needs.
        deleted: those that were deleted; empty after a dry run.
    """

    units: dict[str, Unit]
    condemned: list[str]
    deleted: list[str]

    def kept(self, gone: list[str]) -> list[Unit]:
        """The units that are left without `gone`."""
        left = {prefix: self.units[prefix] for prefix in self.units.keys() - set(gone)}
        for prefix in gone:
            if (whole := left.get(prefix.removesuffix(CHECKPOINTS))) is not None:
                whole.bytes -= self.units[prefix].bytes
                whole.objects -= self.units[prefix].objects
        return [unit for prefix, unit in left.items() if not prefix.endswith(CHECKPOINTS)]


def collect(
    store: Store,
    retention: Retention,
    *,
    dry_run: bool = False,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Outcome:
    """Delete what nothing needs.

    Raises:
        Collecting: another gc is at work.
        DataError: a document cannot be read, so what it needs is not known; nothing was deleted.
    """
    units = find_units(store)
    condemned = sorted(unreachable(store, units, retention, clock()), key=_order)
    if dry_run or not condemned:
        return Outcome(units, condemned, [])
    collection = Collection(by=secrets.token_hex(8), renewed_at=clock(), condemned=condemned)
    with _Notice(store, collection, clock) as notice:
        # Again, because a run may have named or claimed something before the notice was there.
        units = find_units(store)
        still = unreachable(store, units, retention, clock())
        condemned = [prefix for prefix in condemned if prefix in still]
        notice.renew(condemned)
        progress = Progress("units", len(condemned))
        deleted = []
        for prefix in condemned:
            _delete(store, prefix, notice)
            deleted.append(prefix)
            progress.advance(1)
            log.debug("gc.deleted", prefix=prefix, bytes=units[prefix].bytes)
        progress.finish()
    return Outcome(units, condemned, deleted)


def _order(prefix: str) -> tuple[bool, str]:
    """Runs first, so that no run that is listed names an artifact that gc took."""
    return (not prefix.startswith("runs/"), prefix)


def _delete(store: Store, prefix: str, notice: _Notice) -> None:
    for key in sorted(store.list(f"{prefix}/"), key=_rank):
        notice.hold()
        store.delete(key)


def _rank(key: str) -> int:
    """First what says that a unit is whole, then the marks of its parts, then the parts: a worker
    that resumes never finds a mark without what it speaks of."""
    if key.endswith(_WHOLE):
        return 0
    if "/shards/" in key:
        return 1
    return 2 if key.endswith(".json") else 3


@dataclass(slots=True)
class _Notice:
    """gc.json while this process is at work."""

    store: Store
    collection: Collection
    clock: Callable[[], datetime]
    version: str = ""

    def __enter__(self) -> _Notice:
        """Put it up. Raises Collecting where another one stands."""
        try:
            self.version = self._put_up()
        except PreconditionFailed:
            raise Collecting(
                f"{self.store.url}: another gc has just begun", remedy=_LATER
            ) from None
        return self

    def hold(self) -> None:
        """Make sure that others still heed the notice. Raises Collecting when it is not ours."""
        if abs(self.clock() - self.collection.renewed_at) < DELETE:
            return
        self.renew(self.collection.condemned)

    def renew(self, condemned: list[str]) -> None:
        """Put up the notice anew; what it names no longer may be used again.

        Raises Collecting where it is another's, or so old that somebody may have disregarded it.
        """
        now = self.clock()
        if abs(now - self.collection.renewed_at) > RENEW:
            raise Collecting(
                f"{self.store.url}/{COLLECTION_KEY}: not renewed since "
                f"{self.collection.renewed_at}, as when a machine sleeps; others may use by now "
                "what was to be deleted",
                remedy="begin again, an hour after that time; what was deleted stays deleted",
            )
        changes = {"renewed_at": now, "condemned": condemned}
        self.collection = self.collection.model_copy(update=changes)
        try:
            data = self.collection.to_bytes()
            self.version = self.store.write(COLLECTION_KEY, data, if_version=self.version)
        except PreconditionFailed:
            raise Collecting(
                f"{self.store.url}/{COLLECTION_KEY}: another gc has taken over",
                remedy="leave it to that one",
            ) from None

    def __exit__(self, *_ended: object) -> None:
        with contextlib.suppress(SelfAlignError):  # another's, or disregarded: let it stand
            self.hold()
            self.store.delete(COLLECTION_KEY)

    def _put_up(self) -> str:
        where, data = f"{self.store.url}/{COLLECTION_KEY}", self.collection.to_bytes()
        try:
            stored, version = self.store.read_versioned(COLLECTION_KEY)
        except NotFound:
            return self.store.write(COLLECTION_KEY, data, if_absent=True)
        found = parse_document(where, stored, Collection, remedy="delete it, if no gc is at work")
        if abs(self.clock() - found.renewed_at) <= HEED:
            raise Collecting(f"{where}: a gc is at work since {found.renewed_at}", remedy=_LATER)
        return self.store.write(COLLECTION_KEY, data, if_version=version)
