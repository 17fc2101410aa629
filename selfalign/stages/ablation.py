"""The study `selfalign ablate`: the base model with one principle or one exemplar left out.

Needs no trained model. Reads the seeds, the held-out items and the base model; writes an artifact
`ablation`: one part for each variant (records: ItemScore rows), and files/summary.json, whose
comparisons say what changes, by kind of behaviour, when a line is left out.

A principle is left out with the exemplars that cite it, for a citation of a rule that is not listed
would still show its effect. So it is compared with a prompt that has every principle and the same
exemplars: what is seen is the rule's and not theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from selfalign.errors import ConfigurationError
from selfalign.evaluation.scores import ALIGNED
from selfalign.evaluation.summary import summarise
from selfalign.records import now
from selfalign.seeds import Seeds
from selfalign.stages.contract import StageContext, provenance
from selfalign.stages.scoring import heldout_task, publish_scores, score_variants, scores_in
from selfalign.stages.variants import Variant
from selfalign.store.manifest import Manifest


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A line that is left out: the variant without it, and the one that it is compared with."""

    line: str
    without: Variant
    control: Variant


def left_out(seeds: Seeds, principles: Sequence[int], exemplars: Sequence[int]) -> list[LeftOut]:
    """One for each principle and exemplar that is named, by its number.

    Raises ConfigurationError for a number that there is not.
    """
    return [*_principles(seeds, principles), *_exemplars(seeds, exemplars)]


def _principles(seeds: Seeds, numbers: Sequence[int]) -> Iterator[LeftOut]:
    for number in numbers:
        without = Variant(f"base_without_{number}", "base", True, seeds.without_principle(number))
        kept = seeds.without_exemplars_citing(number)
        places = [n for n, each in enumerate(seeds.exemplars, 1) if each in kept.exemplars]
        name = "_".join(["base_with_exemplars", *map(str, places)])
        all_there = len(places) == len(seeds.exemplars)
        control = _with_all(seeds) if all_there else Variant(name, "base", True, kept)
        (rule,) = (rule for rule in seeds.principles if rule.number == number)
        yield LeftOut(f"principle {number} ({rule.name})", without, control)


def _exemplars(seeds: Seeds, numbers: Sequence[int]) -> Iterator[LeftOut]:
    for number in numbers:
        rest = seeds.without_exemplar(number)
        without = Variant(f"base_without_exemplar_{number}", "base", True, rest)
        yield LeftOut(f"exemplar {number}", without, _with_all(seeds))


def _with_all(seeds: Seeds) -> Variant:
    return Variant("base_principled", "base", True, seeds)


def ablate(context: StageContext, lines: Sequence[LeftOut]) -> Manifest:
    """Answer the held-out prompts with each line left out, as far as not done yet, and publish."""
    started = now()
    config = context.config.evaluate
    if config.heldout is None:
        raise ConfigurationError(
            "evaluate.heldout is null, so there is no behaviour to look at",
            remedy="set evaluate.heldout, or remove the line for the default set",
        )
    writer = context.writer()
    shard = writer.shard(0, 1)
    named = {each.name: each for line in lines for each in (line.control, line.without)}
    tasks = {"heldout": heldout_task(context, config.heldout)}
    scored = score_variants(context, shard, list(named.values()), tasks)
    summary = summarise(
        {
            name: [s for s in scores_in(shard, scored.of(name)) if s.metric == ALIGNED]
            for name in named
        },
        confidence=config.confidence,
        bootstrap_samples=config.bootstrap_samples,
        seed=context.config.seed,
        comparisons=[(line.without.name, line.control.name) for line in lines],
        tasks=("heldout",),
    )
    return publish_scores(
        writer,
        list(scored.parts.values()),
        summary,
        details={"left_out": [line.line for line in lines]},
        provenance=provenance(started, scored.engine),
    )
