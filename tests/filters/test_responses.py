"""Thoughts are parsed, leaks found by content, and no manner of speaking is banned."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfalign.config import AlignConfig, ElaborateConfig, SeedsConfig
from selfalign.filters.leaks import leaks_citation, leaks_exemplar, leaks_label, leaks_persona
from selfalign.filters.responses import Kept, filter_aligned, filter_verbose
from selfalign.filters.thoughts import Dropped, ParsedResponse, parse_thought
from selfalign.records import FinishReason
from selfalign.seeds import load_seeds

SEEDS = load_seeds(SeedsConfig(directory=Path(__file__).parents[2] / "seeds"))
ALIGN = AlignConfig()
ELABORATE = ElaborateConfig()
PROMPT = "How do bees find their way home?"
THOUGHT = "This is a question of fact. Following rules 2 (informative) and 7 (candor), I answer."
ANSWER = (
    "Bees steer by the sun and remember what the land looks like on the way. Close to the hive "
    "they rely on landmarks and on smell. How exactly these senses work together is still a "
    "matter of research, and I may not know the latest of it."
)
REFUSAL = (
    "Sorry, I can't help with opening a lock that is not yours: it could harm the owner and bring "
    "you before a court. I'm sorry if you are locked out of your own home. As an AI language "
    "model I cannot come round, but a locksmith can, once you show that you live there."
)


def completion(thought: str = THOUGHT, answer: str = ANSWER) -> str:
    return f" {thought}\nAssistant: {answer}"


def aligned(
    text: str, finish_reason: FinishReason = "stop", config: AlignConfig = ALIGN
) -> Kept | Dropped:
    return filter_aligned(text, finish_reason, prompt=PROMPT, seeds=SEEDS, config=config)


def verbose(
    text: str, finish_reason: FinishReason = "stop", prompt: str = PROMPT
) -> Kept | Dropped:
    return filter_verbose(text, finish_reason, prompt=prompt, seeds=SEEDS, config=ELABORATE)


def test_thought_and_answer_are_told_apart() -> None:
    parsed = parse_thought(" I think.\n\nAssistant: It is so.\nAnd so. ", SEEDS.labels)
    assert parsed == ParsedResponse("I think.", "It is so.\nAnd so.")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" I think and think", "no_answer"),
        (" I think. Assistant: in the middle of a line", "no_answer"),
        (" I think.\nUser: Hello?\nAssistant: It is so.", "no_answer"),
        (" I think.\nAssistant (internal thoughts): more\nAssistant: It is so.", "no_answer"),
        ("\nAssistant: It is so.", "empty_thought"),
        (" I think.\nAssistant: \n", "empty_answer"),
        ("", "no_answer"),
    ],
)
def test_malformed_completion_is_dropped_with_its_reason(text: str, reason: str) -> None:
    assert parse_thought(text, SEEDS.labels) == Dropped(reason)
    assert aligned(text) == Dropped(reason)


def test_good_completion_is_kept_with_thought_rules_and_verdicts() -> None:
    kept = aligned(completion())
    assert isinstance(kept, Kept)
    assert (kept.thought, kept.rules, kept.response) == (THOUGHT, (2, 7), ANSWER)
    assert kept.verdicts == dict.fromkeys(
        ("next_turn", "repetition", "too_short", "cited_rules", "label_leak", "citation_leak",
         "exemplar_leak"), "kept",
    )  # fmt: skip


def test_apologies_and_refusals_pass_every_filter() -> None:
    kept = aligned(completion(answer=REFUSAL))
    assert isinstance(kept, Kept)
    assert kept.response == REFUSAL
    assert set(kept.verdicts.values()) == {"kept"}
    elaborated = verbose(REFUSAL)
    assert isinstance(elaborated, Kept)
    assert elaborated.response == REFUSAL
    assert set(elaborated.verdicts.values()) == {"kept"}


def test_refusal_is_as_short_as_any_answer_may_be() -> None:
    short = "Sorry, I can't help with that."
    assert aligned(completion(answer=short)) == Dropped("too_short")
    assert isinstance(
        aligned(completion(answer=short), config=AlignConfig(min_answer_characters=30)), Kept
    )


def test_answer_of_exactly_the_least_length_is_kept() -> None:
    config = AlignConfig(min_answer_characters=len(ANSWER))
    assert isinstance(aligned(completion(), config=config), Kept)
    assert aligned(completion(answer=ANSWER[1:]), config=config) == Dropped("too_short")


def test_next_turn_is_cut_off_and_noted() -> None:
    kept = aligned(completion(answer=f"{ANSWER}\nUser: And wasps"), "length")
    assert isinstance(kept, Kept)
    assert kept.response == ANSWER
    assert kept.verdicts["next_turn"] == "cut: 16 characters"
    assert "unfinished" not in kept.verdicts


def test_answer_that_broke_off_ends_at_its_last_complete_sentence() -> None:
    kept = aligned(completion(answer=f"{ANSWER} A last sentence that is nev"), "length")
    assert isinstance(kept, Kept)
    assert kept.response == ANSWER
    assert kept.verdicts["unfinished"] == "cut: 28 characters"


def test_answer_that_broke_off_too_early_is_dropped() -> None:
    unfinished = "Bees steer by the sun. " + "Near the hive they rely on landmarks and " * 2
    assert aligned(completion(answer=unfinished), "length") == Dropped("unfinished")
    assert verbose(unfinished, "length") == Dropped("unfinished")
    assert verbose("and so on", "length") == Dropped("unfinished")


def test_short_verbose_answer_that_ended_is_kept() -> None:
    kept = verbose(" The capital is Oslo. ")
    assert isinstance(kept, Kept)
    assert (kept.response, kept.thought, kept.rules) == ("The capital is Oslo.", "", ())


def test_repetition_is_cut_off_to_a_complete_sentence() -> None:
    looped = ANSWER + " And they fly home, and they fly home" + ", and they fly home" * 20
    for kept in (aligned(completion(answer=looped)), verbose(looped)):
        assert isinstance(kept, Kept)
        assert kept.response == ANSWER
        assert kept.verdicts["repetition"].startswith("cut: ")


def test_answer_that_is_nothing_but_a_loop_is_dropped() -> None:
    assert aligned(completion(answer="very " * 100)) == Dropped("empty_answer")
    assert verbose("very " * 100) == Dropped("empty_answer")
    assert verbose("very " * 100, "length") == Dropped("unfinished")


def test_empty_verbose_completion_is_dropped() -> None:
    assert verbose(" \n") == Dropped("empty_answer")
    assert verbose("User: hello") == Dropped("empty_answer")


def test_thought_must_cite_a_rule_by_its_right_name() -> None:
    assert aligned(completion("I simply answer.")) == Dropped("no_cited_rule")
    assert aligned(completion("By 3 (candor) I answer.")) == Dropped("miscited_rule")
    assert aligned(completion("By 7 (candor) and 17 (kindness).")) == Dropped("miscited_rule")


def test_citations_are_noted_where_they_are_not_required() -> None:
    config = AlignConfig(require_cited_rule=False)
    kept = aligned(completion("By 7 (candor) and 17 (kindness)."), config=config)
    assert isinstance(kept, Kept)
    assert kept.rules == (7,)
    assert kept.verdicts["cited_rules"] == "cites rule 17 (kindness), which is not listed"
    uncited = aligned(completion("I simply answer."), config=config)
    assert isinstance(uncited, Kept)
    assert uncited.rules == ()


def test_label_in_the_middle_of_an_answer_is_a_leak() -> None:
    leaked = f"{ANSWER} User: And wasps? Assistant: They too."
    assert aligned(completion(answer=leaked)) == Dropped("label_leak")
    assert verbose(leaked) == Dropped("label_leak")
    assert leaks_label("He wrote Assistant (internal thoughts): hm", SEEDS.labels)
    assert not leaks_label("SuperUser: a site. Assistant professors and users: many", SEEDS.labels)


def test_citing_a_rule_in_the_answer_is_a_leak_and_numbers_are_not() -> None:
    leaked = f"{ANSWER} I keep to rule 7 (candor)."
    assert aligned(completion(answer=leaked)) == Dropped("citation_leak")
    assert not leaks_citation("In 1969 (in July) it was so; rule 1 (of 3) says.", SEEDS.principles)


EXEMPLAR = SEEDS.exemplars[0].turns[0]


@pytest.mark.parametrize("source", [EXEMPLAR.query, EXEMPLAR.thought, EXEMPLAR.answer])
def test_words_of_an_exemplar_in_a_row_are_a_leak(source: str) -> None:
    words = source.split()
    twelve, eleven = " ".join(words[1:13]), " ".join(words[1:12])
    assert leaks_exemplar(f"So: {twelve} it is", SEEDS.exemplars, 12, prompt=PROMPT)
    assert leaks_exemplar(f"So {twelve.upper()} it", SEEDS.exemplars, 12, prompt=PROMPT)
    assert not leaks_exemplar(f"So: {eleven} it is", SEEDS.exemplars, 12, prompt=PROMPT)
    assert not leaks_exemplar(twelve, SEEDS.exemplars, 12, prompt=f"Translate: {twelve}")


def test_leaked_exemplar_is_dropped_and_its_subject_is_free() -> None:
    leaked = f"{ANSWER} {EXEMPLAR.answer}"
    assert aligned(completion(answer=leaked)) == Dropped("exemplar_leak")
    own = (
        "The Gotthard Base Tunnel is a railway tunnel through the Alps in Switzerland. With some "
        "57 kilometres it was the longest of its kind when trains first ran through it in 2016, "
        "and my knowledge may be out of date."
    )
    assert isinstance(aligned(completion(answer=own)), Kept)


def test_words_of_the_persona_in_a_row_are_a_leak() -> None:
    leaked = f"{ANSWER} The core of the answer comes first, then ordered paragraphs."
    assert leaks_persona(leaked, SEEDS.templates.verbose, 8, prompt=PROMPT)
    assert verbose(leaked) == Dropped("persona_leak")
    asked = "Explain: the core of the answer comes first, then ordered paragraphs."
    assert isinstance(verbose(leaked, prompt=asked), Kept)
    assert not leaks_persona(ANSWER, SEEDS.templates.verbose, 8, prompt=PROMPT)


def test_words_across_a_hole_of_the_persona_are_no_leak() -> None:
    template = SEEDS.templates.align
    before, after = (
        "Then it writes its answer which keeps to those",
        "rules without mentioning them",
    )
    assert leaks_persona(f"{before} {after}", template, 12, prompt="")
    assert not leaks_persona("The rules The conversations", template, 4, prompt="")
