"""Artifacts in a store, as the product's own writer makes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from selfalign.pipeline import STAGES
from selfalign.records import Record
from selfalign.store.artifact import ArtifactWriter
from selfalign.store.base import Store
from selfalign.store.manifest import Counts, Manifest, Parent, Provenance
from selfalign.store.pointer import Pointer, PromotedModel, move_pointer, read_pointer

WHEN = Provenance(started_at="2026-01-01T00:00:00+00:00", finished_at="2026-01-01T00:00:01+00:00")


def writer(
    store: Store,
    artifact: str,
    key: str = "k",
    *,
    identity: Mapping[str, Any] | None = None,
    parents: Iterable[Manifest] = (),
) -> ArtifactWriter:
    """What the stage that writes this artifact publishes it with."""
    return ArtifactWriter(
        store,
        artifact=artifact,
        stage=next(stage.name for stage in STAGES if stage.writes == artifact),
        key=key,
        identity=dict(identity or {}),
        parents={each.artifact: Parent(key=each.key, digest=each.digest) for each in parents},
    )


def publish(
    store: Store,
    artifact: str,
    key: str = "k",
    files: Mapping[str, bytes] | None = None,
    *,
    identity: Mapping[str, Any] | None = None,
    parents: Iterable[Manifest] = (),
    counts: Counts | None = None,
    details: Mapping[str, Any] | None = None,
    when: Provenance = WHEN,
) -> Manifest:
    """Publish an artifact of files: name -> content."""
    made = writer(store, artifact, key, identity=identity, parents=parents)
    return made.publish(
        shards=[],
        files=[made.add_bytes(data, name) for name, data in (files or {}).items()],
        counts=counts or Counts(),
        details=dict(details or {}),
        provenance=when,
    )


def promote(
    store: Store,
    model: Manifest | PromotedModel,
    *,
    directory: str | None = None,
    promotion: str | None = None,
    run: str | None = None,
    moved_at: str = "now",
) -> None:
    """Point `current` at a model; what it replaces goes into the history."""
    current = read_pointer(store)
    before = [] if current is None else [current.pointer.model, *current.pointer.history]
    if isinstance(model, Manifest):
        named = {"artifact": model.artifact, "key": model.key, "digest": model.digest}
        model = PromotedModel(directory=directory, **named)
    pointer = Pointer(
        model=model,
        previous=before[0] if before else None,
        promotion=promotion,
        run=run,
        moved_at=moved_at,
        history=before,
    )
    move_pointer(store, pointer, current)


def publish_records(
    store: Store, artifact: str, records: Sequence[Record], key: str = "k"
) -> Manifest:
    """Publish an artifact of one part."""
    made = writer(store, artifact, key)
    shard = made.shard(0, 1)
    part = shard.commit("one", records, Counts(read=len(records), kept=len(records)))
    shard.finish([part], WHEN)
    manifest = made.publish_when_complete(1)
    assert manifest is not None
    return manifest
