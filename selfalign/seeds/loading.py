"""Reads a seeds directory: all of it, or a ConfigurationError that lists every problem."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from rapidfuzz.distance import Indel

from selfalign.config import SeedsConfig
from selfalign.seeds.citations import cited_rules
from selfalign.seeds.files import (
    EXEMPLARS,
    GENERAL,
    LABELS,
    PRINCIPLES,
    TEMPLATES,
    TOPIC_GUIDED,
    SeedFile,
    raise_problems,
    read_files,
    shown,
)
from selfalign.seeds.formats import (
    Dialogue,
    parse_exemplars,
    parse_labels,
    parse_principles,
    parse_template,
    parse_topic_guided,
)
from selfalign.seeds.model import Principle, Seeds, Templates, TopicSeed

# What is counted in which file; the configuration's field has the file's name.
COUNTED = {GENERAL: "lines", TOPIC_GUIDED: "lines", PRINCIPLES: "rules", EXEMPLARS: "dialogues"}
# Seeds this alike teach the model to repeat itself. Stricter than the novelty filter's 0.7
# (Self-Instruct), because people write short seeds that share a frame on purpose.
NEAR_IDENTICAL = 0.9
_WORD = re.compile(r"[^\W_]+")
_ARTICLES = frozenset({"a", "an", "the"})


def load_seeds(config: SeedsConfig) -> Seeds:
    """Read and check the whole directory.

    Raises ConfigurationError that lists every problem with file, line, what was expected, what
    was found and the remedy.
    """
    files = read_files(config.directory)
    for file in files.values():
        file.decode()
    _check_counts(files, config)
    general = list(files[GENERAL].lines())
    guided = parse_topic_guided(files[TOPIC_GUIDED])
    principles = parse_principles(files[PRINCIPLES])
    labels = parse_labels(files[LABELS])
    # Without labels there is no telling the turns of a dialogue.
    dialogues = parse_exemplars(files[EXEMPLARS], labels) if labels else []
    templates = {name: parse_template(files[file], labels) for name, file in TEMPLATES.items()}
    _check_distinct(
        [
            *((files[GENERAL], number, text) for number, text in general),
            *((files[TOPIC_GUIDED], number, seed.question) for number, seed in guided),
        ]
    )
    _check_types(files[TOPIC_GUIDED], guided)
    if files[PRINCIPLES].is_readable:
        _check_citations(files[EXEMPLARS], dialogues, principles)
    raise_problems(config.directory, files.values())
    assert labels is not None, "labels that cannot be read are a problem, raised above"
    return Seeds(
        tuple(text for _, text in general),
        tuple(seed for _, seed in guided),
        tuple(principles),
        tuple(dialogue.exemplar for dialogue in dialogues),
        labels,
        Templates(**templates),
    )


def _check_counts(files: dict[str, SeedFile], config: SeedsConfig) -> None:
    """A file must hold as many lines, or blocks of lines, as the configuration says."""
    for name, noun in COUNTED.items():
        field = name.partition(".")[0]
        expected = getattr(config, field)
        filled = [bool(line.strip()) for line in files[name].text.split("\n")]
        if name == EXEMPLARS:
            filled = [is_filled for is_filled, _ in groupby(filled)]
        found = filled.count(True)
        if found != expected:
            remedy = f"add or remove {noun}, or set seeds.{field}"
            files[name].refuse(0, f"{expected} {noun}", f"{found}", remedy)


def _check_distinct(lines: Sequence[tuple[SeedFile, int, str]]) -> None:
    """No two lines may be the same or nearly the same.

    The same: equal without regard to case, spacing, punctuation and articles. Nearly: a share
    of `NEAR_IDENTICAL` of the words in common, in order (ROUGE-L F, as in the novelty filter).
    """
    words = [
        [word for word in _WORD.findall(text.casefold()) if word not in _ARTICLES]
        for _, _, text in lines
    ]
    for index, (file, number, text) in enumerate(lines):
        for earlier in range(index):
            alike = Indel.normalized_similarity(words[earlier], words[index])
            if alike >= NEAR_IDENTICAL:
                other, other_number, _ = lines[earlier]
                verdict = "the same" if alike == 1 else "almost the same"
                found = f"{shown(text)}, {verdict} as {other.path.name}:{other_number}"
                file.refuse(number, "a seed unlike the others", found, "write another one")
                break


def _check_types(file: SeedFile, seeds: Sequence[tuple[int, TopicSeed]]) -> None:
    """A type has one spelling, and a topic occurs once in it."""
    types: dict[str, tuple[int, str]] = {}
    topics: dict[tuple[str, str], int] = {}
    for number, seed in seeds:
        line, spelling = types.setdefault(seed.type.casefold(), (number, seed.type))
        if spelling != seed.type:
            expected = f"the type spelled as in line {line}, {shown(spelling)}"
            file.refuse(number, expected, shown(seed.type), "spell a type in one way")
        line = topics.setdefault((seed.type.casefold(), seed.topic.casefold()), number)
        if line != number:
            expected = "a topic that its type does not have yet"
            found = f"{shown(seed.topic)}, as in line {line}"
            file.refuse(number, expected, found, "choose another topic")


def _check_citations(
    file: SeedFile, dialogues: Sequence[Dialogue], principles: Sequence[Principle]
) -> None:
    """Every thought of an exemplar cites at least one rule, by its number and its name."""
    for exemplar, lines in dialogues:
        for turn, number in zip(exemplar.turns, lines, strict=True):
            rules, problems = cited_rules(turn.thought, principles)
            for problem in problems:
                expected = "citations of rules in principles.txt"
                found = f"a thought that {problem}"
                file.refuse(number, expected, found, "cite a rule as `N (name)`")
            if not rules and not problems:
                expected = "a thought that cites a rule as `N (name)`"
                remedy = "name the rules that the answer follows"
                file.refuse(number, expected, shown(turn.thought), remedy)
