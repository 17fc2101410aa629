"""From scores to a part of an evaluation: one record for each value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from selfalign.engines.base import Quarantined
from selfalign.evaluation.scores import ItemScore
from selfalign.records import EvaluationRecord
from selfalign.stages.contract import PartOutcome


def scored_part(model: str, task: str, found: Iterable[ItemScore | Quarantined]) -> PartOutcome:
    """The records of a model at a task, by metric and item, and the rows that were set aside."""
    outcome = PartOutcome()
    scores: list[ItemScore] = []
    bad: list[Quarantined] = []
    for each in found:
        bad.append(each) if isinstance(each, Quarantined) else scores.append(each)
    for score in sorted(scores, key=lambda score: (score.metric, score.item_id, score.sample)):
        names = (model, score.metric, score.against, score.item_id, score.sample or None)
        name = "/".join(str(part) for part in names if part is not None)
        outcome.keep(EvaluationRecord(id=name, model=model, **asdict(score)))
    for row in sorted(bad, key=lambda row: row.id):
        outcome.quarantine(row, f"{model}/{task}/{row.id}")
    return outcome
