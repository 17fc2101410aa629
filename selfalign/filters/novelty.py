"""Novelty: is a text too similar, by ROUGE-L, to one seen before? The verdicts of all pairs.

Self-Instruct (Wang et al. 2023, sec. 3.2) drops an instruction whose ROUGE-L with any earlier
one exceeds 0.7, comparing all pairs; the reference implementation gives up at shard borders.
`SimilarityIndex` finds the same without comparing all pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from selfalign.filters.sequences import Array
from selfalign.filters.similarity import SimilarityIndex


@dataclass(frozen=True, slots=True)
class RougeL:
    """Alike: ROUGE-L F above the threshold.

    F is computed as the rouge_score package does, operation by operation: where F is the threshold
    itself, its floating-point value lies above it for some lengths and not for others.
    """

    threshold: float

    @property
    def share(self) -> float:
        """F = 2 L / (m + n)."""
        return self.threshold / 2

    def holds(self, common: Array, one: Array, other: Array) -> Array:
        """Whether F is above the threshold."""
        precision, recall = common / other, common / one
        both = precision + recall
        score = np.divide(2 * precision * recall, both, out=np.zeros(len(both)), where=both > 0)
        return score > self.threshold


def novelty_index(threshold: float) -> SimilarityIndex:
    """An index of texts as the numbers of their words, in order."""
    return SimilarityIndex(RougeL(threshold), np.uint32)
