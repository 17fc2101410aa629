"""Decontamination beyond n-grams: does a prompt ask what an evaluation item asks, in other words?

N-gram overlap misses a rewording ("How do I steal a car?", "Tell me how to steal a car."; Yang et
al. 2023, arXiv 2311.04850). Here two texts ask the same when the sets of their content words,
function words and forms of asking left out, have a Jaccard similarity of at least a threshold.
A change of the content words themselves (a synonym, a translation) escapes it still.
"""

from __future__ import annotations

import math

from selfalign.filters.words import words_of

# A set of one word ("love", "Yes") says too little about what is asked.
MIN_CONTENT_WORDS = 2
_ROUNDING = 1e-11  # more than the error of a product
_FUNCTION_WORDS = frozenset(
    """
    a about after all also am an and any are as at be because been before being but by can could
    d did do does doing don for from get had has have having he her here hers him his how i if in
    into is it its ll m may me might mine more most much must my no not now of off on one or our
    ours out over own re s shall she should so some such t than that the their theirs them then
    there these they this those through to today too under up us ve very was we were what when
    where which while who whom whose why will with would you your yours
    """.split()  # noqa: SIM905 - words read better as text
)
_FORMS_OF_ASKING = frozenset(
    """
    ask asked describe discuss explain give help know known let like list need please question
    say show tell think want wonder wondering
    """.split()  # noqa: SIM905
)


def content_words(text: str) -> frozenset[str]:
    """The words that say what a text is about, in lower case."""
    words = set(words_of(text))
    return frozenset(words - _FUNCTION_WORDS - _FORMS_OF_ASKING)


class RewordingIndex:
    """Evaluation texts, to be searched for one that a prompt rewords.

    Args:
        threshold: least Jaccard similarity of content words; 1 asks for the same set.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._references: list[tuple[str, frozenset[str]]] = []  # id, content words
        self._known: set[frozenset[str]] = set()
        self._holding: dict[str, list[int]] = {}  # content word -> references that hold it

    def add_reference(self, reference_id: str, text: str) -> None:
        """Remember an evaluation text. One with fewer than two content words matches nothing."""
        words = content_words(text)
        if len(words) < MIN_CONTENT_WORDS or words in self._known:
            return
        self._known.add(words)
        index = len(self._references)
        self._references.append((reference_id, words))
        for word in words:
            self._holding.setdefault(word, []).append(index)

    def find(self, text: str) -> str | None:
        """Id of the first reference added that the text rewords, or None."""
        words = content_words(text)
        if len(words) < MIN_CONTENT_WORDS:
            return None
        # It shares `needed` of the n words at least, so that it holds one of any n - needed + 1.
        needed = max(1, math.ceil(self._threshold * len(words) * (1 - _ROUNDING)))
        rarest = sorted(words, key=lambda word: (len(self._holding.get(word, ())), word))
        holding = {
            i for word in rarest[: len(words) - needed + 1] for i in self._holding.get(word, ())
        }
        found = [index for index in holding if self._rewords(words, self._references[index][1])]
        return self._references[min(found)][0] if found else None

    def _rewords(self, words: frozenset[str], reference: frozenset[str]) -> bool:
        common = len(words & reference)
        return common >= self._threshold * (len(words) + len(reference) - common)
