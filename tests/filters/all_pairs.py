"""The definitions, word for word and pair for pair: what the indexes must agree with."""

from __future__ import annotations

from collections.abc import Sequence

from selfalign.filters.words import words_of


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, by the textbook's table."""
    row = [0] * (len(other) + 1)
    for x in one:
        previous = 0
        for place, y in enumerate(other, 1):
            following = previous + 1 if x == y else max(row[place], row[place - 1])
            previous, row[place] = row[place], following
    return row[-1]


def rouge_l(one: str, other: str) -> float:
    """F as the rouge_score package computes it, operation by operation."""
    a, b = words_of(one), words_of(other)
    if not a or not b:
        return 0.0
    common = longest_common(a, b)
    precision, recall = common / len(b), common / len(a)
    if precision + recall == 0:
        return 0.0
    return 2 * precision * recall / (precision + recall)


def shingles_of(text: str, size: int) -> set[tuple[str, ...]]:
    """Runs of `size` words; a shorter text is one."""
    words = words_of(text)
    count = max(len(words) - size + 1, min(len(words), 1))
    return {tuple(words[start : start + size]) for start in range(count)}


def jaccard(one: str, other: str, size: int) -> float:
    """What two texts' sets of shingles share; 0 for texts without words."""
    a, b = shingles_of(one, size), shingles_of(other, size)
    return len(a & b) / len(a | b) if a and b else 0.0
