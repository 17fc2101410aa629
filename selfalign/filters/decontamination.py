"""Decontamination: does a prompt share text with an evaluation item? By word n-grams.

The usual test of overlap (Brown et al. 2020, appendix C, used n from 8 to 13), extended to
texts shorter than n words, for which n-grams say nothing: those must hold one another whole.
Rewordings escape it (2311.04850).
"""

from __future__ import annotations

from selfalign.filters.words import runs_of, words_of

# A fragment shorter than this ("Yes.", "New York") occurs anywhere: it counts only if the two
# texts are the same. The candidate filter's lower limit: shorter texts are no tasks.
MIN_CONTAINED_WORDS = 4


class Decontaminator:
    """Evaluation texts, to be searched for one that overlaps with a prompt.

    A prompt overlaps with a reference when they share `ngram` words in a row; or when one of
    them is shorter than that and the other contains it whole, as words in a row. Case,
    punctuation and spacing do not count.
    """

    def __init__(self, ngram: int) -> None:
        """`ngram`: words in a row."""
        self._ngram = ngram
        self._references: list[tuple[str, list[str]]] = []
        # by number of words, then by run of words: index of the first reference that has it
        self._whole: dict[int, dict[tuple[str, ...], int]] = {}
        self._runs: dict[int, dict[tuple[str, ...], int]] = {}

    def add_reference(self, reference_id: str, text: str) -> None:
        """Remember an evaluation text. One without words matches nothing."""
        words = words_of(text)
        if not words:
            return
        index = len(self._references)
        self._references.append((reference_id, words))
        self._whole.setdefault(len(words), {}).setdefault(tuple(words), index)
        for size, runs in self._runs.items():
            for run in runs_of(words, size):
                runs.setdefault(run, index)

    def find(self, text: str) -> str | None:
        """Id of the first reference added that the text overlaps with, or None."""
        words = words_of(text)
        if not words:
            return None
        found = {self._whole.get(len(words), {}).get(tuple(words))}
        size = min(len(words), self._ngram)
        if size >= min(MIN_CONTAINED_WORDS, self._ngram):
            shared = self._runs_of(size)
            found.update(shared.get(run) for run in runs_of(words, size))
        for size in range(MIN_CONTAINED_WORDS, self._ngram):
            whole = self._whole.get(size, {})
            found.update(whole.get(run) for run in runs_of(words, size))
        indexes = [index for index in found if index is not None]
        return self._references[min(indexes)][0] if indexes else None

    def _runs_of(self, size: int) -> dict[tuple[str, ...], int]:
        """Runs of `size` words of all references; made when a prompt first asks for the size."""
        if size not in self._runs:
            runs = self._runs[size] = {}
            for index, (_, words) in enumerate(self._references):
                for run in runs_of(words, size):
                    runs.setdefault(run, index)
        return self._runs[size]
