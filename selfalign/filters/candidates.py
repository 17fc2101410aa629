"""What a list prompt brings back: tasks, questions or topics, parsed and judged (stage 1).

A list prompt ends in the number of its next item, so a completion begins with that item's text:
" Write a poem.\\n7. Explain tides.\\n8." after "6.". Sources of the rules: Self-Instruct (Wang et
al. 2023, sec. 3.2) and Self-Align (Sun et al. 2023, sec. 3.1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import regex

from selfalign.filters.words import count_words, folded
from selfalign.records import FinishReason, record_seed
from selfalign.seeds import Hint
from selfalign.seeds.formats import MAX_TOPIC_WORDS

CandidateVerdict = Literal["too_short", "too_long", "impossible_medium", "bad_start"]

_MARKER = re.compile(r"[ \t]*(\d{1,4})[ \t]*[.)](?!\d)[ \t]*")
# What a text model can neither take nor give (Self-Instruct), as whole words, also in plural.
_IMPOSSIBLE_MEDIUM = re.compile(
    r"\b(?:images?|graphs?|pictures?|files?|maps?|draw|plots?|go to|videos?|audios?|music"
    r"|flowcharts?|diagrams?)\b",
    re.IGNORECASE,
)
_TOPIC = regex.compile(r"[\p{L}\p{N}](?:[\p{L}\p{M}\p{N}]|[ \-'’&/.])*")
# A letter or a digit of any script, after the marks that open a sentence in Spanish.
_GOOD_START = regex.compile(r"[¿¡]{0,2}[\p{L}\p{N}]")
_AROUND_A_TOPIC = " \t\"'“”‘’*_.,;:"


def parse_numbered_list(
    completion: str, next_number: int, finish_reason: FinishReason
) -> list[str]:
    """The items of a continued list, in order, each on one line.

    An item is opened by `N.` or `N)` at the start of a line; lines that follow without a blank
    line between continue it. The completion may repeat the number it was to continue, or start
    again at 1. The next number, followed by a capital letter, opens an item within a line too. The
    list ends at the first number that is not the next one, and at a line without a number after
    a blank line. The last item of a truncated generation is dropped,
    unless the list had ended before.
    """
    lines = completion.split("\n")
    head = next((index for index, line in enumerate(lines) if line.strip()), len(lines) - 1)
    marker = _MARKER.match(lines[head])
    if marker and int(marker[1]) in (next_number, 1):
        number, lines = int(marker[1]), lines[head:]
    else:
        number, lines[0] = next_number, f"{next_number}. {lines[0]}"
    items: list[str] = []
    ended = after_blank = False
    for line in lines:
        marker = _MARKER.match(line)
        if not line.strip():
            after_blank = True
            continue
        if marker and int(marker[1]) == number:
            text, number = line[marker.end() :], number + 1
            while inline := re.search(rf"\s{number}[.)] +(?=['\"A-Z])", text):
                items.append(text[: inline.start()])
                text, number = text[inline.end() :], number + 1
            items.append(text)
        elif marker or (after_blank and items[-1].strip()):
            ended = True
            break
        else:
            items[-1] += f" {line}"
        after_blank = False
    if finish_reason == "length" and not ended:
        items.pop()
    spaced = (" ".join(item.split()) for item in items)
    return [item for item in spaced if item]


def parse_questions(
    completion: str, hints: Sequence[Hint], next_number: int, finish_reason: FinishReason
) -> dict[int, str]:
    """Questions by the index of the hint they answer: of the items, those that repeat a hint.

    An item is `(type; topic) question`. The hint's case and spacing are free. One question per
    hint: the first counts. Items under an unknown hint or without one are left out.
    """
    patterns = [_hint_pattern(hint) for hint in hints]
    answered: dict[int, str] = {}
    for item in parse_numbered_list(completion, next_number, finish_reason):
        for index, pattern in enumerate(patterns):
            match = pattern.fullmatch(item)
            if match:
                answered.setdefault(index, match[1])
                break
    return answered


def _hint_pattern(hint: Hint) -> re.Pattern[str]:
    words = r"\s+".join(map(re.escape, hint.text.split()))
    return re.compile(rf"\(\s*{words}\s*\)\s*(\S.*)", re.IGNORECASE | re.DOTALL)


def parse_topics(
    completion: str, next_number: int, finish_reason: FinishReason, *, known: Iterable[str] = ()
) -> list[str]:
    """New topics: items in the form of a noun phrase of at most three words, each once.

    The form is letters, digits, spaces and `- ' & / .` alone, after quotes and closing
    punctuation have been taken off: no sentence, no question. Topics that differ from an
    earlier or `known` one only in case are left out.
    """
    seen = {folded(topic) for topic in known}
    topics = []
    for item in parse_numbered_list(completion, next_number, finish_reason):
        topic = item.strip(_AROUND_A_TOPIC)
        is_phrase = _TOPIC.fullmatch(topic) and len(topic.split()) <= MAX_TOPIC_WORDS
        if is_phrase and folded(topic) not in seen:
            seen.add(folded(topic))
            topics.append(topic)
    return topics


def balance_topics(
    by_type: Mapping[str, Sequence[str]], cap: int | None, seed: int
) -> dict[str, list[str]]:
    """As many topics of every type as the smallest type has (Self-Align, sec. 3.1), at most `cap`.

    Which topics stay depends on `seed` and on the sets of topics, not on their order; those
    that stay keep their order. Topics of one type are taken to be distinct.
    """
    size = min((len(topics) for topics in by_type.values()), default=0)
    if cap is not None:
        size = min(size, cap)
    balanced = {}
    for question_type, topics in by_type.items():
        ranked = sorted(topics, key=lambda topic: record_seed(seed, question_type, topic))
        chosen = set(ranked[:size])
        balanced[question_type] = [topic for topic in topics if topic in chosen]
    return balanced


def candidate_verdict(text: str, *, min_words: int, max_words: int) -> CandidateVerdict | None:
    """The first filter that drops a candidate prompt, or None where all keep it.

    too_short, too_long: fewer or more words than asked for (Self-Instruct: 4 to 150).
    impossible_medium: it names what a text model can neither take nor give.
    bad_start: it opens with anything but a letter or a digit, as fragments and markup do.
        (Self-Instruct takes ASCII alone: English. Here the seeds decide the language.)
    """
    num_words = count_words(text)
    if num_words < min_words:
        return "too_short"
    if num_words > max_words:
        return "too_long"
    if _IMPOSSIBLE_MEDIUM.search(text):
        return "impossible_medium"
    if not _GOOD_START.match(folded(text).lstrip()):
        return "bad_start"
    return None
