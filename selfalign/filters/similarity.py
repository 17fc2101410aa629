"""Which of many sequences have so much in common, in order, that they are alike? Exact.

Two sequences of m and n elements whose longest common subsequence (LCS) has L elements are alike
where a criterion (`RougeL`, `Jaccard`) on L, m and n says so. Three filters come before L is
measured. None of them ever loses a pair that is alike, and each works on whole arrays:

1. Prefixes. Two sequences that are alike have o elements in common, by m + n. Sort both by one
   global order of elements, rare ones first. Of the o elements o - k come after the first k, which
   are therefore among the first m - o + k elements of one sequence and the first n - o + k of the
   other (prefix filtering: Chaudhuri et al. 2006, "A primitive operator for similarity joins").
   An inverted index holds these alone, and these alone are looked up in it. An element that occurs
   again counts as another element.
2. Parities. A bit for each of 256 classes of elements says whether a sequence holds an odd number
   of that class. Sequences whose bits differ in d places differ in d elements or more, so that
   L <= (m + n - d) / 2 (bitmap filtering: Sandes et al. 2020, "Bitmap filter: speeding up exact
   set similarity joins with bitwise operations").
3. rapidfuzz measures the LCS of what is left, in C++.

The order is that of the elements' numbers, larger ones first. It decides how fast the index is,
never what it finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

from selfalign.filters.sequences import Array, Sequences, ranges

_PAIRS_AT_ONCE = 1 << 20  # bounds the memory of a search, whatever is searched
_MEASURED_AT_ONCE = 1 << 19  # elements
_BITMAP_WORDS = 4  # of 64 bits
# k is o divided by this, at least 1, which is enough for short sequences: bitmaps tell them apart.
_COMMON_PER_HIT = 16
_MIXER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Knuth's multiplicative hash
_NUM_CHARACTERS = 0x110000  # of Unicode
_ROUNDING = 1e-11  # more than the error of any score

_Text = str | list[int]


@dataclass(frozen=True, slots=True)
class RougeL:
    """Alike: ROUGE-L F above the threshold, of texts as the numbers of their words.

    Self-Instruct (Wang et al. 2023, sec. 3.2) drops an instruction whose ROUGE-L with any earlier
    one exceeds 0.7. F is computed as the rouge_score package does, operation by operation: where F
    is the threshold itself, its floating-point value lies above it for some lengths and not for
    others.
    """

    threshold: float
    elements: ClassVar[type[np.unsignedinteger]] = np.uint32

    @property
    def share(self) -> float:
        """Of their m + n elements, what texts that are alike have in common: F = 2 L / (m + n)."""
        return self.threshold / 2

    def holds(self, common: Array, one: Array, other: Array) -> Array:
        """Whether F is above the threshold, by the lengths of the LCS and of both (1 or more)."""
        precision, recall = common / other, common / one
        both = precision + recall
        score = np.divide(2 * precision * recall, both, out=np.zeros(len(both)), where=both > 0)
        return score > self.threshold


@dataclass(frozen=True, slots=True)
class Jaccard:
    """Alike: the share that two sets have in common of what either holds reaches the threshold."""

    threshold: float
    elements: ClassVar[type[np.unsignedinteger]] = np.uint64

    @property
    def share(self) -> float:
        """As in RougeL: J = L / (m + n - L)."""
        return self.threshold / (1 + self.threshold)

    def holds(self, common: Array, one: Array, other: Array) -> Array:
        """Whether J reaches the threshold."""
        alike: Array = common / (one + other - common) >= self.threshold
        return alike


@dataclass(frozen=True, slots=True)
class _Postings:
    """A part of the inverted index: which sequences hold an element in their prefix."""

    elements: Array  # their names, ascending (num_entries,)
    holders: Array  # numbers of sequences (num_entries,)

    @staticmethod
    def of(elements: Array, holders: Array) -> _Postings:
        order = np.argsort(elements, kind="stable")
        return _Postings(elements[order], holders[order].astype(np.int32))

    def plus(self, other: _Postings) -> _Postings:
        return _Postings.of(
            np.concatenate([self.elements, other.elements]),
            np.concatenate([self.holders, other.holders]),
        )

    def holding(self, elements: Array, rows: Array) -> Iterator[tuple[Array, Array, bool]]:
        """(row, holder) for each element that they share; rows must ascend.

        In turns, so that memory is bounded. The third value says whether all pairs of all these
        rows are in this turn.
        """
        first = np.searchsorted(self.elements, elements, side="left")
        counts = np.searchsorted(self.elements, elements, side="right") - first
        ends = np.cumsum(counts)
        start = 0
        while start < len(rows):
            limit = ends[start] - counts[start] + _PAIRS_AT_ONCE
            stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
            row_start = int(np.searchsorted(rows, rows[min(stop, len(rows) - 1)]))
            if start < row_start and stop < len(rows):
                stop = row_start
            whole = stop == len(rows) or rows[stop] != rows[stop - 1]
            whole = whole and (start == 0 or rows[start] != rows[start - 1])
            part = slice(start, stop)
            found = self.holders[ranges(first[part], counts[part])]
            yield np.repeat(rows[part], counts[part]), found, bool(whole)
            start = stop


@dataclass(slots=True)
class _Sketches:
    """What the second filter looks at."""

    lengths: Array  # (num_sequences,)
    bitmaps: Array  # parities (num_sequences, 4)
    folded: Array  # the four folded into one: parities of 64 coarser classes (num_sequences,)

    @staticmethod
    def of(sequences: Sequences) -> _Sketches:
        classes = (sequences.elements.astype(np.uint64) * _MIXER) >> np.uint64(56)
        bits = np.uint64(1) << (classes & np.uint64(63))
        places = sequences.rows * _BITMAP_WORDS + (classes >> np.uint64(6)).astype(np.int64)
        parities = np.zeros(len(sequences) * _BITMAP_WORDS, np.uint64)
        np.bitwise_xor.at(parities, places, bits)
        bitmaps = parities.reshape(-1, _BITMAP_WORDS)
        folded = np.bitwise_xor.reduce(bitmaps, axis=1)
        return _Sketches(sequences.lengths.astype(np.int32), bitmaps, folded)


class _Growing:
    """An array to which rows are appended; at most half as much memory again as they need."""

    def __init__(self, rows: Array) -> None:
        self._array = rows
        self._size = len(rows)

    def append(self, rows: Array) -> None:
        end = self._size + len(rows)
        if end > len(self._array):
            array = np.empty((end + end // 2, *rows.shape[1:]), self._array.dtype)
            array[: self._size] = self.rows
            self._array = array
        self._array[self._size : end] = rows
        self._size = end

    @property
    def rows(self) -> Array:
        return self._array[: self._size]


class SimilarityIndex:
    """Sequences seen so far, to be searched for one that is like another."""

    def __init__(self, criterion: RougeL | Jaccard) -> None:
        self._criterion = criterion
        self._elements = _Growing(np.zeros(0, criterion.elements))
        self._bounds = _Growing(np.zeros(1, np.int64))
        empty = _Sketches.of(Sequences(self._elements.rows, self._bounds.rows))
        self._lengths = _Growing(empty.lengths)
        self._bitmaps = _Growing(empty.bitmaps)
        self._folded = _Growing(empty.folded)
        # Each at least twice as large as the next, so that an entry moves log(n) times at most.
        self._postings: list[_Postings] = []
        self._allowed = np.zeros(0, np.int32)  # by m + n: m + n - 2 o

    def __len__(self) -> int:
        return len(self._lengths.rows)

    def add(self, sequences: Sequences) -> None:
        """Remember sequences. An empty one is like no other, now or later."""
        elements, rows = self._prefixes(sequences)
        postings = _Postings.of(elements, rows + len(self))
        while self._postings and len(self._postings[-1].elements) < 2 * len(elements):
            postings = self._postings.pop().plus(postings)
            elements = postings.elements
        self._postings.append(postings)
        self._bounds.append(sequences.bounds[1:] + len(self._elements.rows))
        self._elements.append(sequences.elements)
        sketches = _Sketches.of(sequences)
        self._lengths.append(sketches.lengths)
        self._bitmaps.append(sketches.bitmaps)
        self._folded.append(sketches.folded)

    def find(self, sequences: Sequences) -> Array:
        """Whether each sequence is like one that was added (num_sequences,)."""
        known = Sequences(self._elements.rows, self._bounds.rows)
        theirs = _Sketches(self._lengths.rows, self._bitmaps.rows, self._folded.rows)
        ours = _Sketches.of(sequences)
        found = np.zeros(len(sequences), bool)
        elements, rows = self._prefixes(sequences)
        for postings in self._postings:
            for one, other, whole in postings.holding(elements, rows):
                one, other = self._possible(ours, theirs, one, other, whole)
                open_ = ~found[one]
                one, other = one[open_], other[open_]
                found[one[self._alike(sequences, known, one, other)]] = True
            open_ = ~found[rows]
            elements, rows = elements[open_], rows[open_]
        return found

    def pairs(self, sequences: Sequences) -> tuple[Array, Array]:
        """All pairs among the sequences that are alike: numbers of the later, and the earlier."""
        sketches = _Sketches.of(sequences)
        elements, rows = self._prefixes(sequences)
        later, earlier = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for one, other, whole in _Postings.of(elements, rows).holding(elements, rows):
            ordered = other < one
            one, other = self._possible(sketches, sketches, one[ordered], other[ordered], whole)
            alike = self._alike(sequences, sequences, one, other)
            later.append(one[alike])
            earlier.append(other[alike])
        return np.concatenate(later), np.concatenate(earlier)

    def _prefixes(self, sequences: Sequences) -> tuple[Array, Array]:
        """Elements of each sequence's prefix as 64-bit names, and the number of the sequence."""
        order = np.lexsort((~sequences.elements, sequences.rows))
        elements, rows = sequences.elements[order].astype(np.uint64), sequences.rows
        lengths = sequences.lengths
        # The shortest sequence that can be like one of m elements gives the longest prefix.
        share = self._criterion.share
        shortest = np.ceil(lengths * (share / (1 - share) * (1 - _ROUNDING)))
        least = self._least(lengths + shortest)
        longest = lengths - least + _hits(least)
        places = np.arange(len(rows))
        another = np.ones(len(rows), bool)
        another[1:] = (elements[1:] != elements[:-1]) | (rows[1:] != rows[:-1])
        again = places - np.maximum.accumulate(np.where(another, places, 0))
        names = elements ^ (again.astype(np.uint64) * _MIXER)
        chosen = places - sequences.bounds[rows] < longest[rows]
        return names[chosen], rows[chosen]

    def _least(self, total: Array) -> Array:
        """How many elements sequences of `total` elements must have in common to be alike."""
        share = self._criterion.share * (1 - _ROUNDING)
        return np.maximum(np.ceil(total * share), 1).astype(np.int64)

    def _possible(
        self, ours: _Sketches, theirs: _Sketches, one: Array, other: Array, whole: bool
    ) -> tuple[Array, Array]:
        """The pairs that neither prefixes nor parities rule out, each once, in order.

        Args:
            whole: whether a pair comes as often as prefixes share elements.
        """
        allowed = self._allowed_for(ours.lengths[one] + theirs.lengths[other])
        near = np.bitwise_count(ours.folded[one] ^ theirs.folded[other]) <= allowed
        one, other, allowed = one[near], other[near], allowed[near]
        apart = np.bitwise_count(ours.bitmaps[one] ^ theirs.bitmaps[other])
        near = apart.sum(axis=1, dtype=np.int32) <= allowed
        pairs = (one[near].astype(np.int64) << 32) | other[near]
        pairs, hits = np.unique(pairs, return_counts=True)
        one, other = pairs >> 32, pairs & 0xFFFFFFFF
        if whole:
            enough = hits >= _hits(self._least(ours.lengths[one] + theirs.lengths[other]))
            one, other = one[enough], other[enough]
        return one, other

    def _allowed_for(self, total: Array) -> Array:
        """How many elements in all may be in one of two sequences alone, by m + n."""
        largest = int(total.max(initial=0))
        if largest >= len(self._allowed):
            totals = np.arange(2 * largest + 1)
            self._allowed = (totals - 2 * self._least(totals)).astype(np.int32)
        return self._allowed[total]

    def _alike(self, ours: Sequences, theirs: Sequences, one: Array, other: Array) -> Array:
        """Whether each pair is alike (num_pairs,)."""
        alike = np.zeros(len(one), bool)
        ends = np.cumsum(_lengths(ours, one) + _lengths(theirs, other))
        start = 0
        while start < len(one):
            limit = (ends[start - 1] if start else 0) + _MEASURED_AT_ONCE
            stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
            part = slice(start, stop)
            start = stop
            (first, of_first), (second, of_second) = (
                np.unique(numbers, return_inverse=True) for numbers in (one[part], other[part])
            )
            mine, yours = ours.take(first), theirs.take(second)
            left, right = _as_strings(mine, yours)
            common = process.cpdist(
                [left[number] for number in of_first.tolist()],
                [right[number] for number in of_second.tolist()],
                scorer=LCSseq.similarity,
                dtype=np.int64,
            )
            alike[part] = self._criterion.holds(
                common, mine.lengths[of_first], yours.lengths[of_second]
            )
        return alike


def _lengths(sequences: Sequences, numbers: Array) -> Array:
    lengths: Array = sequences.bounds[numbers + 1] - sequences.bounds[numbers]
    return lengths


def _hits(least: Array) -> Array:
    """How many elements of their prefixes sequences share at least (k), by o."""
    hits: Array = np.maximum(least // _COMMON_PER_HIT, 1)
    return hits


def _as_strings(one: Sequences, other: Sequences) -> tuple[list[_Text], list[_Text]]:
    """Sequences with a character for each distinct element: what rapidfuzz compares fastest.

    Two texts of megabytes may hold more distinct elements than there are characters: then as lists.
    """
    distinct, codes = np.unique(np.concatenate([one.elements, other.elements]), return_inverse=True)
    text: _Text = codes.tolist()
    if len(distinct) <= _NUM_CHARACTERS:
        text = codes.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
    middle = len(one.elements)
    return _split(text[:middle], one.bounds), _split(text[middle:], other.bounds)


def _split(text: _Text, bounds: Array) -> list[_Text]:
    places = bounds.tolist()
    return [text[start:end] for start, end in pairwise(places)]
