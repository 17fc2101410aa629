"""The format of each seed file: text in, dataclasses out; a problem is noted at its line. Pure.

general.txt         one task a line
topic_guided.jsonl  one {"type", "topic", "question"} a line
principles.txt      `N (name): text` a line, numbered from 1
exemplars.txt       dialogues, separated by one blank line. A turn is a user line, a thought line
                    and an answer line, each opened by its label; a line without a label continues
                    the one before. A dialogue may have several turns
templates/*.txt     text with the holes in `HOLES`; its final newline is stripped
templates/labels.yaml   user, thought, answer: what opens a line of a dialogue
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml
from pydantic_core import from_json

from selfalign.seeds.files import SeedFile, shown
from selfalign.seeds.model import Exemplar, Labels, Principle, Template, TopicSeed, Turn

MAX_TOPIC_WORDS = 3  # Self-Align, sec. 3.1: a topic is a noun phrase of at most three words
ROLES = ("user", "thought", "answer")  # of the parts of a turn, in order
_DIALOGUE = (frozenset({"query"}), frozenset({"user", "answer"}))
HOLES: dict[str, tuple[frozenset[str], frozenset[str]]] = {  # by template: required, optional
    "self_instruct": (frozenset({"examples", "next_number"}), frozenset()),
    "topics": (frozenset({"type", "examples", "next_number"}), frozenset()),
    "questions": (frozenset({"examples", "hints", "next_number"}), frozenset()),
    "align": (frozenset({"principles", "exemplars", "query"}), frozenset(ROLES)),
    "verbose": _DIALOGUE,
    "distil_standard": _DIALOGUE,
    "distil_concise": _DIALOGUE,
}
_PRINCIPLE = re.compile(r"(\d+) \(([^()]+)\): (\S.*)")


def parse_topic_guided(file: SeedFile) -> list[tuple[int, TopicSeed]]:
    """Topic-guided seeds with their line numbers."""
    seeds = []
    for number, line in file.lines():
        try:
            value = from_json(line)  # bounds nesting and numbers, refuses half a surrogate pair
        except ValueError as error:
            expected = 'a JSON object {"type": …, "topic": …, "question": …}'
            remedy = "correct the line; half of a surrogate pair, such as \\ud800, is no text"
            file.refuse(number, expected, f"{error}", remedy)
            continue
        fields = _text_fields(file, number, value, ("type", "topic", "question"))
        if fields is None:
            continue
        seed = TopicSeed(**fields)
        words = len(seed.topic.split())
        if words > MAX_TOPIC_WORDS:
            expected = f"a topic of at most {MAX_TOPIC_WORDS} words"
            found = f"{shown(seed.topic)} of {words} words"
            file.refuse(number, expected, found, "shorten the topic")
        seeds.append((number, seed))
    return seeds


def _text_fields(
    file: SeedFile, line: int, value: Any, keys: tuple[str, ...]
) -> dict[str, str] | None:
    """The object, if it has these keys and text on one line under each; else None.

    `line` is where the object is; 0 where it has lines of its own that begin with a key.
    """
    if not isinstance(value, dict) or set(value) != set(keys):
        found = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
        expected = f"exactly the keys {keys[0]}, {keys[1]} and {keys[2]}"
        file.refuse(line, expected, found or "no keys", "write one text under each of these")
        return None
    good = True
    for key, text in value.items():
        if not isinstance(text, str) or not text or text != " ".join(text.split()):
            found = shown(text) if isinstance(text, str) else repr(text)
            expected = f"{key}: text on one line, spaced once"
            file.refuse(line or _line_of(file, key), expected, found, "correct it")
            good = False
    return value if good else None


def _line_of(file: SeedFile, key: str) -> int:
    lines = file.text.split("\n")
    return next((number for number, line in enumerate(lines, 1) if line.startswith(key)), 0)


def parse_labels(file: SeedFile) -> Labels | None:
    """The three labels; none may be the beginning of another."""
    if len(file.text) >= 10_000:
        file.refuse(0, "three short labels", f"{len(file.text)} characters", "shorten the labels")
        return None
    try:
        for event in yaml.parse(file.text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):  # could expand to any length
                file.refuse(0, "each label written out", f"*{event.anchor}", "write the text")
                return None
        value = yaml.safe_load(file.text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        found = getattr(error, "problem", None) or "something else"
        line = mark.line + 1 if mark else 0
        file.refuse(line, "YAML with user, thought and answer", found, "correct the line")
        return None
    fields = _text_fields(file, 0, value, ROLES)
    if fields is None:
        return None
    begun = [
        key
        for key, label in fields.items()
        if any(fields[other].startswith(label) for other in ROLES if other != key)
    ]
    for key in begun:
        expected = f"{key}: a label that no other label begins with"
        file.refuse(_line_of(file, key), expected, repr(fields[key]), "choose another label")
    return None if begun else Labels(**fields)


def parse_principles(file: SeedFile) -> list[Principle]:
    """Principles; their numbering must be 1, 2, 3, … without a gap, their names distinct."""
    rules: list[Principle] = []
    lines_by_name: dict[str, int] = {}
    expected_number = 1
    for number, line in file.lines():
        match = _PRINCIPLE.fullmatch(line)
        if match is None:
            remedy = "write number, name in parentheses, colon, text"
            file.refuse(number, "`N (name): text`", shown(line), remedy)
            expected_number += 1
            continue
        rule = Principle(int(match[1]), match[2], match[3])
        if rule.number != expected_number:
            remedy = "number the rules 1, 2, 3, … and correct the exemplars that cite them"
            file.refuse(number, f"rule {expected_number}", f"rule {rule.number}", remedy)
        expected_number = rule.number + 1
        earlier = lines_by_name.setdefault(rule.name.casefold().strip(), number)
        if earlier != number:
            found = f"({rule.name}) as in line {earlier}"
            file.refuse(number, "a name no other rule has", found, "rename one of the two")
        rules.append(rule)
    return rules


class Dialogue(NamedTuple):
    """An exemplar, and the line of each turn's thought."""

    exemplar: Exemplar
    lines: tuple[int, ...]


