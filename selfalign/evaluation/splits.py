"""Which held-out items decide about tonight's model, and which its score is told from.

A model that is promoted was lucky on the items that promoted it, so its score on them is too high,
and the next model has to beat that luck. With `evaluate.choosing_share` the rules see a part of
the items, drawn anew for each final model, and the scores in report and card are of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from selfalign.evaluation.items import HeldoutItem
from selfalign.evaluation.scores import LENGTH_WORDS, SOURCES, WIN_RATE, ItemScore
from selfalign.records import record_seed

_SPLIT = {SOURCES[LENGTH_WORDS], SOURCES[WIN_RATE]}  # what makes metrics of held-out items


def choosing_items(items: Sequence[HeldoutItem], share: float, model: str) -> frozenset[str]:
    """Ids of the items that choose: of each kind and side of refusal the share, one at least, and
    where there are several not all.

    Args:
        model: digest of the final model. By it rather than by the night: to judge the same model
            again brings no second draw.
    """
    groups: dict[tuple[str, str | None], list[str]] = {}
    for item in items:
        groups.setdefault((item.kind, item.refusal), []).append(item.id)
    chosen: set[str] = set()
    for ids in groups.values():
        ids.sort(key=lambda item_id: record_seed(0, "choosing", model, item_id))
        chosen.update(ids[: max(1, min(round(share * len(ids)), len(ids) - 1))])
    return frozenset(chosen)


def scores_of(
    scores: Iterable[ItemScore], chosen: frozenset[str], *, choosing: bool
) -> list[ItemScore]:
    """The scores on the items that choose, or on the others; those on other files are in both."""
    return [
        score
        for score in scores
        if SOURCES.get(score.metric) not in _SPLIT or (score.item_id in chosen) is choosing
    ]
