"""What of a store is in use: by the promoted models, by recent and unfinished runs, by who works.

Everything else is what `selfalign gc` deletes. A unit is what is kept or deleted as a whole:

    artifacts/<artifact>/<key>     inputs/<kind>/<digest>     models/<digest>     runs/<id>
    artifacts/<artifact>/<key>/checkpoints     of an artifact that is published

Kept are the units that something below reaches, and what these were made from:

- current.json: the promoted model, those before it and those rolled back from, their promotions;
- runs of the latest nights, and unfinished ones: every artifact and input that they name;
- whatever was written or claimed within the grace period, so also what is being made just now;
- inputs that the configuration names, or the identity of a kept artifact holds.

A document that cannot be read ends this with a DataError: what it speaks of is not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from selfalign.errors import DataError
from selfalign.inputs import SCHEME, InputManifest
from selfalign.pipeline import BY_NAME
from selfalign.run.record import RunStatus
from selfalign.store.artifact import read_manifest
from selfalign.store.base import Entry, NotFound, Store
from selfalign.store.claims import CLAIM_NAME, Claim, artifact_unit
from selfalign.store.documents import decode_json, read_document
from selfalign.store.manifest import Manifest
from selfalign.store.pointer import read_pointer

ABANDONED = timedelta(days=30)  # an unfinished run of which nothing was heard for so long has ended
CHECKPOINTS = "/checkpoints"
_SEGMENTS = {"artifacts": 3, "inputs": 3, "models": 2, "runs": 2}
_STORED_INPUT = re.compile(rf"{SCHEME}(inputs/[^/]+/[^/]+)/?")


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept although nothing promoted needs it.

    Attributes:
        nights: days on which runs began, counted back from the latest; their runs are kept.
        grace: anything written within this time is kept.
        inputs: `store:` names that are kept.
    """

    nights: int
    grace: timedelta
    inputs: frozenset[str] = frozenset()


@dataclass(slots=True)
class Unit:
    """What was found under one prefix."""

    modified: datetime
    bytes: int = 0
    objects: int = 0
    published: bool = False  # whether a manifest is there


def find_units(store: Store) -> dict[str, Unit]:
    """Every unit of a store, by its prefix. Objects that belong to none are nobody's to delete."""
    units: dict[str, Unit] = {}
    for kind in _SEGMENTS:
        for entry in store.entries(f"{kind}/"):
            for prefix in _units_of(entry.key):
                _add(units, prefix, entry)
    for prefix in [p for p in units if p.endswith(CHECKPOINTS)]:
        if not units[prefix.removesuffix(CHECKPOINTS)].published:
            del units[prefix]  # somebody may resume from them
    return units


def _units_of(key: str) -> Iterator[str]:
    parts = key.split("/")
    length = _SEGMENTS[parts[0]]
    if len(parts) <= length:
        return
    prefix = "/".join(parts[:length])
    yield prefix
    if parts[0] == "artifacts" and f"/{parts[length]}" == CHECKPOINTS:
        yield prefix + CHECKPOINTS


def _add(units: dict[str, Unit], prefix: str, entry: Entry) -> None:
    unit = units.setdefault(prefix, Unit(entry.modified))
    unit.modified = max(unit.modified, entry.modified)
    unit.bytes += entry.bytes
    unit.objects += 1
    unit.published |= entry.key == f"{prefix}/manifest.json"


def unreachable(
    store: Store, units: Mapping[str, Unit], retention: Retention, now: datetime
) -> set[str]:
    """The prefixes of all units that nothing needs. Raises DataError."""
    marks = _Marks(store, units, now - retention.grace)
    marks.add_young()
    marks.add_promoted()
    marks.add_runs(retention.nights, now)
    marks.add_inputs(retention.inputs)
    marks.follow()
    # An input is young for longer: it may wait for its first run.
    recent = now - max(retention.grace, timedelta(days=retention.nights))
    return {
        prefix
        for prefix, unit in units.items()
        if prefix not in marks.kept
        and not (prefix.startswith("inputs/") and unit.modified >= recent)
        and not (prefix.endswith(CHECKPOINTS) and not _superseded(prefix, unit, marks))
    }


def _superseded(prefix: str, checkpoints: Unit, marks: _Marks) -> bool:
    """Whether checkpoints outlived a published artifact that stays; else they go with it."""
    stays = prefix.removesuffix(CHECKPOINTS) in marks.kept
    return stays and checkpoints.modified < marks.young_since


