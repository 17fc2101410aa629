"""Near duplicates by MinHash and locality-sensitive hashing, and exact ones by normal form.

Deduplication of training text by MinHash: Lee et al. 2022 (arXiv 2107.06499). Two texts are near
duplicates when the estimated Jaccard similarity of their sets of word shingles reaches a
threshold. Buckets only propose pairs; each is then judged by the estimate itself.
"""

from __future__ import annotations

from typing import NamedTuple

from datasketch import MinHash, MinHashLSH

from selfalign.filters.words import folded, words_of

NUM_PERMUTATIONS = 128  # standard error of an estimate: at most 0.044, sqrt(.25 / 128)
MISSED = 0.01  # of the pairs right at the threshold, at most, for want of a common bucket
_SEED = 1  # any constant: it decides the estimates, hence which prompts are kept
# Punctuation of sentences, taken off words; what belongs to names and numbers stays: C#, C++,
# 50%, -3, .5
_OPENING = "\"'`´“”„‘’‚«»‹›([{¿¡"
_CLOSING = "\"'`´“”„‘’‚«»‹›)]}.,;:!?…"


class Match(NamedTuple):
    """The most similar earlier text: estimated Jaccard similarity and id."""

    similarity: float
    id: str


def normalise(text: str) -> str:
    """The normal form in which exact duplicates are equal.

    Folded, one space between words, and no quotes, brackets and sentence punctuation around
    words.
    """
    words = (word.lstrip(_OPENING).rstrip(_CLOSING) for word in folded(text).split())
    return " ".join(word for word in words if word)


def shingles(text: str, size: int) -> set[str]:
    """Runs of `size` words; a text of fewer words is one shingle, one without words has none."""
    words = words_of(text)
    count = max(len(words) - size + 1, min(len(words), 1))
    return {" ".join(words[start : start + size]) for start in range(count)}


class NearDuplicateIndex:
    """Texts seen so far, to be searched for a near duplicate. Memory grows with each text."""

    def __init__(self, threshold: float, shingle: int) -> None:
        """`threshold`: in (0, 1], an estimate that reaches it is a match; `shingle`: words."""
        self._threshold = threshold
        self._shingle = shingle
        self._empty = MinHash(num_perm=NUM_PERMUTATIONS, seed=_SEED)
        self._buckets = MinHashLSH(num_perm=NUM_PERMUTATIONS, params=_bands(threshold))
        self._hashes: list[MinHash] = []
        self._ids: list[str] = []

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, text_id: str, text: str) -> None:
        """Remember a text. A text without words matches nothing, now or later."""
        hashes = self._hashes_of(text)
        if hashes is not None:
            self._buckets.insert(len(self._ids), hashes, check_duplication=False)
            self._hashes.append(hashes)
            self._ids.append(text_id)

    def find(self, text: str) -> Match | None:
        """The earlier text most similar by the estimate, if it reaches the threshold.

        Of equally similar texts the first.
        """
        hashes = self._hashes_of(text)
        if hashes is None:
            return None
        best: Match | None = None
        for index in sorted(self._buckets.query(hashes)):
            similarity = float(hashes.jaccard(self._hashes[index]))
            if similarity >= self._threshold and (best is None or similarity > best.similarity):
                best = Match(similarity, self._ids[index])
        return best

    def _hashes_of(self, text: str) -> MinHash | None:
        found = shingles(text, self._shingle)
        if not found:
            return None
        hashes = self._empty.copy()
        hashes.update_batch(shingle.encode() for shingle in found)
        return hashes


def _bands(threshold: float) -> tuple[int, int]:
    """Number of bands and rows per band: as many rows as leave no more than `MISSED` unseen.

    A pair of similarity s shares no bucket with probability (1 - s^rows)^bands (Leskovec et al.,
    "Mining of Massive Datasets", sec. 3.4). More rows propose fewer pairs; two bands at least.
    """
    for rows in range(NUM_PERMUTATIONS // 2, 1, -1):
        bands = NUM_PERMUTATIONS // rows
        if (1 - threshold**rows) ** bands <= MISSED:
            return bands, rows
    return NUM_PERMUTATIONS, 1
