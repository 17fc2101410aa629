"""How often the default gate promotes models that are equal, better or worse, by number of items.

    python benchmarks/evaluation/gate.py [--nights 200] [--years 20] [--per-kind 20 35 70]
        [--tables promotions losses lock-in]

Prints three tables. *promotions*: of that many nights, the share in which a candidate is promoted
over a promoted model that answers 0.8 of the items well, when a tenth or a fifth of the answers of
equal models differ: of 12 kinds with 20, 35 and 70 items each, and of the held-out set that comes
with selfalign. For a candidate that is better a refusal is false, for one that is worse a
promotion. *losses*: a year of nights, each with a candidate half a point worse than what is
promoted then: how much was lost, with the anchor and without. *lock-in*: a year of nights with
equal models. Values are simulated (simulated.py), judged by the gate; the years by those of its
default rules that are on `heldout.aligned`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import mean

import simulated
from simulated import Night, World, nights

from selfalign.config import PromoteConfig
from selfalign.evaluation.datasets import load_heldout
from selfalign.evaluation.gate import judge
from selfalign.evaluation.items import HeldoutItem
from selfalign.evaluation.statistics import proportion
from selfalign.evaluation.summary import summarise

PER_KIND = (20, 35, 70)
NIGHTS = 365
TABLES = ("promotions", "losses", "lock-in")
DIFFERENCES = (-0.05, -0.03, 0.0, 0.03, 0.05)
REDRAWN = {"a tenth": 0.17, "a fifth": 0.38}


@cache
def default_items() -> tuple[HeldoutItem, ...]:
    """Read once."""
    return load_heldout(Path("default"))


class DefaultSet(World):
    """The held-out items that come with selfalign."""

    @property
    def items(self) -> tuple[HeldoutItem, ...]:
        """408 items of 17 kinds."""
        return default_items()


def worlds(seed: int) -> list[World]:
    """One of each size."""
    return [World(seed, 20), DefaultSet(seed), World(seed, 35), World(seed, 70)]


def promoted(world: World, difference: float) -> bool:
    """Whether the default gate promotes, on what was right and wrong alone."""
    models = {
        name: world.values(world.right(share, name))
        for name, share in (("base", 0.3), ("promoted", 0.8), ("final", 0.8 + difference))
    }
    summary = summarise(
        models,
        confidence=0.9,
        comparisons=[("final", "base"), ("final", "promoted")],
        tasks=("heldout",),
    )
    return judge(summary, PromoteConfig(guards=None)).promote


def print_promotions(count: int) -> None:
    """Of `count` nights, the share in which a candidate is promoted, by its true difference."""
    print("| answers that differ | items | " + " | ".join(f"{d:+g}" for d in DIFFERENCES) + " |")
    print("| --- | --- |" + " --- |" * len(DIFFERENCES))
    for said, redrawn in REDRAWN.items():
        simulated.REDRAWN = redrawn
        for size, example in enumerate(worlds(0)):
            shares = [
                sum(promoted(worlds(seed)[size], d) for seed in range(count)) / count
                for d in DIFFERENCES
            ]
            row = " | ".join(f"{share:.2f}" for share in shares)
            print(f"| {said} | {len(example.items)} | {row} |", flush=True)
    half = proportion([[1.0]] * (count // 2) + [[0.0]] * (count // 2), confidence=0.95)
    assert half.low is not None
    print(f"each share is within {0.5 - half.low:.2f} of the truth (95%)\n")


def print_losses(years: int, per_kind: Sequence[int]) -> None:
    """What a year of candidates that are half a point worse costs, with the anchor and without."""
    print("| items | rules | promotions | loss after a year: mean | largest of", years, "|")
    print("| --- | --- | --- | --- | --- |")
    for size in per_kind:
        for anchored in (True, False):
            found = [
                nights(World(seed, size), NIGHTS, loss=0.005, anchored=anchored)
                for seed in range(years)
            ]
            losses = [0.8 - year[-1].share for year in found]
            said = "default" if anchored else "without the anchor"
            print(
                f"| {12 * size} | {said} | {_promotions(found):.1f} | {mean(losses):.3f} | "
                f"{max(losses):.3f} |",
                flush=True,
            )
    print()


def print_lock_in(years: int, per_kind: Sequence[int]) -> None:
    """A year of equal models: whether luck on the same items locks a lucky one in, and how far the
    score of what is promoted flatters it."""
    print(
        "| items | the rules see | promoted in nights 1 to 30 | in the last 30 | "
        f"score too high by, after a year: mean of {years} |"
    )
    print("| --- | --- | --- | --- | --- |")
    for size in per_kind:
        for share in (None, 0.5):
            found = [
                nights(World(seed, size), NIGHTS, loss=0.0, choosing_share=share)
                for seed in range(years)
            ]
            first, last = ([year[part] for year in found] for part in (slice(30), slice(-30, None)))
            said = "all items" if share is None else "a half, drawn anew"
            flattery = mean([year[-1].flattery for year in found])
            print(
                f"| {12 * size} | {said} | {_promotions(first) / 30:.2f} | "
                f"{_promotions(last) / 30:.2f} | {flattery:+.4f} |",
                flush=True,
            )


def _promotions(years: Sequence[Sequence[Night]]) -> float:
    return mean([sum(night.promoted for night in year) for year in years])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nights", type=int, default=200)
    parser.add_argument("--years", type=int, default=20)
    parser.add_argument("--per-kind", type=int, nargs="+", default=PER_KIND)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    arguments = parser.parse_args()
    if "promotions" in arguments.tables:
        print_promotions(arguments.nights)
    simulated.REDRAWN = REDRAWN["a tenth"]
    if "losses" in arguments.tables:
        print_losses(arguments.years, arguments.per_kind)
    if "lock-in" in arguments.tables:
        print_lock_in(arguments.years, arguments.per_kind)


if __name__ == "__main__":
    main()
