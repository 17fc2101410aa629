"""Synthetic candidates that load `curate` as a base model's do: words, lengths, repetitions.

- Words: as frequent as English words are by rank (Zipf-Mandelbrot, exponent 1.07). The commonest
  are those of the project's own seed tasks, the rest of 300,000 are invented, so that the number
  of distinct words grows with the text.
- A prompt opens as one of the seed tasks does, and a third of its other words come from the forty
  words of its topic, one of 5,000: words that go together in many prompts are what makes a
  similarity index slow.
- Lengths: lognormal with a median of 17 words, from 4 to 150, as the seeds' are.
- 10% are exact copies of an earlier prompt, 30% copies with up to three in ten of their words
  replaced, dropped or doubled. Early prompts are copied most: a base model writes some tasks again
  and again.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

SEEDS = Path(__file__).parents[2] / "seeds" / "general.txt"
NUM_WORDS = 300_000
NUM_TOPICS = 5_000
WORDS_PER_TOPIC = 40
SHARE_OF_TOPIC_WORDS = 0.33
SHARE_OF_EXACT_COPIES = 0.1
SHARE_OF_CHANGED_COPIES = 0.3
MOST_CHANGES = 0.3  # of the words of a copy
_SYLLABLES = [onset + vowel for onset in "bcdfghklmnprstvz" for vowel in "aeiou"]
_BATCH = 10_000  # prompts drawn at once


def synthetic_prompts(count: int, seed: int = 0) -> Iterator[str]:
    """`count` prompts; the first n of them are the same for every count of n or more."""
    source = _Source(seed)
    words = source.words

    def prompts() -> Iterator[str]:
        while True:
            for codes in source.batch():
                yield " ".join([words[code] for code in codes]).capitalize() + "."

    return islice(prompts(), count)


class _Source:
    """Prompts as lists of word codes; the code of a word is its rank by frequency."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        lines = [
            [word.strip(".,:;?!\"'()").lower() for word in line.split()]
            for line in SEEDS.read_text(encoding="utf-8").splitlines()
        ]
        common = [word for word, _ in Counter(w for line in lines for w in line if w).most_common()]
        self.words = _with_invented(common, seed)
        code_of = {word: code for code, word in enumerate(common)}
        self._openings = [[code_of[word] for word in line[:3] if word] for line in lines]
        shares = 1 / (np.arange(NUM_WORDS) + 2.7) ** 1.07
        self._up_to_word = np.cumsum(shares / shares.sum())
        self._topics = self._draw_words((NUM_TOPICS, 4 * WORDS_PER_TOPIC))
        # a topic's own words are not the commonest of the language
        self._topics = np.sort(self._topics, axis=1)[:, -WORDS_PER_TOPIC:]
        self._made: list[list[int]] = []

    def batch(self) -> Iterator[list[int]]:
        """The next prompts."""
        rng = self._rng
        kinds = rng.random(_BATCH)
        lengths = np.clip(rng.lognormal(np.log(17), 0.55, _BATCH).astype(int), 4, 150)
        openings = rng.integers(0, len(self._openings), _BATCH)
        general = np.split(self._draw_words(lengths.sum()), np.cumsum(lengths)[:-1])
        topics = (NUM_TOPICS * rng.random(_BATCH) ** 2).astype(int)
        for place in range(_BATCH):
            if self._made and kinds[place] < SHARE_OF_EXACT_COPIES + SHARE_OF_CHANGED_COPIES:
                made = self._made[int(len(self._made) * rng.random() ** 2)]
                if kinds[place] >= SHARE_OF_EXACT_COPIES:
                    made = self._changed(made)
            else:
                words = general[place]
                from_topic = rng.random(len(words)) < SHARE_OF_TOPIC_WORDS
                own = self._topics[topics[place]]
                words[from_topic] = own[rng.integers(0, len(own), int(from_topic.sum()))]
                made = (self._openings[openings[place]] + words.tolist())[: lengths[place]]
            self._made.append(made)
            yield made

    def _draw_words(self, shape: Any) -> Any:
        found = np.searchsorted(self._up_to_word, self._rng.random(shape))
        return np.minimum(found, NUM_WORDS - 1)

    def _changed(self, made: list[int]) -> list[int]:
        """A copy some of whose words are replaced, dropped or doubled."""
        share = self._rng.uniform(0, MOST_CHANGES)
        draws = self._rng.random(len(made))
        new = self._draw_words(len(made))
        changed: list[int] = []
        for code, draw, other in zip(made, draws.tolist(), new.tolist(), strict=True):
            if draw >= share:
                changed.append(code)
            elif draw < share * 0.6:
                changed.append(other)
            elif draw < share * 0.8:
                changed += [code, code]
        return changed or made


def _with_invented(common: list[str], seed: int) -> list[str]:
    rng = random.Random(seed)
    known = set(common)
    words = list(common)
    while len(words) < NUM_WORDS:
        word = "".join(rng.choices(_SYLLABLES, k=rng.randint(2, 5)))
        if word not in known:
            known.add(word)
            words.append(word)
    return words
