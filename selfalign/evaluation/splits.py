"""Which evaluation items decide about tonight's model, and which its score is told from.

A model that is promoted was lucky on the items that promoted it, so its score on them is too high,
and the next model has to beat that luck. With `evaluate.choosing_share` the rules see a part of
the items of each file, drawn anew for each final model, and the scores in report and card are of
the others.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import chain

from selfalign.config import EvaluateConfig
from selfalign.evaluation.datasets import load_heldout
from selfalign.evaluation.harness import load_tasks
from selfalign.evaluation.items import HeldoutItem, HHHItem, TruthfulQAItem
from selfalign.evaluation.multiple_choice import SUITES
from selfalign.evaluation.scores import ALIGNED, HARNESS, SOURCES, WIN_RATE, ItemScore
from selfalign.records import record_seed

# A metric's source, or `harness.<name>` -> ids of the items that choose.
Chosen = Mapping[str, frozenset[str]]


def choosing_split(config: EvaluateConfig, model: str) -> Chosen:
    """The items of each file and task that choose; nothing where all of them do.

    Raises DataError, and for tasks of lm-evaluation-harness what `load_tasks` does.
    """
    share = config.choosing_share
    if share is None:
        return {}
    chosen: dict[str, frozenset[str]] = {}
    if config.heldout is not None:
        chosen[SOURCES[ALIGNED]] = choosing_items(load_heldout(config.heldout), share, model)
        chosen[SOURCES[WIN_RATE]] = chosen[SOURCES[ALIGNED]]
    for name, suite in SUITES.items():
        if (path := getattr(config, name)) is not None:
            chosen[f"evaluate.{name}"] = choosing_items(suite.load(path), share, model)
    for name, task in load_tasks(config.harness).items():
        drawn = (_draw(task.ids(leaf), share, model) for leaf in task.leaves)
        chosen[HARNESS + name] = frozenset(chain.from_iterable(drawn))
    return chosen


def choosing_items(
    items: Sequence[HeldoutItem | HHHItem | TruthfulQAItem], share: float, model: str
) -> frozenset[str]:
    """Ids of the items that choose: of each group the share, one at least, and where there are
    several not all. A group is a kind and side of refusal, a category of HHH, all of TruthfulQA.

    Args:
        model: digest of the final model. By it rather than by the night: to judge the same model
            again brings no second draw.
    """
    groups: dict[Hashable, list[str]] = {}
    for item in items:
        groups.setdefault(_group(item), []).append(item.id)
    return frozenset(chain.from_iterable(_draw(ids, share, model) for ids in groups.values()))


def _draw(ids: Iterable[str], share: float, model: str) -> list[str]:
    drawn = sorted(ids, key=lambda item_id: record_seed(0, "choosing", model, item_id))
    return drawn[: max(1, min(round(share * len(drawn)), len(drawn) - 1))]


def _group(item: HeldoutItem | HHHItem | TruthfulQAItem) -> Hashable:
    if isinstance(item, HeldoutItem):
        return item.kind, item.refusal
    return item.category if isinstance(item, HHHItem) else None


def scores_of(scores: Iterable[ItemScore], chosen: Chosen, *, choosing: bool) -> list[ItemScore]:
    """The scores on the items that choose, or on the others; those on other files are in both."""
    return [
        score
        for score in scores
        if (ids := chosen_of(score.metric, chosen)) is None or (score.item_id in ids) is choosing
    ]


def chosen_of(metric: str, chosen: Chosen) -> frozenset[str] | None:
    """Ids of the items that choose by this metric; None where all do."""
    source = SOURCES.get(metric, "")
    if metric.startswith(HARNESS):
        source = max((task for task in chosen if metric.startswith(f"{task}.")), default="")
    return chosen.get(source)
