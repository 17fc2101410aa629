"""The `current` pointer: which model is promoted. Moved by compare-and-swap alone."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from selfalign.errors import DataError
from selfalign.store.artifact import read_manifest
from selfalign.store.base import NotFound, Store
from selfalign.store.documents import StoredCount, StoredModel, StoredName, parse_document
from selfalign.store.manifest import Manifest

POINTER_KEY = "current.json"


class PromotedModel(StoredModel):
    """A model that is or was current.

    Attributes:
        artifact, key: the model artifact that was promoted.
        digest: of the artifact's content.
        directory: where the store holds the model under its files' real names, complete:
            `models/<digest>`; None for one promoted by 0.4.0 or before.
    """

    artifact: StoredName
    key: StoredName
    digest: str
    directory: StoredName | None = None


class Anchor(StoredModel):
    """The model that bounds how far promoted models may fall.

    Attributes:
        promotions: how many models were promoted since it became the anchor.
    """

    model: PromotedModel
    promotions: StoredCount


class Pointer(StoredModel):
    """What `current.json` holds.

    Attributes:
        model: the promoted model.
        previous: what it replaced, hence what it was judged against.
        promotion: key of the promotion that moved the pointer here; None after a rollback.
        run: the run that did.
        moved_at: ISO 8601, UTC.
        history: earlier models, newest first; `rollback` goes along it.
        rolled_back: models that a rollback left, newest first; only `rollback --to` names them.
        anchor: what the next model is held to, besides the promoted one; None where no promotion
            has set one, which means the promoted model.
        previous_anchor: what the promoted model was held to.
    """

    signed = True

    model: PromotedModel
    previous: PromotedModel | None
    promotion: StoredName | None
    run: str | None
    moved_at: str
    history: list[PromotedModel] = Field(default_factory=list)
    rolled_back: list[PromotedModel] = Field(default_factory=list)
    anchor: Anchor | None = None
    previous_anchor: PromotedModel | None = None

    def kept_models(self) -> list[PromotedModel]:
        """Every model that the pointer names, newest first, each once."""
        models = [*self.rolled_back, self.model, *self.history]
        models += [self.anchor.model] if self.anchor else []
        models += [self.previous_anchor] if self.previous_anchor else []
        return list({model.digest: model for model in models}.values())


@dataclass(frozen=True, slots=True)
class VersionedPointer:
    """A pointer and the store's version of it, for compare-and-swap."""

    pointer: Pointer
    version: str


def read_pointer(store: Store) -> VersionedPointer | None:
    """The current pointer, or None when nothing was ever promoted."""
    try:
        data, version = store.read_versioned(POINTER_KEY)
    except NotFound:
        return None
    pointer = parse_document(
        f"{store.url}/{POINTER_KEY}",
        data,
        Pointer,
        key=POINTER_KEY,
        remedy="restore an earlier version of the object; `selfalign promote` wrote the last good "
        "one",
    )
    return VersionedPointer(pointer, version)


def promoted_manifest(store: Store, model: PromotedModel) -> Manifest:
    """The manifest of a model that is or was promoted.

    Raises DataError when it is gone, or its content is not what was promoted.
    """
    manifest = read_manifest(store, model.artifact, model.key)
    if manifest is None or manifest.digest != model.digest:
        found = "is gone" if manifest is None else f"has the digest {manifest.digest[:12]}"
        raise DataError(
            f"{store.url}: the promoted model {model.artifact} {model.key} {found}, expected "
            f"{model.digest[:12]}",
            remedy="restore it, or roll back to another one: selfalign rollback --to KEY; "
            "promoted models must be kept from expiry",
        )
    return manifest


def standing(digest: str, current: VersionedPointer | None) -> str:
    """What became of a final model that passed the gate, for people: "promoted" while it is
    current, else what is current instead. A rollback, too, leaves the verdict as it was."""
    if current is None:
        return "passed the gate earlier; nothing is current now"
    pointer = current.pointer
    if pointer.model.digest == digest:
        return "promoted"
    # only a promotion signs the pointer
    since = "the rollback of " if pointer.promotion is None else ""
    return (
        f"passed the gate earlier; current is {pointer.model.key} since {since}{pointer.moved_at}"
    )


def move_pointer(store: Store, pointer: Pointer, expected: VersionedPointer | None) -> None:
    """Move the pointer if it still is `expected`; raises PreconditionFailed when it is not."""
    if expected is None:
        store.write(POINTER_KEY, pointer.to_bytes(POINTER_KEY), if_absent=True)
    else:
        store.write(POINTER_KEY, pointer.to_bytes(POINTER_KEY), if_version=expected.version)
