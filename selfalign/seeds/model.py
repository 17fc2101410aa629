"""Seeds in memory: frozen dataclasses, no I/O.

A *principle* is a written rule, an *exemplar* a demonstration, a *template* text with holes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from selfalign.errors import ConfigurationError
from selfalign.seeds.citations import cited_rules

_HOLE = re.compile(r"\{([^{}\n]*)\}")


@dataclass(frozen=True, slots=True)
class Labels:
    """What opens a user's message, an internal thought and an answer, at the start of a line."""

    user: str
    thought: str
    answer: str

    @property
    def all(self) -> tuple[str, str, str]:
        """The three labels, in the order of a turn."""
        return (self.user, self.thought, self.answer)


@dataclass(frozen=True, slots=True)
class Principle:
    """A numbered rule. Its line in a prompt is `N (name): text`."""

    number: int
    name: str
    text: str

    @property
    def line(self) -> str:
        """The rule as it stands in principles.txt and in the prompt."""
        return f"{self.number} ({self.name}): {self.text}"


@dataclass(frozen=True, slots=True)
class Turn:
    """A user's message, the internal thought about it, and the answer."""

    query: str
    thought: str
    answer: str


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A dialogue of one turn or more that demonstrates thinking by the rules."""

    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Hint:
    """Type and topic of a question that is to be written."""

    type: str
    topic: str

    @property
    def text(self) -> str:
        """As it stands in parentheses before a question."""
        return f"{self.type}; {self.topic}"


@dataclass(frozen=True, slots=True)
class TopicSeed:
    """A question of an adversarial type about a topic (the paper's 20 types, one seed each)."""

    type: str
    topic: str
    question: str

    @property
    def hint(self) -> Hint:
        """Its type and topic."""
        return Hint(self.type, self.topic)


@dataclass(frozen=True, slots=True)
class Template:
    """Text with holes: `{query}` and the like. `name` is the file's name without its ending."""

    name: str
    text: str

    @property
    def holes(self) -> tuple[str, ...]:
        """Names of the holes, in order of appearance, repeated where they repeat."""
        return tuple(_HOLE.findall(self.text))

    @property
    def literals(self) -> tuple[str, ...]:
        """The text between the holes."""
        return tuple(_HOLE.split(self.text)[::2])

    def fill(self, values: Mapping[str, str]) -> str:
        """Put each value into its hole, literally.

        One pass over the template alone: braces inside a value are neither read nor changed.
        A hole without a value stays as it is.
        """
        return _HOLE.sub(lambda hole: values.get(hole[1], hole[0]), self.text)

    def continuation(self, word: str) -> str:
        """`word` as it directly continues the template: after a space unless one is there."""
        return word if self.text[-1:].isspace() else f" {word}"


@dataclass(frozen=True, slots=True)
class Templates:
    """One template per prompt the pipeline renders."""

    self_instruct: Template
    topics: Template
    questions: Template
    align: Template
    verbose: Template
    distil_standard: Template
    distil_concise: Template


@dataclass(frozen=True, slots=True)
class Seeds:
    """Everything people wrote, checked."""

    general: tuple[str, ...]
    topic_guided: tuple[TopicSeed, ...]
    principles: tuple[Principle, ...]
    exemplars: tuple[Exemplar, ...]
    labels: Labels
    templates: Templates

    def without_principle(self, number: int) -> Seeds:
        """The seeds with one rule taken out, for an ablation.

        The rule's line goes; the other rules keep their numbers, so that nothing else in the
        prompt changes meaning. Dialogues whose thoughts cite the rule go too: a citation of a
        rule that is not listed would still name it and show its effect, and rewriting a
        person's thought would leave an answer that nothing explains. The other dialogues stay
        byte for byte. What remains is the cost of fewer demonstrations, which the ablation
        would otherwise ascribe to the rule: compare with `without_exemplars_citing(number)`,
        which has the same dialogues and the full list of rules.

        Raises ConfigurationError where there is no such rule.
        """
        kept = self.without_exemplars_citing(number)
        rest = tuple(rule for rule in self.principles if rule.number != number)
        return replace(kept, principles=rest)

    def without_exemplar(self, number: int) -> Seeds:
        """The seeds without one dialogue, counted from 1 in the order of exemplars.txt.

        Raises ConfigurationError where there is no such dialogue.
        """
        if not 1 <= number <= len(self.exemplars):
            raise ConfigurationError(
                f"cannot leave out exemplar {number}: there are {len(self.exemplars)}",
                remedy="name one by its place in exemplars.txt, from 1",
            )
        rest = (*self.exemplars[: number - 1], *self.exemplars[number:])
        return replace(self, exemplars=rest)

    def without_exemplars_citing(self, number: int) -> Seeds:
        """The seeds without the dialogues that cite rule `number`; every rule stays.

        The control an ablation of that rule is to be compared with.
        Raises ConfigurationError where there is no such rule.
        """
        numbers = [rule.number for rule in self.principles]
        if number not in numbers:
            raise ConfigurationError(
                f"cannot leave out rule {number}: expected one of {numbers}",
                remedy="name a rule by its number in principles.txt",
            )
        kept = tuple(
            exemplar
            for exemplar in self.exemplars
            if not any(
                number in cited_rules(turn.thought, self.principles).rules
                for turn in exemplar.turns
            )
        )
        return replace(self, exemplars=kept)
