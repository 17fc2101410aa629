"""Many sequences of elements (words, shingles) in two arrays, for the similarity index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfalign.filters.words import words_of

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Sequences:
    """Sequences, one after the other.

    Attributes:
        elements: of all sequences, unsigned integers (num_elements,).
        bounds: where each sequence starts, and at last where all end (num_sequences + 1,).
    """

    elements: Array
    bounds: Array

    @staticmethod
    def of(elements: Array, lengths: Array) -> Sequences:
        """Sequences by the number of elements of each (num_sequences,)."""
        return Sequences(elements, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def lengths(self) -> Array:
        """Elements of each sequence (num_sequences,)."""
        return np.diff(self.bounds)

    @property
    def rows(self) -> Array:
        """For each element the number of the sequence that holds it (num_elements,)."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, chosen: Array) -> Sequences:
        """The sequences with the numbers `chosen`, in that order."""
        starts = self.bounds[chosen]
        lengths = self.bounds[chosen + 1] - starts
        return Sequences.of(self.elements[ranges(starts, lengths)], lengths)


def ranges(starts: Array, lengths: Array) -> Array:
    """The numbers of ranges that begin at `starts`, one range after the other."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(lengths.sum())


@dataclass(frozen=True, slots=True)
class Worded:
    """The words of some texts. Who makes it knows no words but these.

    Attributes:
        vocabulary: the distinct words, the most frequent first.
        texts: each text as places in `vocabulary`.
    """

    vocabulary: list[str]
    texts: Sequences


def worded(texts: Iterable[str]) -> Worded:
    """The words of texts, as every filter splits them."""
    split = [words_of(text) for text in texts]
    words = list(chain.from_iterable(split))
    vocabulary = [word for word, _ in Counter(words).most_common()]
    place = {word: number for number, word in enumerate(vocabulary)}
    elements = np.fromiter(map(place.__getitem__, words), np.uint32, len(words))
    lengths = np.fromiter(map(len, split), np.int64, len(split))
    return Worded(vocabulary, Sequences.of(elements, lengths))


class Vocabulary:
    """Words as numbers. Words that come later, hence rarer ones, have larger numbers."""

    def __init__(self) -> None:
        self._code_of: dict[str, int] = {}

    def encode(self, texts: Worded) -> Sequences:
        """The texts as numbers of words; words not seen before get the next numbers."""
        known = self._code_of
        codes = [known.setdefault(word, len(known)) for word in texts.vocabulary]
        elements = np.array(codes, np.uint32)[texts.texts.elements]
        return Sequences(elements, texts.texts.bounds)
