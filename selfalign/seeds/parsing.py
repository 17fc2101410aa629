"""The format of each seed file: text in, dataclasses and problems out. Pure.

general.txt         one task a line
topic_guided.jsonl  one {"type", "topic", "question"} a line
principles.txt      `N (name): text` a line, numbered from 1
exemplars.txt       dialogues; see `dialogues`
templates/*.txt     text with the holes in `HOLES`; its final newline is stripped
templates/labels.yaml   user, thought, answer: what opens a line of a dialogue
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from selfalign.seeds.model import Labels, Principle, Template, TopicSeed
from selfalign.seeds.problems import Problems, shown

MAX_TOPIC_WORDS = 3  # Self-Align, sec. 3.1: a topic is a noun phrase of at most three words
_DIALOGUE = (frozenset({"query"}), frozenset({"user", "answer"}))
HOLES: dict[str, tuple[frozenset[str], frozenset[str]]] = {  # by template: required, optional
    "self_instruct": (frozenset({"examples", "next_number"}), frozenset()),
    "topics": (frozenset({"type", "examples", "next_number"}), frozenset()),
    "questions": (frozenset({"examples", "hints", "next_number"}), frozenset()),
    "align": (
        frozenset({"principles", "exemplars", "query"}),
        frozenset({"user", "thought", "answer"}),
    ),
    "verbose": _DIALOGUE,
    "distil_standard": _DIALOGUE,
    "distil_concise": _DIALOGUE,
}
_PRINCIPLE = re.compile(r"(\d+) \(([^()]+)\): (\S.*)")
_TOPIC_KEYS = ("type", "topic", "question")
_LABEL_KEYS = ("user", "thought", "answer")


def lines_of(file: str, text: str, problems: Problems) -> Iterator[tuple[int, str]]:
    """Numbered lines; an empty one, or one with a space at an end, is a problem and left out."""
    lines = text.removesuffix("\n").split("\n") if text else []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            problems.add(file, number, "a line of text", "an empty line", "remove it")
        elif line != line.strip():
            expected = "no space at either end of the line"
            problems.add(file, number, expected, shown(line), "remove it, a model would see it")
        else:
            yield number, line


def parse_topic_guided(file: str, text: str, problems: Problems) -> list[tuple[int, TopicSeed]]:
    """Topic-guided seeds with their line numbers."""
    seeds = []
    for number, line in lines_of(file, text, problems):
        try:
            value: Any = json.loads(line)
        except json.JSONDecodeError as error:
            expected = 'a JSON object {"type": …, "topic": …, "question": …}'
            found = f"{error.msg} at column {error.colno}"
            problems.add(file, number, expected, found, "correct the line")
            continue
        except (ValueError, RecursionError):  # an integer of 5,000 digits, 100,000 brackets
            found = "a number or a nesting beyond any limit"
            problems.add(file, number, "a small JSON object", found, "correct the line")
            continue
        if _has_lone_surrogate(value):
            found = "half of a surrogate pair, an escape such as \\ud800"
            problems.add(file, number, "text", found, "write the character itself")
            continue
        if _fields_are_right(file, number, value, problems):
            seeds.append((number, TopicSeed(**value)))
    return seeds


def _has_lone_surrogate(value: Any) -> bool:
    # JSON may hold one, and no tokenizer takes it.
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _fields_are_right(file: str, number: int, value: Any, problems: Problems) -> bool:
    if not isinstance(value, dict) or set(value) != set(_TOPIC_KEYS):
        keys = ", ".join(sorted(value)) if isinstance(value, dict) else type(value).__name__
        expected = "an object with exactly the keys type, topic and question"
        problems.add(file, number, expected, keys or "no keys", "write these three")
        return False
    good = True
    for key in _TOPIC_KEYS:
        text = value[key]
        if not isinstance(text, str) or text != " ".join(text.split()) or not text:
            found = shown(text) if isinstance(text, str) else repr(text)
            problems.add(file, number, f"{key}: text on one line, spaced once", found, "correct it")
            good = False
        elif key == "topic" and len(text.split()) > MAX_TOPIC_WORDS:
            expected = f"a topic of at most {MAX_TOPIC_WORDS} words"
            found = f"{shown(text)} of {len(text.split())} words"
            problems.add(file, number, expected, found, "shorten the topic")
            good = False
    return good


def parse_principles(file: str, text: str, problems: Problems) -> list[Principle]:
    """Principles; their numbering must be 1, 2, 3, … without a gap, their names distinct."""
    rules: list[Principle] = []
    lines_by_name: dict[str, int] = {}
    expected_number = 1
    for number, line in lines_of(file, text, problems):
        match = _PRINCIPLE.fullmatch(line)
        if match is None:
            remedy = "write number, name in parentheses, colon, text"
            problems.add(file, number, "`N (name): text`", shown(line), remedy)
            expected_number += 1
            continue
        rule = Principle(int(match[1]), match[2], match[3])
        if rule.number != expected_number:
            remedy = "number the rules 1, 2, 3, … and correct the exemplars that cite them"
            problems.add(file, number, f"rule {expected_number}", f"rule {rule.number}", remedy)
        expected_number = rule.number + 1
        earlier = lines_by_name.setdefault(rule.name.casefold().strip(), number)
        if earlier != number:
            found = f"({rule.name}) as in line {earlier}"
            problems.add(file, number, "a name no other rule has", found, "rename one of the two")
        rules.append(rule)
    return rules


def parse_labels(file: str, text: str, problems: Problems) -> Labels | None:
    """The three labels; none may be empty or be the beginning of another."""
    try:
        value: Any = yaml.safe_load(text) if len(text) < 10_000 and "*" not in text else None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        found = getattr(error, "problem", None) or "something else"
        line = mark.line + 1 if mark else 0
        problems.add(file, line, "YAML with user, thought and answer", found, "correct the line")
        return None
    if not isinstance(value, dict) or set(value) != set(_LABEL_KEYS):
        keys = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
        expected = "exactly the keys user, thought and answer"
        problems.add(file, 0, expected, keys, "write one label under each")
        return None
    good = True
    for key in _LABEL_KEYS:
        label = value[key]
        others = [value[other] for other in _LABEL_KEYS if other != key]
        if not isinstance(label, str) or not label or label != " ".join(label.split()):
            expected = "text on one line, spaced once"
        elif any(isinstance(other, str) and other.startswith(label) for other in others):
            expected = "a label that no other label begins with"
        else:
            continue
        good = False
        lines = text.split("\n")
        line = next((n for n, raw in enumerate(lines, 1) if raw.startswith(key)), 0)
        problems.add(file, line, f"{key}: {expected}", repr(label), "choose another label")
    return Labels(**value) if good else None


def parse_template(file: str, name: str, text: str, problems: Problems) -> Template:
    """A template; its holes must be those its prompt fills, and the required ones all there."""
    template = Template(name, text.removesuffix("\n"))
    required, optional = HOLES[name]
    known = ", ".join(f"{{{hole}}}" for hole in sorted(required | optional))
    for number, line in enumerate(template.text.split("\n"), 1):
        for hole in Template(name, line).holes:
            if hole not in required | optional:
                remedy = "rename or remove the hole"
                problems.add(file, number, f"one of the holes {known}", f"{{{hole}}}", remedy)
    for hole in sorted(required - set(template.holes)):
        remedy = "put it where its text belongs"
        problems.add(file, 0, f"the hole {{{hole}}}", "no such hole", remedy)
    return template
