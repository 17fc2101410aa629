"""Where an answer is cut: at the next turn, at a repetition, at its last complete sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator

from selfalign.filters.thoughts import line_label
from selfalign.filters.words import WORD, folded, words_of
from selfalign.seeds import Labels

# Own choices: a shorter sentence ("Stir well.") or clause ("if you like") may well recur.
MIN_SENTENCE_WORDS = 5
MIN_CLAUSE_WORDS = 8
MIN_LOOP_COPIES = 3
MIN_LOOP_WORDS = 12

# One character over and over at the end ("!!!!…"): own choice, longer than a ruled line needs.
_CHARACTER_LOOP = re.compile(r"(\S)(\1{23,})\Z")
_CLOSERS = r"[\"'”’)\]»*_]*"
_TERMINATED = re.compile(rf"(?:[.!?…]+{_CLOSERS}|[。！？]+)\Z")
# A sentence ends at its punctuation or at the end of the line.
_SENTENCE = re.compile(rf"\S[^\n]*?(?:[.!?…]+{_CLOSERS}(?=\s|\Z)|[。！？]+|(?=\n)|\Z)")
_CLAUSE = re.compile(r"(?:[^,;:—]|[,;:—](?=\S))+")
_FENCE = "```"
# What a cut may leave at the end: an empty list marker, an opened bracket, a comma.
_DANGLING = re.compile(r"(?:(?:\A|\n)[ \t]*(?:\d{1,3}[.)]|[-*•+]))?[\s,;:–—(\-]*\Z")
_NO_SENTENCE_END = re.compile(r"(?:\A\d{1,3}\.|\b(?:e\.g|i\.e|Mrs?|Ms|Dr|St|vs)\.)\Z")


def cut_at_next_turn(text: str, labels: Labels) -> str:
    """The text before the first line that opens with a label."""
    turn = line_label(labels).search(text)
    return text[: turn.start()].rstrip() if turn else text


def cut_repeated_clause(text: str) -> str:
    """The text before its first repetition; all of it where there is none. What counts:

    - a sentence of 5 words or more, ended by punctuation, that occurred before;
    - a clause (what commas, semicolons, colons and dashes set apart) of 8 words or more that
      occurred before: the whole sentence goes, or, where both are in one sentence, the rest;
    - a loop at the end: any run of words three times or more in a row up to the last word, 12
      words or more in all, the last copy perhaps incomplete: one copy stays. Likewise one
      character 24 times or more.

    Case, spacing and punctuation do not count. Lines without closing punctuation (code, headings,
    verses, tables) and blocks fenced by ``` may recur, save in a loop.
    """
    positions = [p for p in (_repetition(text), _loop(text)) if p is not None]
    if not positions:
        return text
    return _DANGLING.sub("", text[: min(positions)]).rstrip()


def _repetition(text: str) -> int | None:
    """Where the first repeated sentence or clause begins."""
    sentences: set[tuple[str, ...]] = set()
    clauses: dict[tuple[str, ...], int] = {}
    for start, sentence in _prose_sentences(text):
        key = _key(sentence)
        if len(key) >= MIN_SENTENCE_WORDS and key in sentences:
            return start
        sentences.add(key)
        for clause in _CLAUSE.finditer(sentence):
            key = _key(clause[0])
            if len(key) < MIN_CLAUSE_WORDS:
                continue
            first = clauses.setdefault(key, start + clause.start())
            if first != start + clause.start():
                return start if first < start else start + clause.start()
    return None


def _prose_sentences(text: str) -> Iterator[tuple[int, str]]:
    """Sentences that end in punctuation, outside fenced blocks, with their positions."""
    position = 0
    for index, block in enumerate(text.split(_FENCE)):
        if index % 2 == 0:
            for match in _SENTENCE.finditer(block):
                # The last sentence may have lost its end with the rest of the completion.
                if _TERMINATED.search(match[0]) or position + match.end() == len(text):
                    yield position + match.start(), match[0]
        position += len(block) + len(_FENCE)


def _loop(text: str) -> int | None:
    """Where the second copy of a loop that goes on to the end begins."""
    characters = _CHARACTER_LOOP.search(text)
    if characters:
        return characters.start(2)
    words: list[tuple[int, str]] = [
        (match.start(), folded(match[0])) for match in WORD.finditer(text)
    ]
    count = len(words)
    for period in range(1, count // MIN_LOOP_COPIES + 1):
        repeated = 0
        while (
            repeated < count - period
            and words[count - 1 - repeated][1] == words[count - 1 - repeated - period][1]
        ):
            repeated += 1
        length = repeated + period
        if length >= max(MIN_LOOP_COPIES * period, MIN_LOOP_WORDS):
            return words[count - repeated][0]
    return None


def cut_to_complete_sentence(text: str) -> str:
    """The text up to the last sentence or line that is complete; empty where there is none.

    For a text that broke off. A line but the last is complete unless it ends in a comma or
    colon; a sentence is complete at its closing punctuation, which list markers ("2.") and
    titles ("Dr.") are not. A fenced block that was never closed is left out.
    """
    if text.count(_FENCE) % 2:
        text = text[: text.rindex(_FENCE)].rstrip() + "\n"
    end = 0
    for match in _SENTENCE.finditer(text):
        if _TERMINATED.search(match[0]):
            complete = not _NO_SENTENCE_END.search(match[0])
        else:
            complete = match.end() < len(text) and match[0].rstrip()[-1] not in ",;:–—-("
        if complete:
            end = match.end()
    return text[:end].rstrip()


def _key(text: str) -> tuple[str, ...]:
    return tuple(words_of(text))
