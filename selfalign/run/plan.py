"""The plan: which artifact each stage of a configuration makes, and which are there already.

Keys follow from content: a stage's key is known once its parents are published. Reads only
manifests and the pointer, through two functions, so that it can be tested without a store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from selfalign.config import RunConfig
from selfalign.errors import ConfigurationError
from selfalign.identity import Inputs, identity_key, stage_identity
from selfalign.pipeline import STAGES, Stage
from selfalign.stages.approval import ApprovalState, approval_state
from selfalign.store.artifact import read_manifest
from selfalign.store.base import Store
from selfalign.store.claims import artifact_unit, refuse_condemned
from selfalign.store.manifest import Manifest, Parent
from selfalign.store.pointer import Anchor, Pointer, PromotedModel, read_pointer

ManifestLookup = Callable[[str, str], Manifest | None]


@dataclass(frozen=True, slots=True)
class Blocked:
    """A stage whose key is not known yet, because artifacts that it reads are not published."""

    stage: Stage
    missing: tuple[str, ...]

    @property
    def manifest(self) -> None:
        """None: an artifact without a key cannot be published."""
        return None


@dataclass(frozen=True, slots=True)
class Planned:
    """A stage whose parents are published.

    Attributes:
        stage: its row of the stage table.
        key: of the artifact that the stage writes.
        identity: the JSON object whose digest is the key.
        parents: artifact name -> key and content digest.
        manifest: of the artifact; None while it is not published.
        promoted: the model that the final one is compared with; None for other stages.
        anchor: the anchor, where it is another model than the promoted one.
        approval: whether a person is still to decide, or has, where the gate has passed the model.
    """

    stage: Stage
    key: str
    identity: dict[str, Any]
    parents: dict[str, Parent]
    manifest: Manifest | None
    promoted: PromotedModel | None = None
    anchor: Anchor | None = None
    approval: ApprovalState | None = None

    @property
    def unit(self) -> str:
        """The prefix of the artifact in the store."""
        return artifact_unit(self.stage.writes, self.key)

    @property
    def needs(self) -> list[str]:
        """The prefixes of the artifact and of its parents."""
        return [self.unit, *(artifact_unit(name, p.key) for name, p in self.parents.items())]


StagePlan = Blocked | Planned


def plan_from_store(
    config: RunConfig, inputs: Inputs, store: Store, lookup: ManifestLookup | None = None
) -> list[StagePlan]:
    """Plan every stage, in order, as the store stands now.

    Args:
        lookup: of manifests, by artifact and key; None reads them from the store.
    """
    current = read_pointer(store)
    pointer = None if current is None else current.pointer
    published: dict[str, Manifest] = {}
    manual = config.promote.approval == "manual"
    plan: list[StagePlan] = []
    for stage in STAGES:
        planned = _plan_stage(
            stage, config, inputs, lookup or partial(read_manifest, store), published, pointer
        )
        if planned.manifest is not None:
            published[stage.writes] = planned.manifest
        elif isinstance(planned, Planned) and stage.name == "promote" and manual:
            planned = replace(planned, approval=approval_state(store, planned.key))
        plan.append(planned)
    return plan


def heed_gc(
    store: Store,
    named: Iterable[Planned],
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Raise Condemned where gc is about to delete what these are or are made from."""
    refuse_condemned(store, [unit for planned in named for unit in planned.needs], clock)


def _plan_stage(
    stage: Stage,
    config: RunConfig,
    inputs: Inputs,
    lookup: ManifestLookup,
    published: dict[str, Manifest],
    pointer: Pointer | None,
) -> StagePlan:
    missing = tuple(name for name in stage.reads if name not in published)
    if missing:
        return Blocked(stage, missing)
    parents = {
        name: Parent(key=published[name].key, digest=published[name].digest) for name in stage.reads
    }
    promoted = anchor = None
    if stage.reads_promoted:
        promoted = _baseline(pointer, published["final_model"])
        anchor = _anchor(pointer, published["final_model"], config.promote.anchor)
        if promoted is None or (anchor is not None and anchor.model.digest == promoted.digest):
            anchor = None
    identity = stage_identity(
        stage,
        config,
        inputs,
        {name: parent.digest for name, parent in parents.items()},
        promoted.digest if promoted else None,
        anchor.model.digest if anchor else None,
    )
    key = identity_key(identity)
    return Planned(stage, key, identity, parents, lookup(stage.writes, key), promoted, anchor)


def _baseline(pointer: Pointer | None, final: Manifest) -> PromotedModel | None:
    """The promoted model that `final` is judged against.

    A model that is current already is judged against what it replaced: so a run that is repeated
    after its promotion finds its own evaluation again instead of comparing the model to itself.
    """
    if pointer is None:
        return None
    if pointer.model.digest == final.digest:
        return pointer.previous
    return pointer.model


def _anchor(pointer: Pointer | None, final: Manifest, pinned: str | None) -> Anchor | None:
    """The anchor that `final` is held to: the one a person pinned, else the pointer's."""
    if pointer is None:
        return None if pinned is None else Anchor(model=_pinned(None, pinned), promotions=0)
    now = pointer.anchor or Anchor(model=pointer.model, promotions=0)
    again = pointer.model.digest == final.digest
    model = pointer.previous_anchor if again else now.model
    if pinned is not None:
        model = _pinned(pointer, pinned)
    if model is None:
        return None
    promotions = now.promotions - again if model.digest == now.model.digest else 0
    return Anchor(model=model, promotions=max(promotions, 0))


def _pinned(pointer: Pointer | None, key: str) -> PromotedModel:
    known = [] if pointer is None else pointer.kept_models()
    found = {model.key: model for model in known if model.key.startswith(key)}
    if len(found) == 1:
        return next(iter(found.values()))
    raise ConfigurationError(
        f"promote.anchor: {key!r} is {'the beginning of more than one key' if found else 'no key'} "
        f"of the promoted models, which are {', '.join(model.key for model in known) or 'none'}",
        remedy="give the key of one of these, or make it null",
    )
