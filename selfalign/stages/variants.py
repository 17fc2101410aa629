"""What is evaluated: models under prompts. One row per variant of an evaluation.

`base`, `engraved`, `final`, `promoted` and `anchor` answer under the standard prompt, with no
principles in sight; `base_principled` answers under the principles, thought and all;
`base_without_<n>` likewise with principle n left out. `promoted_again` is the promoted model with
other random numbers, where answers are drawn: how far it is from itself is the noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from selfalign.seeds import Seeds
from selfalign.stages.contract import StageContext
from selfalign.store.manifest import Manifest
from selfalign.store.pointer import promoted_manifest


@dataclass(frozen=True, slots=True)
class Variant:
    """A model under a prompt.

    Attributes:
        name: as it stands in records, the summary and the report.
        model: which weights; variants of one model are evaluated with one engine.
        principled: whether the principles are in its context.
        seeds: the seeds its prompts are rendered from.
        again: whether its answers are drawn a second time.
    """

    name: str
    model: Literal["base", "engraved", "final", "promoted", "anchor"]
    principled: bool
    seeds: Seeds
    again: bool = False


def variants(context: StageContext) -> Iterator[Variant]:
    """All variants, grouped by model, in the order they are reported."""
    seeds = context.seeds
    yield Variant("base", "base", False, seeds)
    yield Variant("base_principled", "base", True, seeds)
    for number in context.config.evaluate.ablate_principles:
        yield Variant(f"base_without_{number}", "base", True, seeds.without_principle(number))
    yield Variant("engraved", "engraved", False, seeds)
    yield Variant("final", "final", False, seeds)
    if context.promoted is not None:
        yield Variant("promoted", "promoted", False, seeds)
        if context.config.evaluate.sampling.temperature > 0:
            yield Variant("promoted_again", "promoted", False, seeds, again=True)
    if context.anchor is not None:
        yield Variant("anchor", "anchor", False, seeds)


def model_manifest(context: StageContext, model: str) -> Manifest:
    """The manifest of an engraved, final, promoted or anchor model."""
    if model in ("engraved", "final"):
        return context.parent(f"{model}_model")
    anchor = None if context.anchor is None else context.anchor.model
    promoted = anchor if model == "anchor" else context.promoted
    assert promoted is not None
    return promoted_manifest(context.store, promoted)
