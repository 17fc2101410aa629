"""Roll the `current` pointer back to an earlier promoted model, by compare-and-swap."""

from __future__ import annotations

from selfalign.errors import ConfigurationError, TemporaryError
from selfalign.records import now
from selfalign.serving.directory import directory_of, is_servable, materialise
from selfalign.store.base import PreconditionFailed, Store
from selfalign.store.pointer import (
    Anchor,
    Pointer,
    PromotedModel,
    move_pointer,
    promoted_manifest,
    read_pointer,
)


def roll_back(store: Store, *, to: str | None = None) -> Pointer:
    """Point `current` at the model before, or at the promoted model whose key starts with `to`.

    What is left stays within reach of `to`; without it every call goes further back.

    The model's directory is made again where it is gone, before the pointer moves.

    Raises ConfigurationError when there is no such model, DataError when its artifact is gone,
    TemporaryError when the pointer moved meanwhile.
    """
    current = read_pointer(store)
    if current is None:
        raise ConfigurationError(
            f"{store.url}: nothing was ever promoted, so there is nothing to roll back to",
            remedy="promote a model first: selfalign run",
        )
    # All that ever were current, newest first; the pointer is a place among them.
    timeline = [*current.pointer.rolled_back, current.pointer.model, *current.pointer.history]
    index = _choose(store, current.pointer, timeline, to)
    target = timeline[index]
    manifest = promoted_manifest(store, target)
    if is_servable(manifest):  # its directory may have expired meanwhile
        materialise(store, manifest, {})
        target = target.model_copy(update={"directory": directory_of(manifest.digest)})
    history = timeline[index + 1 :]
    pointer = Pointer(
        model=target,
        previous=history[0] if history else None,
        promotion=None,
        run=None,
        moved_at=now(),
        history=history,
        rolled_back=timeline[:index],
        anchor=_anchor_after(current.pointer, timeline[:index]),
        previous_anchor=current.pointer.previous_anchor,
    )
    try:
        move_pointer(store, pointer, current)
    except PreconditionFailed as error:
        raise TemporaryError(
            f"{store.url}/current.json moved while rolling back",
            remedy="look at `selfalign status` and try again",
        ) from error
    return pointer


def _anchor_after(pointer: Pointer, left: list[PromotedModel]) -> Anchor | None:
    """The anchor stays, unless it is among what was rolled back from: then the target is it."""
    gone = {model.digest for model in left}
    if pointer.anchor is None or pointer.anchor.model.digest in gone:
        return None
    return pointer.anchor


def _choose(store: Store, pointer: Pointer, timeline: list[PromotedModel], to: str | None) -> int:
    """The place of the chosen model in `timeline`."""
    here = len(pointer.rolled_back)
    forward = ", ".join(model.key for model in pointer.rolled_back)
    if to is None:
        if pointer.history:
            return here + 1
        raise ConfigurationError(
            f"{store.url}: the current model is the first ever promoted",
            remedy="there is nothing before it to roll back to"
            + (f"; --to takes what was rolled back from: {forward}" if forward else ""),
        )
    # the nearest earlier one first, then what was rolled back from, latest first
    order: list[int] = [*range(here + 1, len(timeline)), *reversed(range(here))]
    matching = [place for place in order if timeline[place].key.startswith(to)]
    keys = sorted({timeline[place].key for place in matching})
    if len(keys) > 1:
        raise ConfigurationError(
            f"--to {to!r} is the beginning of more than one key: {', '.join(keys)}",
            remedy="give more of the key",
        )
    if matching:
        return matching[0]
    known = ", ".join(model.key for model in pointer.history)
    raise ConfigurationError(
        f"--to {to!r} is not an earlier promoted model",
        remedy=f"the earlier ones are: {known or 'none'}"
        + (f"; rolled back from: {forward}" if forward else ""),
    )
