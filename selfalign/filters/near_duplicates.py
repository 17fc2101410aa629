"""Near duplicates by the words they have in a row, and exact ones by normal form.

Two texts are near duplicates when the Jaccard similarity of their sets of shingles (runs of
words; Lee et al. 2022, arXiv 2107.06499) reaches a threshold. It is measured, not estimated: of two
sets in ascending order, the longest common subsequence is what they share.
"""

from __future__ import annotations

import hashlib

import numpy as np

from selfalign.filters.sequences import Array, Sequences
from selfalign.filters.words import folded

# Punctuation of sentences, taken off words; what belongs to names and numbers stays: C#, C++,
# 50%, -3, .5
_OPENING = "\"'`´“”„‘’‚«»‹›([{¿¡"
_CLOSING = "\"'`´“”„‘’‚«»‹›)]}.,;:!?…"
# Constants of MurmurHash3's finaliser, whose every input bit moves every output bit.
_MURMUR = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))
_HALF = np.uint64(33)


def normalise(text: str) -> str:
    """The normal form in which exact duplicates are equal.

    Folded, one space between words, and no quotes, brackets and sentence punctuation around
    words.
    """
    words = (word.lstrip(_OPENING).rstrip(_CLOSING) for word in folded(text).split())
    return " ".join(word for word in words if word)


def exact_key(text: str) -> bytes:
    """16 bytes that texts of one normal form share: what an exact duplicate is known by."""
    return hashlib.blake2b(normalise(text).encode(errors="surrogatepass"), digest_size=16).digest()


def shingles(texts: Sequences, size: int) -> Sequences:
    """The set of shingles of each text, as 64-bit hashes in ascending order.

    A shingle is a run of `size` words; a text of fewer words is one shingle, one without words
    has none.

    Args:
        texts: as numbers of words.
    """
    lengths = texts.lengths
    counts = np.where(lengths > 0, np.maximum(lengths - size + 1, 1), 0)
    runs = Sequences.of(np.zeros(counts.sum(), np.uint64), counts)
    rows = runs.rows
    starts = texts.bounds[rows] + np.arange(len(rows)) - runs.bounds[rows]
    ends = np.minimum(starts + size, texts.bounds[rows + 1])
    hashes = runs.elements
    for place in range(min(size, int(lengths.max(initial=0)))):
        inside = starts + place < ends
        words = texts.elements[starts[inside] + place].astype(np.uint64)
        hashes[inside] = _mixed(hashes[inside] + words + np.uint64(1))
    hashes = hashes[np.lexsort((hashes, rows))]
    distinct = np.ones(len(rows), bool)
    distinct[1:] = (hashes[1:] != hashes[:-1]) | (rows[1:] != rows[:-1])
    return Sequences.of(hashes[distinct], np.bincount(rows[distinct], minlength=len(texts)))


def _mixed(hashes: Array) -> Array:
    for factor in _MURMUR:
        hashes = (hashes ^ (hashes >> _HALF)) * factor
    mixed: Array = hashes ^ (hashes >> _HALF)
    return mixed
