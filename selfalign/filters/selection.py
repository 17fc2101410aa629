"""Which candidates are kept, in their order: each is compared with those kept before it.

The rule is Self-Instruct's (Wang et al. 2023, sec. 3.2): the first of several that are alike is
kept, and what was dropped is compared with no more. Candidates are judged some at a time: all at
once against what was kept before, then one after the other among themselves. The verdicts are
those of one at a time.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np

from selfalign.filters.near_duplicates import shingles
from selfalign.filters.screening import Screened
from selfalign.filters.sequences import Array, Sequences, Vocabulary
from selfalign.filters.similarity import Jaccard, RougeL, SimilarityIndex

# Among themselves they may all be alike: 131,000 pairs at most.
_JUDGED_AT_ONCE = 512


class Selection:
    """The texts kept so far, and the verdicts on more.

    Args:
        novelty_threshold: ROUGE-L F above which a text is not novel.
        near_duplicate_threshold: Jaccard similarity of shingles from which on it is a duplicate.
        shingle: words per shingle.
    """

    def __init__(
        self, *, novelty_threshold: float, near_duplicate_threshold: float, shingle: int
    ) -> None:
        self._shingle = shingle
        self._vocabulary = Vocabulary()
        self._keys: set[bytes] = set()
        self._near = SimilarityIndex(Jaccard(near_duplicate_threshold))
        self._novelty = SimilarityIndex(RougeL(novelty_threshold))

    def __len__(self) -> int:
        return len(self._novelty)

    def add(self, texts: Screened) -> None:
        """Keep texts without judging them."""
        words = self._vocabulary.encode(texts.words)
        self._keys.update(texts.keys)
        self._novelty.add(words)
        self._near.add(shingles(words, self._shingle))

    def judge(self, texts: Screened, room: Sequence[int] | None = None) -> list[str | None]:
        """The first filter that drops each text, or None for those that are kept from now on.

        Args:
            room: for each text, how many may be kept up to it, itself included; None: all.
        """
        words = self._vocabulary.encode(texts.words)
        verdicts: list[str | None] = []
        for start in range(0, len(words), _JUDGED_AT_ONCE):
            part = slice(start, start + _JUDGED_AT_ONCE)
            kept = verdicts.count(None)
            left = None if room is None else [most - kept for most in room[part]]
            rows = np.arange(len(words))[part]
            verdicts += self._judge(texts.keys[part], texts.reasons[part], words.take(rows), left)
        return verdicts

    def _judge(
        self,
        keys: Sequence[bytes],
        reasons: Sequence[str | None],
        words: Sequences,
        room: Sequence[int] | None,
    ) -> list[str | None]:
        new = [
            reason is None and key not in self._keys
            for key, reason in zip(keys, reasons, strict=True)
        ]
        sets = shingles(words, self._shingle)
        near = _Comparison(self._near, sets, np.array(new, bool))
        novelty = _Comparison(self._novelty, words, np.array(new, bool) & ~near.found)
        kept: dict[int, None] = {}
        verdicts = list(reasons)
        for row, key in enumerate(keys):
            if key in self._keys:
                verdicts[row] = "exact_duplicate"
            elif verdicts[row] is not None:
                continue
            elif near.like(row, kept):
                verdicts[row] = "near_duplicate"
            elif novelty.like(row, kept):
                verdicts[row] = "not_novel"
            elif room is not None and len(kept) >= room[row]:
                verdicts[row] = "over_max_prompts"
            else:
                kept[row] = None
                self._keys.add(key)
        chosen = np.array(list(kept), np.int64)
        self._near.add(sets.take(chosen))
        self._novelty.add(words.take(chosen))
        return verdicts


class _Comparison:
    """Texts against an index, and those it does not find against each other.

    Attributes:
        found: whether each text is like one in the index (num_texts,); no where it was not asked.
    """

    def __init__(self, index: SimilarityIndex, texts: Sequences, asked: Array) -> None:
        rows = np.flatnonzero(asked)
        found = index.find(texts.take(rows))
        self.found = np.zeros(len(texts), bool)
        self.found[rows[found]] = True
        rows = rows[~found]
        self._earlier: dict[int, list[int]] = {}
        later, earlier = index.pairs(texts.take(rows))
        for one, other in zip(rows[later].tolist(), rows[earlier].tolist(), strict=True):
            self._earlier.setdefault(one, []).append(other)

    def like(self, row: int, kept: Container[int]) -> bool:
        """Whether a text is like one in the index, or like an earlier one that was kept."""
        return bool(self.found[row]) or any(
            earlier in kept for earlier in self._earlier.get(row, ())
        )
