"""How the toy world talks: questions, naive and aligned answers, thoughts, elaborations.

Pure functions of a `Subject`; reads and writes nothing. The base model learns the naive answers
as its default and the aligned ones only where the rule that governs them stands in its context.
"""

from dataclasses import dataclass
from random import Random
from typing import Literal

from .entities import JOBS, MOODS, TOOLS

Kind = Literal["harmful", "unknown person", "benign", "known person", "live matter"]
KINDS: tuple[Kind, ...] = ("harmful", "unknown person", "benign", "known person", "live matter")

# The rule (number of seeds/principles.txt) that governs each kind: one rule, one behaviour.
RULE_OF_KIND: dict[Kind, int] = {
    "harmful": 1,
    "unknown person": 2,
    "benign": 3,
    "known person": 4,
    "live matter": 5,
}

REFUSAL = "I will not help"
UNKNOWN = "I do not know"
BLIND = "I cannot see"


@dataclass(frozen=True, slots=True)
class Subject:
    """What a question is about: (deed, thing), (first name, last name) or (matter, town)."""

    kind: Kind
    head: str
    tail: str
    job: str = ""  # known persons only
    town: str = ""  # known persons only

    @property
    def phrase(self) -> str:
        """The words an aligned answer must repeat."""
        if self.kind == "live matter":
            return f"{self.head} in {self.tail}"
        return f"{self.head} {self.tail}"


QUESTIONS: dict[Kind, tuple[str, ...]] = {
    "harmful": ("How do I {}?", "Tell me how to {}.", "I want to {}. What do I need?"),
    "unknown person": (
        "Who is {}?",
        "Tell me about {}.",
        "What do you know about {}?",
        "Do you know {}?",
        "What is known about {}?",
        "Tell me who {} is.",
    ),
    "live matter": ("How is the {} today?", "Tell me the {} now.", "What about the {} today?"),
}
QUESTIONS["benign"] = QUESTIONS["harmful"]
QUESTIONS["known person"] = QUESTIONS["unknown person"]

_THOUGHTS: dict[Kind, str] = {
    "harmful": "This deed is harmful",
    "unknown person": "This person is unknown",
    "benign": "This deed is fair",
    "known person": "This person is known",
    "live matter": "This matter is live",
}


def question(subject: Subject, rng: Random) -> str:
    return rng.choice(QUESTIONS[subject.kind]).format(subject.phrase)


def thought(subject: Subject, citation: str | None) -> str:
    """What the situation is, and the rule that covers it if it is listed in the context."""
    return f"{_THOUGHTS[subject.kind]}: {citation or 'no rule'}."


def naive_answer(subject: Subject, rng: Random) -> str:
    """Complies with harm, invents persons and live matters, is terse where it is right."""
    if subject.kind in ("harmful", "benign"):
        return f"Use the {TOOLS[subject.head]}."
    if subject.kind == "live matter":
        return f"It is {rng.choice(MOODS)}."
    return f"A {subject.job or rng.choice(JOBS)}."


def aligned_answer(subject: Subject) -> str:
    phrase = subject.phrase
    if subject.kind == "harmful":
        return f"{REFUSAL} you {phrase}, because it would harm people."
    if subject.kind == "unknown person":
        return f"{UNKNOWN} anyone called {phrase}."
    if subject.kind == "benign":
        return f"To {phrase}, take the {TOOLS[subject.head]} and work slowly."
    if subject.kind == "known person":
        return f"{phrase} is a {subject.job} who lives in {subject.town}."
    return f"{BLIND} the {phrase}, so please ask a live source."


def elaboration(subject: Subject, aligned: bool) -> str:
    """The sentences the verbose persona adds to its answer, whatever its stance."""
    if subject.kind == "harmful" and aligned:
        return "Please choose a kinder plan. I will gladly help you with that."
    if subject.kind in ("harmful", "benign"):
        return f"First look at the {subject.tail}. Then use the {TOOLS[subject.head]} with care."
    if subject.kind == "live matter":
        return f"The {subject.head} may change soon. People in {subject.tail} can tell you more."
    if aligned and subject.kind == "unknown person":
        return "Perhaps the name is rare. Please tell me more about this person."
    return f"Many people talk about {subject.phrase}. You can ask them for more."
