"""Verdicts on completions of stages 2 and 4: kept with what was cut, or dropped with the reason.

Self-Align (Sun et al. 2023), sec. 3.2 and 3.4, and its released scripts name the filters; two
differ here. No word is banned, an apology or a refusal is judged like any other answer; and an
answer cut by the token limit is cut back to its last complete sentence, so that no half
sentence is learnt.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from selfalign.config import AlignConfig, ElaborateConfig
from selfalign.filters.cuts import cut_at_next_turn, cut_repeated_clause, cut_to_complete_sentence
from selfalign.filters.leaks import leaks_citation, leaks_exemplar, leaks_label, leaks_persona
from selfalign.filters.thoughts import Dropped, parse_thought
from selfalign.records import FinishReason
from selfalign.seeds import Seeds, cited_rules

KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer that passed. A verbose one has no thought and cites no rules.

    `verdicts` names every filter applied and what it did: "kept", or "cut: 12 characters".
    """

    response: str
    verdicts: dict[str, str]
    thought: str = ""
    rules: tuple[int, ...] = ()


@dataclass(slots=True)
class _Answer:
    """An answer on its way through the cuts."""

    text: str
    truncated: bool
    verdicts: dict[str, str] = field(default_factory=dict)

    def cut(self, name: str, text: str) -> bool:
        """Take over a cut text, note it, say whether anything went."""
        removed = len(self.text) - len(text)
        self.verdicts[name] = f"cut: {removed} characters" if removed else KEPT
        self.text = text
        return removed > 0


def filter_aligned(
    completion: str, finish_reason: FinishReason, *, prompt: str, seeds: Seeds, config: AlignConfig
) -> Kept | Dropped:
    """Judge a completion of the principled prompt (stage 2).

    In this order: no_answer, empty_thought, empty_answer; the cuts of `_cut`; unfinished (broke
    off, and too little of it is complete); too_short; no_cited_rule and miscited_rule (where
    rules are required); label_leak; citation_leak; exemplar_leak.
    """
    parsed = parse_thought(completion, seeds.labels)
    if isinstance(parsed, Dropped):
        return parsed
    answer = _cut(parsed.response, finish_reason, seeds)
    if not answer.text:
        return Dropped("unfinished" if answer.truncated else "empty_answer")
    if len(answer.text) < config.min_answer_characters:
        return Dropped("unfinished" if answer.truncated else "too_short")
    citations = cited_rules(parsed.thought, seeds.principles)
    if config.require_cited_rule and (citations.problems or not citations.rules):
        return Dropped("miscited_rule" if citations.problems else "no_cited_rule")
    leak = _aligned_leak(answer.text, prompt, seeds, config)
    if leak is not None:
        return Dropped(leak)
    passed = ("too_short", "label_leak", "citation_leak", "exemplar_leak")
    answer.verdicts.update(dict.fromkeys(passed, KEPT))
    answer.verdicts["cited_rules"] = "; ".join(citations.problems) or KEPT
    return Kept(answer.text, answer.verdicts, parsed.thought, citations.rules)


def _aligned_leak(text: str, prompt: str, seeds: Seeds, config: AlignConfig) -> str | None:
    if leaks_label(text, seeds.labels):
        return "label_leak"
    if leaks_citation(text, seeds.principles):
        return "citation_leak"
    if leaks_exemplar(text, seeds.exemplars, config.exemplar_leak_ngram, prompt=prompt):
        return "exemplar_leak"
    return None


def filter_verbose(
    completion: str,
    finish_reason: FinishReason,
    *,
    prompt: str,
    seeds: Seeds,
    config: ElaborateConfig,
) -> Kept | Dropped:
    """Judge a completion of the verbose prompt (stage 4).

    In this order: the cuts of `_cut`; unfinished (broke off, and fewer complete characters than
    `min_unfinished_characters`); empty_answer; label_leak; persona_leak.
    """
    answer = _cut(completion.strip(), finish_reason, seeds)
    if answer.truncated and len(answer.text) < max(1, config.min_unfinished_characters):
        return Dropped("unfinished")
    if not answer.text:
        return Dropped("empty_answer")
    if leaks_label(answer.text, seeds.labels):
        return Dropped("label_leak")
    persona = seeds.templates.verbose
    if leaks_persona(answer.text, persona, config.persona_leak_ngram, prompt=prompt):
        return Dropped("persona_leak")
    answer.verdicts.update(dict.fromkeys(("label_leak", "persona_leak"), KEPT))
    return Kept(answer.text, answer.verdicts)


def _cut(text: str, finish_reason: FinishReason, seeds: Seeds) -> _Answer:
    """Cut at the next turn, at a repetition, and back to the last complete sentence.

    A next turn means that the answer had ended, whatever came after. Otherwise a completion
    that met the token limit is unfinished, and so is one that was cut at a repetition: both
    lose what comes after their last complete sentence.
    """
    answer = _Answer(text, truncated=finish_reason == "length")
    if answer.cut("next_turn", cut_at_next_turn(answer.text, seeds.labels)):
        answer.truncated = False
    looped = answer.cut("repetition", cut_repeated_clause(answer.text))
    if looped or answer.truncated:
        answer.cut("unfinished", cut_to_complete_sentence(answer.text))
    return answer
