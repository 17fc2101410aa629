"""How often the default gate promotes models that are equal, better or worse, by number of items.

    python benchmarks/evaluation/gate.py [--nights 200] [--years 20]

Prints two tables. The first: of that many nights, the share in which a candidate is promoted over a
promoted model that answers 0.8 of the items well, when a tenth or a fifth of the answers of equal
models differ: of 12 kinds with 20, 35 and 70 items each, and of the held-out set that comes with
selfalign. For a candidate that is better a refusal is false, for one that is worse a
promotion. The second: a year of nights, each with a candidate half a point worse than what is
promoted then: how much was lost. Values are simulated (simulated.py), judged by the gate.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path

import simulated
from simulated import World, nights

from selfalign.config import PromoteConfig
from selfalign.evaluation.datasets import load_heldout
from selfalign.evaluation.gate import judge
from selfalign.evaluation.items import HeldoutItem
from selfalign.evaluation.statistics import proportion
from selfalign.evaluation.summary import summarise

PER_KIND = (20, 35, 70)
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


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nights", type=int, default=200)
    parser.add_argument("--years", type=int, default=20)
    arguments = parser.parse_args()
    print("| answers that differ | items | " + " | ".join(f"{d:+g}" for d in DIFFERENCES) + " |")
    print("| --- | --- |" + " --- |" * len(DIFFERENCES))
    for said, redrawn in REDRAWN.items():
        simulated.REDRAWN = redrawn
        for size, example in enumerate(worlds(0)):
            shares = [
                sum(promoted(worlds(seed)[size], d) for seed in range(arguments.nights))
                / arguments.nights
                for d in DIFFERENCES
            ]
            row = " | ".join(f"{share:.2f}" for share in shares)
            print(f"| {said} | {len(example.items)} | {row} |", flush=True)
    half = proportion([1.0] * (arguments.nights // 2) + [0.0] * (arguments.nights // 2),
                      confidence=0.95)  # fmt: skip
    assert half.low is not None
    print(f"each share is within {0.5 - half.low:.2f} of the truth (95%)\n")
    print("| items | loss after a year: mean | largest of", arguments.years, "|")
    print("| --- | --- | --- |")
    simulated.REDRAWN = REDRAWN["a tenth"]
    for per_kind in PER_KIND:
        losses = [
            0.8 - nights(World(seed, per_kind), 365, loss=0.005)[-1]
            for seed in range(arguments.years)
        ]
        print(
            f"| {12 * per_kind} | {sum(losses) / len(losses):.3f} | {max(losses):.3f} |", flush=True
        )


if __name__ == "__main__":
    main()
