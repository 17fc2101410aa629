"""Asking which of two texts is better, in both orders, and gathering what an engine answers.

A model that leans towards "A" gives that lean once to each candidate, so it cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from selfalign.engines.base import Quarantined, Score, ScoreRequest
from selfalign.errors import DataError, EngineError
from selfalign.seeds import Template

_Found = TypeVar("_Found")
# The four log-likelihoods of one comparison, by the order shown and the letter continued with.
PARTS = ("first,second:A", "first,second:B", "second,first:A", "second,first:B")


def two_order_requests(
    item_id: str, template: Template, query: str, first: str, second: str, **more: str
) -> Iterator[ScoreRequest]:
    """The four requests of one comparison; two and two share a prompt."""
    prompts = (
        template.fill({"query": query, "a": first, "b": second, **more}),
        template.fill({"query": query, "a": second, "b": first, **more}),
    )
    for part, prompt in zip(PARTS, (prompts[0], prompts[0], prompts[1], prompts[1]), strict=True):
        letter = part[-1]
        yield ScoreRequest(request_id(item_id, part), prompt, template.continuation(letter))


def request_id(item_id: str, part: str) -> str:
    """Names one of an item's requests."""
    return f"{item_id}#{part}"


def gather(
    parts: Mapping[str, Sequence[str]],
    scores: Iterable[Score | Quarantined],
    read: Callable[[str, Mapping[str, float]], Iterable[_Found]],
) -> Iterator[_Found | Quarantined]:
    """Group scores, which come in any order, by item, and yield what each item's say.

    An item is read as soon as its last part is in, so that only what is open is held. An item
    of which a part cannot be scored is yielded as Quarantined, by its own id.

    Args:
        parts: for every item id, the parts it was asked in.
        scores: of the requests named by `request_id`.
        read: what an item's id and its parts' log-likelihoods say.

    Raises:
        DataError: a log-likelihood is not a finite number.
        EngineError: a score belongs to no request, comes twice or never.
    """
    open_items: dict[str, dict[str, float]] = {}
    bad: dict[str, Quarantined] = {}
    done: set[str] = set()
    for score in scores:
        item_id, _, part = score.id.rpartition("#")
        if item_id not in parts or part not in parts[item_id]:
            raise EngineError(f"the engine scored {score.id!r}, which was not asked for")
        if item_id in done or part in open_items.get(item_id, {}):
            raise EngineError(f"the engine scored {score.id!r} twice")
        if isinstance(score, Quarantined):
            bad.setdefault(item_id, replace(score, id=item_id))
        elif not math.isfinite(score.log_likelihood):
            raise DataError(
                f"{score.id}: expected a finite log-likelihood, got {score.log_likelihood}",
                remedy="the model's weights are broken: look at its training's losses, or "
                "evaluate in a wider dtype",
            )
        value = math.nan if isinstance(score, Quarantined) else score.log_likelihood
        open_items.setdefault(item_id, {})[part] = value
        if len(open_items[item_id]) == len(parts[item_id]):
            done.add(item_id)
            likelihoods = open_items.pop(item_id)
            yield from [bad.pop(item_id)] if item_id in bad else read(item_id, likelihoods)
    missing = [item_id for item_id in parts if item_id not in done]
    if missing:
        raise EngineError(
            f"the engine left {len(missing)} of {len(parts)} items without a score, "
            f"first {missing[0]!r}"
        )
