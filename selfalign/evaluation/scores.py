"""What one model scored on one item of one metric: the unit everything here is paired by.

Every metric counts upwards (1 is what the item wants) except the guards, where 1 is an answer that
is broken, and the length, which is neither good nor bad.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfalign.config import GuardsConfig

ALIGNED = "heldout.aligned"
REFUSAL_MUST = "heldout.refusal.must"
REFUSAL_MUST_NOT = "heldout.refusal.must_not"
LENGTH_WORDS = "heldout.length_words"
HHH = "hhh"
MC1 = "mc1"
MC2 = "mc2"

# What a judge says of the final model's answer beside another model's: 1 it is better, 0 the other
# is, 0.5 neither. The second: of answers of about the same length alone. The third: of items that
# put a principle of the seeds to the test, whose kind there is the principle's name.
WIN_RATE = "judge.win_rate"
WIN_RATE_SAME_LENGTH = "judge.win_rate.same_length"
WIN_RATE_PRINCIPLE = "judge.win_rate.principle"
JUDGED = (WIN_RATE, WIN_RATE_SAME_LENGTH, WIN_RATE_PRINCIPLE)
AGREEMENT = "judge.agreement"  # of the judge with people, on pairs that they labelled
REFUSAL_AGREEMENT = "judge.refusal_agreement"  # with the wording, on whether an answer refuses
JUDGE = "judge"  # what is scored there, among the models

GUARD = "guard."  # of each answer to a held-out prompt, see `guards.py`
GUARDS = tuple(GUARD + name for name in GuardsConfig.ceilings())

HARNESS = "harness."  # of a task of lm-evaluation-harness, see `harness.py`

# Which setting makes a metric exist: what a person is told when a rule names an absent one.
SOURCES: dict[str, str] = {
    ALIGNED: "evaluate.heldout",
    REFUSAL_MUST: "evaluate.heldout",
    REFUSAL_MUST_NOT: "evaluate.heldout",
    LENGTH_WORDS: "evaluate.heldout",
    **dict.fromkeys(GUARDS, "evaluate.heldout"),
    HHH: "evaluate.hhh",
    MC1: "evaluate.truthfulqa",
    MC2: "evaluate.truthfulqa",
    **dict.fromkeys((*JUDGED, REFUSAL_AGREEMENT), "evaluate.judge"),
    AGREEMENT: "evaluate.judge.labelled",
}

# Not proportions, even on the night when every value happens to be 0 or 1.
CONTINUOUS = frozenset({LENGTH_WORDS, MC2})


def source_of(metric: str) -> str | None:
    """The setting that makes a metric exist; None where there is no such metric."""
    return "evaluate.harness" if metric.startswith(HARNESS) else SOURCES.get(metric)


@dataclass(frozen=True, slots=True)
class ItemScore:
    """One value; a record of the `evaluation` artifact. Paired by (model, metric, item_id).

    Attributes:
        item_id: the test item's id, the same for every model.
        metric: one of the names above (or of a harness task).
        kind: the item's kind or category; None where the data has none.
        value: 0 or 1 for a proportion, any number for a continuous metric.
        length_words: words of the completion; None where nothing was generated.
        text: the completion, or the candidate the model chose; empty for the guards, whose
            answer the other metrics hold; of a judge what it said (`pairwise.py`).
        sample: which of several answers to the same item, from 0.
        against: whose answer a judge saw beside; None for what is scored by itself.
    """

    item_id: str
    metric: str
    kind: str | None
    value: float
    length_words: int | None
    text: str
    sample: int = 0
    against: str | None = None


def metric_name(metric: str, kind: str | None) -> str:
    """How a person names a metric or its part for one kind: `hhh`, `hhh/harmless`."""
    return metric if kind is None else f"{metric}/{kind}"


def split_metric_name(name: str) -> tuple[str, str | None]:
    """The inverse of `metric_name`."""
    metric, slash, kind = name.partition("/")
    return metric, kind if slash else None
