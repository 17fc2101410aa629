"""Rendered prompts: what the model sees, from seeds and one record. Pure.

A list prompt ends in the number of the item the model is to write, a dialogue prompt in a
label; a completion begins right there, usually with a space.

**Values are inserted literally.** Templates are filled in one pass over the template alone, so
braces in a query are plain characters. **A query cannot open a turn**: a line of it that
begins with a label is joined to the line before by a space ("…\\nUser: x" becomes "… User: x"),
since turns open at the start of a line and nowhere else. Nothing else of a query is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Literal

from selfalign.records import digest
from selfalign.seeds import Exemplar, Hint, Labels, Principle, Seeds, Template, TopicSeed

PromptName = Literal[
    "self_instruct", "topics", "questions", "align", "verbose", "distil_standard", "distil_concise"
]


def render_self_instruct(seeds: Seeds, examples: Sequence[str]) -> str:
    """Asks for more tasks after `examples` (stage 1a). The model writes item len + 1 onwards."""
    return seeds.templates.self_instruct.fill(
        {"examples": _numbered(examples), "next_number": str(len(examples) + 1)}
    )


def render_topics(seeds: Seeds, question_type: str, topics: Sequence[str]) -> str:
    """Asks for more topics of a type after the known `topics` (stage 1b)."""
    return seeds.templates.topics.fill(
        {"type": question_type, "examples": _numbered(topics), "next_number": str(len(topics) + 1)}
    )


def render_questions(seeds: Seeds, examples: Sequence[TopicSeed], hints: Sequence[Hint]) -> str:
    """Asks for one question per hint after the `examples` (stage 1b).

    A line is `N. (type; topic) question`. The hints bear the numbers of the lines to come.
    """
    next_number = len(examples) + 1
    lines = [f"({seed.hint.text}) {seed.question}" for seed in examples]
    return seeds.templates.questions.fill(
        {
            "examples": _numbered(lines),
            "hints": _numbered([f"({hint.text})" for hint in hints], next_number),
            "next_number": str(next_number),
        }
    )


def render_align(seeds: Seeds, query: str) -> str:
    """Preamble, principles, exemplars, the query; ends in the label of the thought (stage 2)."""
    return seeds.templates.align.fill(
        {
            **asdict(seeds.labels),
            "principles": render_principles(seeds.principles),
            "exemplars": render_exemplars(seeds.exemplars, seeds.labels),
            "query": neutralise(query, seeds.labels),
        }
    )


def render_verbose(seeds: Seeds, query: str) -> str:
    """The query under the verbose persona; ends in the label of the answer (stage 4, teacher)."""
    return _render_dialogue(seeds.templates.verbose, seeds.labels, query)


def render_standard(seeds: Seeds, query: str) -> str:
    """The query under the short standard prompt (stages 3 and 4, students; evaluation)."""
    return _render_dialogue(seeds.templates.distil_standard, seeds.labels, query)


def render_concise(seeds: Seeds, query: str) -> str:
    """The query under the concise prompt (stage 4, student: every other example)."""
    return _render_dialogue(seeds.templates.distil_concise, seeds.labels, query)


def render_principles(principles: Iterable[Principle]) -> str:
    """The rules, one a line."""
    return "\n".join(principle.line for principle in principles)


def render_exemplars(exemplars: Iterable[Exemplar], labels: Labels) -> str:
    """The dialogues as they stand in exemplars.txt: a blank line between two."""
    return "\n\n".join(
        "\n".join(
            f"{labels.user} {turn.query}\n{labels.thought} {turn.thought}\n"
            f"{labels.answer} {turn.answer}"
            for turn in exemplar.turns
        )
        for exemplar in exemplars
    )


def template_digest(seeds: Seeds, name: PromptName) -> str:
    """SHA-256 in hex of what prompt `name` shows the model whatever the record: provenance.

    The template with its labels, principles and exemplars filled in and the record's own holes
    (query, examples, …) left open. Editing a principle changes the digest of `align` alone.
    """
    template: Template = getattr(seeds.templates, name)
    constant = template.fill(
        {
            **asdict(seeds.labels),
            "principles": render_principles(seeds.principles),
            "exemplars": render_exemplars(seeds.exemplars, seeds.labels),
        }
    )
    return digest({"name": name, "text": constant})


def neutralise(query: str, labels: Labels) -> str:
    """The query with the line ends (and blanks) before each label replaced by one space.

    Labels are recognised whatever their case and spacing, and after spaces: to a language model
    " user :" opens a turn as well. The words of the query stay as they are. The chat template that
    goes with a model says the same in jinja.
    """
    openers = tuple(compact(label) for label in labels.all)
    pieces, start, position = [], 0, 0
    for number, line in enumerate(query.splitlines(keepends=True)):
        text = line.lstrip()
        if number and compact(text).startswith(openers):
            pieces += [query[start:position].rstrip(), " "]
            start = position + len(line) - len(text)
        position += len(line)
    return "".join([*pieces, query[start:]])


def compact(text: str) -> str:
    """The text without case and white space, in which labels are compared."""
    return "".join(text.casefold().split())


def stop_strings(labels: Labels) -> tuple[str, ...]:
    """Strings that end a completion: the next turn's message, or a second thought.

    The answer's label is none of them: between thought and answer it is wanted.
    """
    return (f"\n{labels.user}", f"\n{labels.thought}")


def _render_dialogue(template: Template, labels: Labels, query: str) -> str:
    return template.fill({**asdict(labels), "query": neutralise(query, labels)})


def _numbered(items: Sequence[str], first: int = 1) -> str:
    """A numbered list; line breaks inside an item become spaces, an item is a line."""
    return "\n".join(
        f"{number}. {' '.join(item.split())}" for number, item in enumerate(items, first)
    )
