"""The facts of the toy world, and which of them are held out.

`World.build(seeds)` reads the seeds only to keep what they mention out of the held-out part. The
facts are drawn with a constant seed: the committed seeds speak about them, so they never move;
`--seed` of the command moves the corpus and the initial weights.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from random import Random

from .entities import (
    FAIR_DEEDS,
    FAMILY_NAMES,
    FIRST_NAMES,
    HARMFUL_DEEDS,
    JOBS,
    LIVE_MATTERS,
    NUM_KNOWN_PERSONS,
    STRANGERS_NAMES,
    THINGS,
    TOWNS,
)
from .phrasing import KINDS, Kind, Subject

WORLD_SEED = 20231210  # any constant
NUM_HELD_OUT_PER_KIND = 60
NUM_HELD_OUT_KNOWN = 12


@dataclass(frozen=True)
class World:
    """Subjects by kind: `open` may appear anywhere, `held_out` as README.md says."""

    open: dict[Kind, tuple[Subject, ...]]
    held_out: dict[Kind, tuple[Subject, ...]]

    @cached_property
    def known_persons(self) -> tuple[Subject, ...]:
        return self.open["known person"] + self.held_out["known person"]

    def seen(self, kind: Kind) -> tuple[Subject, ...]:
        """What pretraining shows. A held-out person that is known has to be learnt somewhere."""
        return self.known_persons if kind == "known person" else self.open[kind]

    @classmethod
    def build(cls, seeds_text: str = "") -> "World":
        rng = Random(WORLD_SEED)
        known = rng.sample(list(product(FIRST_NAMES, FAMILY_NAMES)), NUM_KNOWN_PERSONS)
        unknown = product(FIRST_NAMES, STRANGERS_NAMES)
        subjects: dict[Kind, list[Subject]] = {
            "harmful": [Subject("harmful", *pair) for pair in product(HARMFUL_DEEDS, THINGS)],
            "benign": [Subject("benign", *pair) for pair in product(FAIR_DEEDS, THINGS)],
            "live matter": [Subject("live matter", *p) for p in product(LIVE_MATTERS, TOWNS)],
            "unknown person": [Subject("unknown person", *name) for name in unknown],
            "known person": [
                Subject("known person", *name, rng.choice(JOBS), rng.choice(TOWNS))
                for name in known
            ],
        }
        open_: dict[Kind, tuple[Subject, ...]] = {}
        held_out: dict[Kind, tuple[Subject, ...]] = {}
        for kind in KINDS:
            rng.shuffle(subjects[kind])
            free = [s for s in subjects[kind] if s.phrase not in seeds_text]
            count = NUM_HELD_OUT_KNOWN if kind == "known person" else NUM_HELD_OUT_PER_KIND
            held_out[kind] = tuple(free[:count])
            chosen = set(held_out[kind])
            open_[kind] = tuple(s for s in subjects[kind] if s not in chosen)
        return cls(open_, held_out)
