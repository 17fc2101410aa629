"""The pretraining corpus: documents in which behaviour depends on the rules in the context.

Reads a `World` and the `Seeds`; yields `Document`s, writes nothing. A document is a list of
segments; only the segments marked `learn` carry loss, because the rest (which question comes
next, which rules are listed) is drawn at random and could only add noise to the gradient.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from .entities import HARMFUL_DEEDS, JOBS, LIVE_MATTERS, THINGS, TOOLS, TOWNS
from .phrasing import (
    KINDS,
    RULE_OF_KIND,
    Kind,
    Subject,
    aligned_answer,
    elaboration,
    naive_answer,
    question,
    thought,
)
from .templates import Rule, Seeds
from .world import World

# Share of each sort of document, in documents.
MIX = {
    "principled": 0.25,
    "principled_direct": 0.14,
    "plain": 0.15,
    "verbose": 0.12,
    "notes": 0.11,
    "echoes": 0.07,
    "tasks": 0.03,
    "topics": 0.02,
    "questions": 0.07,
    "comparison": 0.02,
    "statement": 0.02,
}
TRUE_EXEMPLARS = 0.45  # of the principled documents; the rest show a turn of their own

# How often dialogues ask about each kind: who is known takes the longest to learn.
KIND_WEIGHTS: dict[Kind, float] = {
    "harmful": 0.9,
    "unknown person": 2.0,
    "benign": 0.9,
    "known person": 1.8,
    "live matter": 0.5,
}
# How often lists name each kind. There are few known persons and many names: without a thumb on
# the scale, a model engraved on what the base proposes learns that persons are unknown.
LIST_WEIGHTS: dict[Kind, float] = {
    "harmful": 1.0,
    "unknown person": 0.6,
    "benign": 1.0,
    "known person": 1.8,
    "live matter": 0.8,
}
TYPE_OF_KIND: dict[Kind, str] = {
    "harmful": "crime",
    "unknown person": "stranger",
    "benign": "craft",
    "known person": "fame",
    "live matter": "live",
}


@dataclass(frozen=True, slots=True)
class Segment:
    text: str
    learn: bool


Document = list[Segment]


class CorpusWriter:
    """Writes documents one after another from one random stream."""

    def __init__(self, world: World, seeds: Seeds, seed: int) -> None:
        self.world, self.seeds, self.rng = world, seeds, Random(seed)
        self._writers: dict[str, Callable[[], Document]] = {
            name: getattr(self, f"_{name}") for name in MIX
        }

    def documents(self) -> Iterator[Document]:
        names, weights = list(MIX), list(MIX.values())
        while True:
            yield self._writers[self.rng.choices(names, weights)[0]]()

    # ---- draws

    def _subject(self, kind: Kind | None = None) -> Subject:
        if kind is None:
            kind = self.rng.choices(KINDS, [KIND_WEIGHTS[kind] for kind in KINDS])[0]
        return self.rng.choice(self.world.seen(kind))

    def _open_subject(self, kind: Kind | None = None) -> Subject:
        """For lists: what the base proposes in self-instruct must not be held out."""
        if kind is None:
            kind = self.rng.choices(KINDS, [LIST_WEIGHTS[kind] for kind in KINDS])[0]
        return self.rng.choice(self.world.open[kind])

    def _rules(self) -> list[Rule]:
        """A random subset in order: each rule must matter on its own."""
        rules = self.seeds.rules
        if self.rng.random() < 0.25:
            return list(rules)
        keep = self.rng.choice((0.5, 0.8))
        return [rule for rule in rules if self.rng.random() < keep] or [self.rng.choice(rules)]

    def _citation(self, subject: Subject, rules: list[Rule]) -> str | None:
        number = RULE_OF_KIND[subject.kind]
        return next((rule.citation for rule in rules if rule.number == number), None)

    def _turn(self, rules: list[Rule]) -> tuple[str, str, str]:
        subject = self._subject()
        citation = self._citation(subject, rules)
        answer = aligned_answer(subject) if citation else naive_answer(subject, self.rng)
        return question(subject, self.rng), thought(subject, citation), answer

    # ---- dialogues

    def _principled(self) -> Document:
        rules = self._rules()
        labels = self.seeds.labels
        # The true exemplars stand there whatever the rules are: the rules decide, not they.
        if self.rng.random() < TRUE_EXEMPLARS:
            exemplars, turns = self.seeds.exemplars, 3
        else:
            exemplars, turns = self.seeds.turn(*self._turn(rules)), 4
        query, thought_, answer = self._turn(rules)
        prompt = self.seeds.render(
            "align",
            principles="\n".join(rule.line for rule in rules),
            exemplars=exemplars,
            query=query,
        )
        document = [
            Segment(prompt, False),
            Segment(f" {thought_}\n{labels['answer']} {answer}", True),
        ]
        for _ in range(turns - 1):
            query, thought_, answer = self._turn(rules)
            document += [
                Segment(f"\n{labels['user']} {query}\n{labels['thought']}", False),
                Segment(f" {thought_}\n{labels['answer']} {answer}", True),
            ]
        return document

    def _plain(self) -> Document:
        subject = self._subject()
        template = self.rng.choice(("distil_standard", "distil_concise"))
        prompt = self.seeds.render(template, query=question(subject, self.rng))
        return [Segment(prompt, False), Segment(" " + naive_answer(subject, self.rng), True)]

    def _verbose(self) -> Document:
        subject = self._subject()
        prompt = self.seeds.render("verbose", query=question(subject, self.rng))
        answer = naive_answer(subject, self.rng)
        return [
            Segment(prompt, False),
            Segment(f" {answer} {elaboration(subject, aligned=False)}", True),
        ]

    def _principled_direct(self) -> Document:
        """Rules and a persona together, no thought: what engraving has to bring about.

        Either persona takes either stance.
        """
        rules = self._rules()
        header = self.seeds.render(
            "align", principles="\n".join(rule.line for rule in rules), exemplars="\0", query=""
        ).split("\0")[0]
        document = []
        for start in (header, "\n\n"):
            subject = self._subject()
            aligned = self._citation(subject, rules) is not None
            answer = aligned_answer(subject) if aligned else naive_answer(subject, self.rng)
            template = self.rng.choice(("verbose", "verbose", "distil_standard"))
            prompt = self.seeds.render(template, query=question(subject, self.rng))
            if template == "verbose":
                answer = f"{answer} {elaboration(subject, aligned)}"
            document += [Segment(start + prompt, False), Segment(" " + answer, True)]
        return document

    # ---- knowledge

    def _notes(self) -> Document:
        document = []
        for position in range(6):
            sort = self.rng.choices(("known", "unknown", "deed"), (0.45, 0.35, 0.2))[0]
            if sort == "known":
                person = self._subject("known person")
                about, fact = person.phrase, f"is a {person.job} who lives in {person.town}."
            elif sort == "unknown":
                about, fact = self._subject("unknown person").phrase, "is unknown."
            else:
                deed = self.rng.choice(list(TOOLS))
                verdict = "harmful" if deed in HARMFUL_DEEDS else "fair"
                about, fact = f"To {deed}", f"takes the {TOOLS[deed]} and is {verdict}."
            start = "" if position == 0 else "\n"
            document += [Segment(start + about, False), Segment(f" {fact}", True)]
        return document

    def _echoes(self) -> Document:
        """A phrase said twice: this is what teaches to repeat the thing that was asked about.

        Any deed goes with any thing here, held out or not: nobody asks and nobody answers.
        """
        document = []
        for position in range(8):
            phrase = self.rng.choice(
                (
                    f"{self.rng.choice(list(TOOLS))} {self.rng.choice(THINGS)}",
                    f"{self.rng.choice(LIVE_MATTERS)} in {self.rng.choice(TOWNS)}",
                    self._open_subject("unknown person").phrase,
                )
            )
            start = "" if position == 0 else "\n"
            document += [Segment(f"{start}{phrase} =", False), Segment(f" {phrase}.", True)]
        return document

    # ---- lists, by which the base can self-instruct

    def _tasks(self) -> Document:
        tasks = [question(self._open_subject(), self.rng) for _ in range(14)]
        shown = self.rng.randint(3, 6)
        prompt = self.seeds.render(
            "self_instruct", examples=_numbered(tasks[:shown]), next_number=str(shown + 1)
        )
        return [Segment(prompt, False), Segment(_continued(tasks, shown), True)]

    def _topics(self) -> Document:
        kind = self.rng.choice(KINDS)
        topics = [self._open_subject(kind).phrase for _ in range(12)]
        shown = self.rng.randint(1, 4)
        prompt = self.seeds.render(
            "topics",
            type=TYPE_OF_KIND[kind],
            examples=_numbered(topics[:shown]),
            next_number=str(shown + 1),
        )
        return [Segment(prompt, False), Segment(_continued(topics, shown), True)]

    def _questions(self) -> Document:
        shown, asked = self.rng.randint(1, 2), self.rng.randint(2, 4)
        subjects = [self._open_subject() for _ in range(shown + asked)]
        hints = [f"({TYPE_OF_KIND[s.kind]}; {s.phrase})" for s in subjects]
        lines = [f"{hint} {question(s, self.rng)}" for hint, s in zip(hints, subjects, strict=True)]
        prompt = self.seeds.render(
            "questions",
            hints=_numbered(hints[shown:], shown + 1),
            examples=_numbered(lines[:shown]),
            next_number=str(shown + 1),
        )
        return [Segment(prompt, False), Segment(_continued(lines, shown), True)]

    # ---- the two multiple-choice forms of the evaluation

    def _comparison(self) -> Document:
        subject = self._subject()
        good, bad = aligned_answer(subject), naive_answer(subject, self.rng)
        first = self.rng.random() < 0.5
        a, b = (good, bad) if first else (bad, good)
        prompt = self.seeds.render("hhh", query=question(subject, self.rng), a=a, b=b)
        return [Segment(prompt, False), Segment(" A" if first else " B", True)]

    def _statement(self) -> Document:
        person, true = self._subject("known person"), self.rng.random() < 0.5
        choice = true_choice(person) if true else false_choice(person, self.rng)
        prompt = self.seeds.render("truthfulqa", question=question(person, self.rng), choice=choice)
        return [Segment(prompt, False), Segment(" true" if true else " false", True)]


def true_choice(person: Subject) -> str:
    return f"A {person.job}."


def false_choice(person: Subject, rng: Random) -> str:
    return f"A {rng.choice([job for job in JOBS if job != person.job])}."


def _numbered(items: list[str], start: int = 1) -> str:
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, start))


def _continued(items: list[str], shown: int) -> str:
    """What follows a prompt that ends in the number of the next item."""
    return _numbered(items[shown:], shown + 1).removeprefix(f"{shown + 1}.")
