"""The keep rule of `curate` against rouge_score's decisions, and against comparing all pairs.

    pip install rouge-score
    python benchmarks/curation/novelty.py [--size 20000] [--rouge-seconds 60]

On the same synthetic prompts (`corpus`), in their order, by ROUGE-L alone. Only those in ASCII:
rouge_score knows no other letters.

1. `Selection`, as `curate` uses it.
2. rouge_score, with its own tokenizer. It is asked for every pair whose bags of words leave room
   for F = 0.7: L cannot exceed what the bags share, which rapidfuzz measures for all pairs. From
   its answers the keep rule decides once more; every verdict is compared.
3. rapidfuzz for all pairs, LCS alone, to be timed: the quickest way without an index.
4. rouge_score for all pairs and nothing else, as Self-Instruct does, for as many prompts as it
   judges in `--rouge-seconds`; these verdicts are compared too.

Times are processor time, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
from corpus import synthetic_prompts
from rapidfuzz import process
from rapidfuzz.distance import LCSseq
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from selfalign.filters.screening import Screened
from selfalign.filters.selection import Selection
from selfalign.filters.words import words_of

THRESHOLD = 0.7  # Self-Instruct
ROWS_AT_ONCE = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=20_000, help="prompts")
    parser.add_argument("--rouge-seconds", type=float, default=60, help="for rouge_score alone")
    arguments = parser.parse_args()
    ascii_ = filter(str.isascii, synthetic_prompts(2 * arguments.size))
    prompts = list(islice(ascii_, arguments.size))
    tokenizer = DefaultTokenizer(use_stemmer=False)
    if any(tokenizer.tokenize(prompt) != words_of(prompt) for prompt in prompts):
        sys.exit("rouge_score splits a prompt into other words: the bags say nothing about it")
    kept, seconds = timed(lambda: selected(prompts))
    print(f"{len(prompts):,} prompts, {kept.count(True):,} novel by Selection: {seconds:.1f} s")

    scorer = RougeScorer(["rougeL"])
    asked: list[tuple[int, int]]
    asked, seconds = timed(lambda: list(possible_pairs(prompts)))
    print(f"{len(asked):,} pairs share enough words: {seconds:.1f} s")
    alike, seconds = timed(lambda: [pair for pair in asked if score(scorer, prompts, *pair) > 0.7])
    compare("rouge_score", kept, by_rule(len(prompts), alike))
    print(
        f"rouge_score on these, every verdict the same: {seconds:.1f} s; {len(alike):,} above 0.7"
    )
    _, seconds = timed(lambda: sum(int((row > 0).sum()) for row in all_pairs(coded(prompts))))
    print(f"rapidfuzz, LCS of all pairs: {seconds:.1f} s")
    alone(scorer, prompts, kept, arguments.rouge_seconds)


def timed(work: Callable[[], list]) -> tuple[list, float]:  # type: ignore[type-arg]
    started = time.process_time()
    result = work()
    return result, time.process_time() - started


def selected(prompts: Sequence[str]) -> list[bool]:
    """Whether each is novel. What other filters drop here has the same words as a kept one."""
    selection = Selection(novelty_threshold=THRESHOLD, near_duplicate_threshold=1, shingle=10**6)
    verdicts = []
    for start in range(0, len(prompts), 4096):
        verdicts += selection.judge(Screened.of(prompts[start : start + 4096]))
    return [verdict is None for verdict in verdicts]


def coded(prompts: Sequence[str], *, bags: bool = False) -> list[str]:
    """A character for each word; as bags, in one order for all."""
    codes: dict[str, int] = {}
    texts = [[codes.setdefault(word, len(codes)) for word in words_of(text)] for text in prompts]
    return ["".join(map(chr, sorted(text) if bags else text)) for text in texts]


def all_pairs(texts: Sequence[str]) -> Iterator[np.ndarray]:
    """For some texts after others, LCS with each text before the last of them."""
    for start in range(0, len(texts), ROWS_AT_ONCE):
        some = texts[start : start + ROWS_AT_ONCE]
        yield process.cdist(
            some, texts[: start + len(some)], scorer=LCSseq.similarity, dtype=np.int32
        )


def possible_pairs(prompts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Pairs (later, earlier) whose bags of words leave room for F above the threshold."""
    bags = coded(prompts, bags=True)
    lengths = np.array(list(map(len, bags)))
    first = 0
    for shared in all_pairs(bags):
        rows, columns = shared.shape
        total = lengths[first : first + rows, None] + lengths[None, :columns]
        possible = 2 * shared >= (THRESHOLD - 1e-9) * total
        for row, column in zip(*np.nonzero(possible), strict=True):
            if column < first + row:
                yield int(first + row), int(column)
        first += rows


def score(scorer: RougeScorer, prompts: Sequence[str], later: int, earlier: int) -> float:
    return float(scorer.score(prompts[earlier], prompts[later])["rougeL"].fmeasure)


def by_rule(count: int, alike: Sequence[tuple[int, int]]) -> list[bool]:
    """The keep rule, given every pair that is alike."""
    earlier: dict[int, list[int]] = {}
    for one, other in alike:
        earlier.setdefault(one, []).append(other)
    kept: list[bool] = []
    for number in range(count):
        kept.append(not any(kept[other] for other in earlier.get(number, ())))
    return kept


def alone(
    scorer: RougeScorer, prompts: Sequence[str], expected: Sequence[bool], seconds: float
) -> None:
    started = time.process_time()
    kept: list[int] = []
    number = 0
    while number < len(prompts) and time.process_time() - started < seconds:
        if not any(score(scorer, prompts, number, other) > THRESHOLD for other in kept):
            kept.append(number)
        number += 1
    compare("rouge_score alone", expected[:number], [n in set(kept) for n in range(number)])
    spent = time.process_time() - started
    print(f"rouge_score for all pairs, first {number:,} prompts, the same: {spent:.1f} s")


def compare(name: str, found: Sequence[bool], expected: Sequence[bool]) -> None:
    wrong = [n for n, (one, other) in enumerate(zip(found, expected, strict=True)) if one != other]
    if wrong:
        sys.exit(f"{name} decides otherwise on {len(wrong)} prompts, first number {wrong[0]}")


if __name__ == "__main__":
    main()
