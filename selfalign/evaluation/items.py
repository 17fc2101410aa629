"""The items of the evaluation sets, and how one is read strictly.

A field of the wrong type, missing, unknown or contradicting another is a DataError.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import regex
from pydantic import BeforeValidator, StringConstraints, TypeAdapter, ValidationError

from selfalign.errors import DataError
from selfalign.evaluation.checks import Check, Strict

_Text = Annotated[str, StringConstraints(min_length=1)]
Winner = Literal["first", "second", "tie"]


def _compile(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("expected a regular expression")
    if not value:
        raise ValueError("an empty pattern is found everywhere")
    try:
        return regex.compile(value, regex.IGNORECASE)
    except regex.error as e:
        raise ValueError(f"not a regular expression: {e}") from e


_Pattern = Annotated[Any, BeforeValidator(_compile)]


@dataclass(frozen=True, slots=True)
class HeldoutItem(Strict):
    """A prompt no stage may see, with what a good answer holds.

    Attributes:
        refusal: whether the prompt must be refused, must not be, or neither is judged.
        all_of: every one must be found in the answer (searched, case ignored).
        none_of: none may be found.
        check: every one must pass, see `checks.py`.
        rubric: what a right answer does, for a person or a judge.
        reference: a short right answer; it satisfies the patterns and checks.
        principle: name of the principle that it puts to the test; the judge reads its text.
    """

    id: _Text
    kind: _Text
    prompt: _Text
    refusal: Literal["must", "must_not"] | None = None
    all_of: tuple[_Pattern, ...] = ()
    none_of: tuple[_Pattern, ...] = ()
    check: tuple[Check, ...] = ()
    rubric: _Text | None = None
    reference: _Text | None = None
    principle: _Text | None = None

    def __post_init__(self) -> None:
        if self.refusal is None and not self.all_of and not self.none_of and not self.check:
            raise ValueError("nothing to judge by: give refusal, all_of, none_of or check")


@dataclass(frozen=True, slots=True)
class HHHItem(Strict):
    """Two replies to one query, of which people found one more helpful, honest, harmless."""

    id: _Text
    category: _Text
    query: _Text
    chosen: _Text
    rejected: _Text

    def __post_init__(self) -> None:
        if self.chosen == self.rejected:
            raise ValueError("chosen and rejected are the same text")


@dataclass(frozen=True, slots=True)
class TruthfulQAItem(Strict):
    """A question with one best answer among `choices` (MC1).

    Attributes:
        gold: index of the best answer in `choices`.
        mc2_targets: each candidate of MC2 with 1 for true and 0 for false, where the data has it.
    """

    id: _Text
    question: _Text
    choices: tuple[_Text, ...]
    gold: int
    mc2_targets: dict[_Text, Literal[0, 1]] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if len(self.choices) < 2:
            raise ValueError(f"expected at least two choices, got {len(self.choices)}")
        if len(set(self.choices)) < len(self.choices):
            raise ValueError("a choice occurs twice")
        if not 0 <= self.gold < len(self.choices):
            raise ValueError(
                f"gold {self.gold} is no index of the {len(self.choices)} choices (from 0)"
            )
        if self.mc2_targets is not None and set(self.mc2_targets.values()) != {0, 1}:
            raise ValueError("mc2_targets needs at least one true (1) and one false (0) candidate")


@dataclass(frozen=True, slots=True)
class LabelledPair(Strict):
    """Two answers to a prompt, and which of them people found better."""

    prompt: _Text
    first: str
    second: str
    winner: Winner


Item = TypeVar("Item", HeldoutItem, HHHItem, TruthfulQAItem, LabelledPair)


def validate(adapter: TypeAdapter[Item], value: Any, where: str) -> Item:
    """One item from a decoded value; a DataError says `where` and which field."""
    try:
        # Through JSON: strict validation takes a JSON array, not a list, for a tuple.
        return adapter.validate_json(json.dumps(value))
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        # Without a field, the input is the whole item.
        got = repr(first["input"]) if place else ""
        shown = f" (got {got[:80]}{'…' if len(got) > 80 else ''})" if got else ""
        more = f"; {e.error_count() - 1} more in this item" if e.error_count() > 1 else ""
        raise DataError(
            f"{where}: {f'field {place}: ' if place else ''}{message}{shown}{more}",
            remedy="correct this item",
        ) from e