@dataclass(slots=True)
class _Marks:
    """The units that are needed, and those of them whose parents are not marked yet."""

    store: Store
    units: Mapping[str, Unit]
    young_since: datetime
    kept: set[str] = field(default_factory=set)
    _open: list[str] = field(default_factory=list)

    def add(self, prefix: str) -> None:
        if prefix in self.units and prefix not in self.kept:
            self.kept.add(prefix)
            self._open.append(prefix)

    def add_young(self) -> None:
        for prefix, unit in self.units.items():
            if unit.modified >= self.young_since and not prefix.endswith(CHECKPOINTS):
                self.add(prefix)

    def add_promoted(self) -> None:
        """The models that the pointer names anywhere, with the promotions that chose them."""
        current = read_pointer(self.store)
        if current is None:
            return
        models = list(_promoted_models(current.pointer.model_dump()))
        for model in models:
            self.add(artifact_unit(model["artifact"], model["key"]))
            self.add(f"models/{model['digest']}")
        keys = {model["key"] for model in models}
        if current.pointer.promotion is not None:
            self.add(artifact_unit("promotion", current.pointer.promotion))
        for prefix in [p for p in self.units if p.startswith("artifacts/promotion/")]:
            manifest = self._manifest(prefix)
            if manifest is None or not manifest.details.get("promoted"):
                continue
            final = manifest.parents.get("final_model")
            if final is not None and final.key in keys:
                self.add(prefix)

    def add_runs(self, nights: int, now: datetime) -> None:
        """Runs of the latest nights, and unfinished ones, with all that they name."""
        requests = {
            prefix: request
            for prefix in self.units
            if prefix.startswith("runs/")
            and (request := self._json(f"{prefix}/run.json")) is not None
        }
        began = {prefix: self._began(prefix, request) for prefix, request in requests.items()}
        latest = sorted({moment.date() for moment in began.values()})[-nights:]
        for prefix, request in requests.items():
            recent = began[prefix].date() in latest
            if not recent and self.units[prefix].modified < now - ABANDONED:
                continue
            status = read_document(self.store, f"{prefix}/status.json", RunStatus)
            if not recent and status is not None and status.finished:
                continue
            self.add(prefix)
            self.add_inputs(texts(request))
            if status is not None:
                made = {(each.name, each.key) for each in status.stages}
                made |= {(each.stage, each.key) for each in status.attempts}
                for stage, key in made:
                    if key is not None and stage in BY_NAME:
                        self.add(artifact_unit(BY_NAME[stage].writes, key))

    def add_inputs(self, names: Iterable[str]) -> None:
        """Inputs by their `store:` names; other texts are passed over."""
        for name in names:
            if found := _STORED_INPUT.fullmatch(name):
                self.add(found[1])

    def follow(self) -> None:
        """Mark what the marked artifacts were made from, to the end."""
        seeds: list[dict[str, str]] = []
        while self._open:
            prefix = self._open.pop()
            if not prefix.startswith("artifacts/"):
                continue
            manifest = self._manifest(prefix)
            if manifest is None:
                claim = read_document(self.store, f"{prefix}/{CLAIM_NAME}", Claim)
                for artifact, key in ({} if claim is None else claim.parents).items():
                    self.add(artifact_unit(artifact, key))
                continue
            for artifact, parent in manifest.parents.items():
                self.add(artifact_unit(artifact, parent.key))
            # being filled, perhaps by links to files that are old
            self.add(f"models/{manifest.digest}")
            seeds.append(manifest.identity.get("seeds") or {})
            self._add_identity(manifest.identity)
        self._add_seeds(seeds)

    def _add_identity(self, identity: Mapping[str, Any]) -> None:
        models = {
            "base_model": identity.get("base_model"),
            "judge": (identity.get("judge") or {}).get("model"),
        }
        for name, revision in models.items():
            self.add(f"inputs/{name}/{str(revision).removeprefix('sha256:')}")
        for name, sha in (identity.get("data") or {}).items():
            self.add(f"inputs/{name}/{sha}")

    def _add_seeds(self, wanted: Iterable[Mapping[str, str]]) -> None:
        """Seeds directories that hold the very lines which an artifact was made from."""
        for prefix in [p for p in self.units if p.startswith("inputs/seeds/")]:
            found = read_document(self.store, f"{prefix}/manifest.json", InputManifest)
            if found is None:
                continue
            held = {(entry.name.removeprefix("files/"), entry.sha256) for entry in found.files}
            if any(files and held.issuperset(files.items()) for files in wanted):
                self.add(prefix)

    def _manifest(self, prefix: str) -> Manifest | None:
        _, artifact, key = prefix.split("/")
        return read_manifest(self.store, artifact, key)

    def _json(self, key: str) -> Any:
        """A run's request, of which only this much is known whatever version wrote it."""
        try:
            return decode_json(self.store.read(key))
        except NotFound:
            return None
        except ValueError as error:
            raise DataError(
                f"{self.store.url}/{key}: not a run's record: {error}",
                remedy="delete it: it is an index for people, no artifact is lost with it",
            ) from error

    def _began(self, prefix: str, request: Any) -> datetime:
        try:
            return datetime.fromisoformat(request["created_at"]).astimezone(UTC)
        except (ValueError, TypeError, KeyError, OverflowError):
            return self.units[prefix].modified


def _promoted_models(value: Any) -> Iterator[dict[str, Any]]:
    """Everything in the pointer that names a model, wherever a version keeps it."""
    if isinstance(value, dict):
        if value.keys() >= {"artifact", "key", "digest"}:
            yield value
        for each in value.values():
            yield from _promoted_models(each)
    elif isinstance(value, list):
        for each in value:
            yield from _promoted_models(each)


def texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)
