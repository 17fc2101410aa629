"""Two models' answers judged against each other by a third, in both orders.

The judge reads both answers and continues with " A" or " B". It is believed only where both
orders name the same answer; a disagreement is a tie (Zheng et al. 2023, arXiv 2306.05685).
Judges favour length, so a win rate never stands alone: the difference in length stands beside
it, and the win rate among pairs of about the same length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selfalign.engines.base import Quarantined, Score, ScoreRequest
from selfalign.evaluation.statistics import Estimate, mean, win_share
from selfalign.evaluation.template import Template
from selfalign.evaluation.two_orders import PARTS, TwoOrders, gather, two_order_requests

_HOLES = frozenset({"query", "a", "b"})


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt."""

    id: str
    prompt: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class PairVerdict:
    """Who won, and how long both were."""

    id: str
    winner: Literal["first", "second", "tie"]
    first_words: int
    second_words: int


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often the first model wins, a tie counting half.

    Attributes:
        rate: wins and half of the ties, as a share of the pairs.
        length_difference: words of the first answer less words of the second, per pair.
        matched_rate: `rate` among the pairs whose lengths differ by at most the tolerance.
    """

    wins: int
    losses: int
    ties: int
    rate: Estimate
    length_difference: Estimate
    matched_rate: Estimate


def pairwise_template(path: Path | None = None) -> Template:
    """The judge's template: holes {query}, {a}, {b}; None is the built-in one."""
    return Template.built_in("pairwise", _HOLES) if path is None else Template.load(path, _HOLES)


def pairwise_requests(pairs: Iterable[Pair], template: Template) -> Iterator[ScoreRequest]:
    """Four requests per pair, for the judge's engine."""
    for pair in pairs:
        yield from two_order_requests(pair.id, template, pair.prompt, pair.first, pair.second)


def pairwise_verdicts(
    pairs: Sequence[Pair], scores: Iterable[Score | Quarantined]
) -> Iterator[PairVerdict | Quarantined]:
    """The verdict on each pair as soon as its four scores are in.

    Raises DataError or EngineError, as `gather` does.
    """
    by_id = {pair.id: pair for pair in pairs}
    for found in gather(dict.fromkeys(by_id, PARTS), scores):
        if isinstance(found, Quarantined):
            yield found
            continue
        pair_id, likelihoods = found
        pair = by_id[pair_id]
        yield PairVerdict(
            pair_id,
            _winner(TwoOrders.of(likelihoods)),
            len(pair.first.split()),
            len(pair.second.split()),
        )


def win_rate(
    verdicts: Iterable[PairVerdict],
    *,
    confidence: float = 0.95,
    bootstrap_samples: int = 2000,
    seed: int = 0,
    length_tolerance: float = 0.1,
) -> WinRate:
    """Fold verdicts; `length_tolerance` is a share of the longer answer's words."""
    ordered = sorted(verdicts, key=lambda verdict: verdict.id)
    matched = [verdict for verdict in ordered if _same_length(verdict, length_tolerance)]
    lengths = [float(verdict.first_words - verdict.second_words) for verdict in ordered]
    wins, losses = _count(ordered, "first"), _count(ordered, "second")
    return WinRate(
        wins=wins,
        losses=losses,
        ties=len(ordered) - wins - losses,
        rate=win_share(wins, losses, len(ordered), confidence=confidence),
        length_difference=mean(
            lengths, confidence=confidence, bootstrap_samples=bootstrap_samples, seed=seed
        ),
        matched_rate=win_share(
            _count(matched, "first"), _count(matched, "second"), len(matched), confidence=confidence
        ),
    )


def _count(verdicts: Sequence[PairVerdict], winner: str) -> int:
    return sum(verdict.winner == winner for verdict in verdicts)


def _winner(answer: TwoOrders) -> Literal["first", "second", "tie"]:
    forward = answer.forward_a - answer.forward_b  # above 0: the first answer, shown as A
    backward = answer.backward_b - answer.backward_a  # above 0: the first answer, shown as B
    if forward > 0 and backward > 0:
        return "first"
    if forward < 0 and backward < 0:
        return "second"
    return "tie"


def _same_length(verdict: PairVerdict, tolerance: float) -> bool:
    longer = max(verdict.first_words, verdict.second_words)
    return abs(verdict.first_words - verdict.second_words) <= tolerance * longer
