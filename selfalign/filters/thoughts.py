"""Taking a principled completion apart: thought, then answer (stage 2).

The prompt ends in the label of the thought, so the completion begins with the thought's text;
the answer's label, at the start of a line, divides the two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from selfalign.seeds import Labels


@dataclass(frozen=True, slots=True)
class Dropped:
    """A completion that failed; `reason` is the name of the filter that dropped it."""

    reason: str


@dataclass(frozen=True, slots=True)
class ParsedResponse:
    """A thought followed by an answer, neither of them empty. The answer is not yet cut."""

    thought: str
    response: str


def parse_thought(completion: str, labels: Labels) -> ParsedResponse | Dropped:
    """Split a completion at the answer's label.

    no_answer: the answer's label is missing, or another turn comes first.
    empty_thought, empty_answer: nothing before, or nothing after, the answer's label.
    """
    first = line_label(labels).search(completion)
    if first is None or first["label"] != labels.answer:
        return Dropped("no_answer")
    thought = completion[: first.start()].strip()
    response = completion[first.end() :].strip()
    if not thought:
        return Dropped("empty_thought")
    if not response:
        return Dropped("empty_answer")
    return ParsedResponse(thought, response)


@cache
def line_label(labels: Labels) -> re.Pattern[str]:
    """Any label at the start of a line; its group `label` tells which."""
    any_label = "|".join(map(re.escape, labels.all))
    return re.compile(rf"^[ \t]*(?P<label>{any_label})", re.MULTILINE)
