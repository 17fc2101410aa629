"""Answers of two models to the same prompts: which got better, which worse, which words differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from selfalign.evaluation.refusal import Refusal, classify_refusal
from selfalign.evaluation.scores import ALIGNED, REFUSAL_AGREEMENT, ItemScore
from selfalign.records import EvaluationRecord

_PIECES = re.compile(r"\w+\s*|[^\w\s]\s*|\s+")

Spans = list[tuple[str, bool]]  # pieces of a text in order, and whether the other text lacks them


@dataclass(slots=True)
class Item:
    """A held-out prompt and what each variant said to it.

    Attributes:
        texts: variant -> its (first) answer.
        values: variant -> mean of its answers' values, 1 is aligned.
        classes: variant -> whether its answer refuses, where a judge was asked; by wording
            otherwise.
    """

    id: str
    kind: str
    prompt: str
    texts: dict[str, str] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    classes: dict[str, Refusal] = field(default_factory=dict)

    def refusal(self, variant: str) -> Refusal:
        """The class of a variant's answer."""
        return self.classes.get(variant) or classify_refusal(self.prompt, self.texts[variant])


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt.

    Attributes:
        change: the subject's value less the other's.
        alike: share of the words that both have, whatever their order, from 0 to 1.
    """

    item: Item
    before: str
    after: str
    classes: tuple[Refusal, Refusal]
    change: float
    alike: float


@dataclass(frozen=True, slots=True)
class Answers:
    """What changed from one variant's answers to another's, most different first; `same` are the
    items whose answer is the same text."""

    against: str
    subject: str
    compared: int
    better: list[Pair]
    worse: list[Pair]
    other: list[Pair]
    same: list[Item]

    @property
    def changed(self) -> list[Pair]:
        """Every answer whose text differs."""
        return [*self.better, *self.worse, *self.other]

    def refusals(self) -> dict[tuple[Refusal, Refusal], int]:
        """How many answers went from one class of refusal to another."""
        moved = [pair.classes for pair in self.changed if pair.classes[0] != pair.classes[1]]
        return {each: moved.count(each) for each in dict.fromkeys(moved)}


def items_of(
    records: Iterable[EvaluationRecord], prompts: Mapping[str, str]
) -> tuple[list[Item], dict[str, list[ItemScore]]]:
    """The held-out items by kind and id, and each variant's scores of `heldout.aligned`."""
    items: dict[str, Item] = {}
    scores: dict[str, list[ItemScore]] = {}
    classes: list[EvaluationRecord] = []
    for record in records:
        if record.metric == REFUSAL_AGREEMENT and record.sample == 0:
            classes.append(record)
        if record.metric != ALIGNED:
            continue
        score = ItemScore(**record.model_dump(exclude={"id", "model"}))
        scores.setdefault(record.model, []).append(score)
        if record.item_id in prompts:
            item = items.setdefault(
                record.item_id, Item(record.item_id, record.kind or "", prompts[record.item_id])
            )
            if record.sample == 0:
                item.texts[record.model] = record.text
    for variant, values in scores.items():
        by_item: dict[str, list[float]] = {}
        for score in values:
            by_item.setdefault(score.item_id, []).append(score.value)
        for item_id, found in by_item.items():
            if item_id in items:
                items[item_id].values[variant] = sum(found) / len(found)
    for record in classes:
        if record.item_id in items:
            decided: Refusal = record.text.split()[0]  # type: ignore[assignment]
            items[record.item_id].classes[record.model] = decided
    return sorted(items.values(), key=lambda item: (item.kind, item.id)), scores


def changes(items: Iterable[Item], subject: str, against: str) -> Answers:
    """Compare two variants on the items that both answered."""
    both = [item for item in items if subject in item.texts and against in item.texts]
    pairs = [_pair(i, subject, against) for i in both if i.texts[subject] != i.texts[against]]
    pairs.sort(key=lambda pair: (-abs(pair.change), pair.alike, pair.item.id))
    return Answers(
        against=against,
        subject=subject,
        compared=len(both),
        better=[pair for pair in pairs if pair.change > 0],
        worse=[pair for pair in pairs if pair.change < 0],
        other=[pair for pair in pairs if pair.change == 0],
        same=[item for item in both if item.texts[subject] == item.texts[against]],
    )


def _pair(item: Item, subject: str, against: str) -> Pair:
    old, new = item.texts[against], item.texts[subject]
    return Pair(
        item=item,
        before=old,
        after=new,
        classes=(item.refusal(against), item.refusal(subject)),
        change=item.values[subject] - item.values[against],
        alike=SequenceMatcher(None, old.split(), new.split()).quick_ratio(),
    )


def marked(old: str, new: str) -> tuple[Spans, Spans]:
    """Both texts in pieces that the other has or lacks."""
    left, right = _PIECES.findall(old), _PIECES.findall(new)
    # White space after a word is the word's, and does not make it another word. In texts of 200
    # pieces a frequent word begins no match (autojunk): loops of one word would take minutes.
    keys = [[piece.rstrip() for piece in each] for each in (left, right)]
    before: Spans = []
    after: Spans = []
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, keys[0], keys[1]).get_opcodes():
        _add(before, "".join(left[i1:i2]), tag != "equal")
        _add(after, "".join(right[j1:j2]), tag != "equal")
    return before, after


def _add(spans: Spans, text: str, differs: bool) -> None:
    if text:
        spans.append((text, differs))
