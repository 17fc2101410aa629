"""Leaks of the prompt into an answer, recognised by content, never by banned words.

The reference implementation banned "Sorry" and dropped every apology, which skews refusals. Here
an answer is dropped for words of an exemplar or of the persona prompt in a row, for a label or
for a cited rule; how it refuses or what it speaks of is nobody's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from selfalign.filters.words import runs_of, words_of
from selfalign.seeds import Exemplar, Labels, Principle, Template, cited_rules

_Run = tuple[str, ...]


def leaks_exemplar(
    response: str, exemplars: Sequence[Exemplar], ngram: int, *, prompt: str
) -> bool:
    """Whether `ngram` words in a row come from a message, thought or answer of an exemplar.

    Words that stand in a row in the user's own prompt are no leak.
    """
    return _shares_run(response, _exemplar_runs(tuple(exemplars), ngram), ngram, prompt)


def leaks_persona(response: str, template: Template, ngram: int, *, prompt: str) -> bool:
    """Whether `ngram` words in a row come from the template's own text.

    Words that stand in a row in the user's own prompt are no leak.
    """
    return _shares_run(response, _template_runs(template, ngram), ngram, prompt)


def leaks_label(response: str, labels: Labels) -> bool:
    """Whether a label of the dialogue stands anywhere in the answer, spelled as in the prompt."""
    return any(
        re.search(rf"(?<!\w){re.escape(label)}", response) is not None for label in labels.all
    )


def leaks_citation(response: str, principles: Sequence[Principle]) -> bool:
    """Whether the answer cites a rule by number and name: to its reader there are none."""
    return bool(cited_rules(response, principles).rules)


@lru_cache(maxsize=8)
def _exemplar_runs(exemplars: tuple[Exemplar, ...], ngram: int) -> frozenset[_Run]:
    return _runs(
        (
            text
            for exemplar in exemplars
            for turn in exemplar.turns
            for text in (turn.query, turn.thought, turn.answer)
        ),
        ngram,
    )


@lru_cache(maxsize=8)
def _template_runs(template: Template, ngram: int) -> frozenset[_Run]:
    return _runs(template.literals, ngram)


def _shares_run(response: str, forbidden: frozenset[_Run], ngram: int, prompt: str) -> bool:
    shared = _runs([response], ngram) & forbidden
    return bool(shared and shared - _runs([prompt], ngram))


def _runs(texts: Iterable[str], ngram: int) -> frozenset[_Run]:
    """Every run of `ngram` words of the texts, case and punctuation aside."""
    found: set[_Run] = set()
    for text in texts:
        found.update(runs_of(words_of(text), ngram))
    return frozenset(found)
