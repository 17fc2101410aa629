"""What a candidate is without regard to the others: contaminated or not, its words, its key.

Many processes may do this at once; what depends on order is `selection`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from selfalign.filters.decontamination import Decontaminator
from selfalign.filters.near_duplicates import exact_key
from selfalign.filters.rewording import RewordingIndex
from selfalign.filters.sequences import Worded, worded


@dataclass(frozen=True, slots=True)
class Screened:
    """Texts as `Selection` takes them.

    Attributes:
        keys: what exact duplicates of each text are known by.
        reasons: the filter that drops each text, whatever the others are, or None.
        words: of all texts.
    """

    keys: list[bytes]
    reasons: list[str | None]
    words: Worded

    @staticmethod
    def of(texts: Sequence[str]) -> Screened:
        """Texts that no filter drops on its own account."""
        return Screened(list(map(exact_key, texts)), [None] * len(texts), worded(texts))


class Screen:
    """Evaluation texts, to be searched for one that a candidate repeats or rewords."""

    def __init__(
        self, references: Iterable[tuple[str, str]], *, ngram: int, overlap: float
    ) -> None:
        self._contamination = Decontaminator(ngram)
        self._rewording = RewordingIndex(overlap)
        for name, text in references:
            self._contamination.add_reference(name, text)
            self._rewording.add_reference(name, text)

    def screen(self, texts: Sequence[str]) -> Screened:
        """Texts with the filters that drop them."""
        reasons = list(map(self._reason, texts))
        return Screened(list(map(exact_key, texts)), reasons, worded(texts))

    def _reason(self, text: str) -> str | None:
        if self._contamination.find(text) is not None:
            return "contaminated"
        if self._rewording.find(text) is not None:
            return "contaminated_rewording"
        return None