def parse_exemplars(file: SeedFile, labels: Labels) -> list[Dialogue]:
    """The dialogues without problems, in order."""
    dialogues = []
    for block in _blocks(file):
        parts = _parts(file, block, labels)
        if parts:
            texts = [text for _, text in parts]
            turns = map(Turn, texts[::3], texts[1::3], texts[2::3])
            lines = tuple(number for number, _ in parts[1::3])
            dialogues.append(Dialogue(Exemplar(tuple(turns)), lines))
    return dialogues


def _blocks(file: SeedFile) -> Iterator[list[tuple[int, str]]]:
    """Numbered lines of each dialogue."""
    blocks: list[list[tuple[int, str]]] = [[]]
    lines = file.text.removesuffix("\n").split("\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            blocks[-1].append((number, line.rstrip()))
        elif blocks[-1] and number < len(lines):
            blocks.append([])
        else:
            expected = "one empty line between dialogues and none elsewhere"
            file.refuse(number, expected, "another one", "remove it")
    return filter(None, blocks)


def _parts(
    file: SeedFile, lines: list[tuple[int, str]], labels: Labels
) -> list[tuple[int, str]] | None:
    """Messages, thoughts and answers in turn, each with its first line; None if ill-formed."""
    parts: list[tuple[int, str]] = []
    end = (lines[-1][0], None)
    for number, line in [*lines, end]:
        label = next((label for label in labels.all if line and line.startswith(label)), None)
        role = ROLES[len(parts) % 3]
        if line is not None and label is None and parts:
            start, text = parts[-1]
            parts[-1] = (start, f"{text}\n{line}")
        elif line is not None and label == getattr(labels, role):
            parts.append((number, line.removeprefix(label or "")))
        elif line is not None or role != ROLES[0]:
            expected = f"{getattr(labels, role)!r} (the {role} label)"
            found = "the end of the dialogue" if line is None else shown(line)
            remedy = "give each turn a message, a thought and an answer"
            file.refuse(number, expected, found, remedy)
            return None
    parts = [(number, text.strip()) for number, text in parts]
    for index, (number, text) in enumerate(parts):
        if not text:
            expected = f"text after the {ROLES[index % 3]} label"
            file.refuse(number, expected, "nothing", "write the text")
    return parts if all(text for _, text in parts) else None


def parse_template(file: SeedFile, labels: Labels | None) -> Template:
    """A template. Its holes must be those its prompt fills, and the required ones all there.

    It must end where the model goes on: with a number, or with the label of what is asked for.
    """
    template = Template(file.path.stem, file.text.removesuffix("\n"))
    required, optional = HOLES[template.name]
    known = ", ".join(f"{{{hole}}}" for hole in sorted(required | optional))
    lines = template.text.split("\n")
    for number, line in enumerate(lines, 1):
        for hole in Template(template.name, line).holes:
            if hole not in required | optional:
                remedy = "rename or remove the hole"
                file.refuse(number, f"one of the holes {known}", f"{{{hole}}}", remedy)
    for hole in sorted(required - set(template.holes)):
        file.refuse(0, f"the hole {{{hole}}}", "no such hole", "put it where its text belongs")
    role = "thought" if template.name == "align" else "answer"
    if "next_number" in required:
        expected = "{next_number}"
        good = expected in lines[-1]
    else:
        label = getattr(labels, role, "")  # without labels any ending will do
        expected = f"{{{role}}} or {label!r}"
        good = template.text.endswith((f"{{{role}}}", label))
    if not good and template.text.strip():
        remedy = "end with it, the model goes on from there"
        file.refuse(len(lines), f"{expected} at the end", shown(lines[-1]), remedy)
    return template
