"""Two models' answers judged against each other by a third, in both orders.

The judge reads both answers and continues with " A" or " B". It is believed only where both
orders name the same answer; a disagreement is a tie (Zheng et al. 2023, arXiv 2306.05685).
Judges favour length, so a win rate never stands alone: the difference in length stands beside
it, and the win rate among pairs of about the same length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from selfalign.engines.base import Quarantined, Score, ScoreRequest
from selfalign.evaluation.items import Winner
from selfalign.evaluation.scores import AGREEMENT, WIN_RATE, ItemScore
from selfalign.evaluation.two_orders import PARTS, gather, two_order_requests
from selfalign.records import FrozenModel
from selfalign.seeds import Template

LENGTH_TOLERANCE = 0.1  # of the longer answer's words: about the same length
_VALUES: dict[Winner, float] = {"first": 1.0, "tie": 0.5, "second": 0.0}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt; `rubric` says what a right one does, `principle` is the text of
    the rule that it is to follow."""

    id: str
    prompt: str
    first: str
    second: str
    rubric: str | None = None
    principle: str | None = None


@dataclass(frozen=True, slots=True)
class PairVerdict:
    """Who won, and how long both were.

    Attributes:
        letters: which letter the judge preferred where the first answer was A, then where it was B
            ("AB": the first both times; "AA": a lean); "=" is neither. Empty for two answers that
            are the same text, which no judge is asked about.
    """

    id: str
    winner: Winner
    letters: str
    first_words: int
    second_words: int

    @property
    def value(self) -> float:
        """Of the first answer: 1 won, 0 lost, 0.5 neither."""
        return _VALUES[self.winner]

    @property
    def same_length(self) -> bool:
        """Whether the two are of about the same length."""
        longer = max(self.first_words, self.second_words)
        return abs(self.first_words - self.second_words) <= LENGTH_TOLERANCE * longer


class OrderBias(FrozenModel):
    """How a judge's preference depends on the order of two answers.

    Attributes:
        against: whose answers stood beside the final model's.
        asked: pairs of two different texts.
        disagree: share of them in which the orders did not name the same answer.
        chose_a: share of these in which it was "A" both times; the rest is "B" or undecided.
    """

    against: str
    asked: int
    disagree: float | None
    chose_a: float | None


def pairwise_requests(pairs: Iterable[Pair], template: Template) -> Iterator[ScoreRequest]:
    """Four requests per pair, for the judge's engine; none for two answers of the same text."""
    for pair in pairs:
        if pair.first != pair.second:
            rubric = f"\nWhat a right answer does: {pair.rubric}\n" if pair.rubric else ""
            rubric += f"\nThe principle to judge by: {pair.principle}\n" if pair.principle else ""
            yield from two_order_requests(
                pair.id, template, pair.prompt, pair.first, pair.second, rubric=rubric
            )


def pairwise_verdicts(
    pairs: Sequence[Pair], scores: Iterable[Score | Quarantined]
) -> Iterator[PairVerdict | Quarantined]:
    """The verdict on each pair as soon as its four scores are in.

    Raises DataError or EngineError, as `gather` does.
    """
    by_id = {pair.id: pair for pair in pairs if pair.first != pair.second}
    for pair in pairs:
        if pair.id not in by_id:
            yield _verdict(pair, "")

    def read(pair_id: str, likelihoods: Mapping[str, float]) -> Iterator[PairVerdict]:
        a, b, swapped_a, swapped_b = (likelihoods[part] for part in PARTS)
        sides = ((a, b), (swapped_a, swapped_b))
        letters = "".join("A" if a > b else "B" if b > a else "=" for a, b in sides)
        yield _verdict(by_id[pair_id], letters)

    yield from gather(dict.fromkeys(by_id, PARTS), scores, read)


def order_bias(against: str, scores: Iterable[ItemScore]) -> OrderBias:
    """From the letters of all pairs, which are the texts of `judge.win_rate`."""
    letters = [score.text for score in scores if score.metric == WIN_RATE and score.text]
    torn = [each for each in letters if each not in ("AB", "BA")]
    return OrderBias(
        against=against,
        asked=len(letters),
        disagree=len(torn) / len(letters) if letters else None,
        chose_a=torn.count("AA") / len(torn) if torn else None,
    )


def agreement(pair_id: str, judge: Winner, people: Winner) -> ItemScore:
    """The score of a judge on one labelled pair; its text is both winners, the judge's first."""
    return ItemScore(pair_id, AGREEMENT, None, float(judge == people), None, f"{judge} {people}")


def kappa(scores: Iterable[ItemScore]) -> float | None:
    """Cohen's kappa of a judge and people: agreement beyond what chance would give, from -1 to 1;
    None where chance alone would agree always (Cohen 1960, Educ. Psychol. Meas. 20, 37-46)."""
    pairs = [tuple(score.text.split()) for score in scores if score.metric == AGREEMENT]
    judge, people = Counter(pair[0] for pair in pairs), Counter(pair[1] for pair in pairs)
    chance = sum(judge[name] * people[name] for name in judge) / max(len(pairs), 1) ** 2
    if not pairs or chance == 1:
        return None
    return (sum(ours == theirs for ours, theirs in pairs) / len(pairs) - chance) / (1 - chance)


def _verdict(pair: Pair, letters: str) -> PairVerdict:
    winner: Winner = {"AB": "first", "BA": "second"}.get(letters, "tie")  # type: ignore[assignment]
    return PairVerdict(pair.id, winner, letters, len(pair.first.split()), len(pair.second.split()))
