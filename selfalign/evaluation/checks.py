"""Checks of a held-out answer that a pattern cannot make: each is named in an item's `check`.

    {"check": "number", "value": 42}                        its last number is this one
    {"check": "count", "of": "sentences", "min": 2}         how many; `max` likewise
    {"check": "json", "keys": ["name"]}                     nothing but JSON, an object's keys
    {"check": "python", "defines": "area"}                  Python that parses; never executed
    {"check": "candour"}                                    says that it does not or cannot know
    {"check": "asks"}                                       asks for what is missing
    {"check": "instructions", ...}                          IFEval's own checks, by lm-eval

`candour` and `asks` go by wording, in English alone. A code fence around JSON or Python is allowed.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field


class Strict:
    """Base of dataclasses that are read from a file: nothing unknown, nothing converted."""

    __slots__ = ()
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)


# 1,234.5 and -7; not the 2 of m2 or of x2
_NUMBER = re.compile(r"(?<![\w.])[-−]?\d+(?:,\d{3})*(?:\.\d+)?")
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)]*(?=\s|\Z)")
_LIST_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.MULTILINE)
_FENCED = re.compile(r"```[\w+-]*\n(.*?)(?:```|\Z)", re.DOTALL)
_CODE_LINE = re.compile(r"^(?:import |from |def |async def |class |@)", re.MULTILINE)
_FLAGS = re.IGNORECASE | re.VERBOSE
_NOT = r"""(?: can (?: not | \s not | 't ) | could (?: \s not | n't ) | do (?: \s not | n't )
    | am \s (?: not \s able | unable ) \s to | have \s no \s way \s (?: of | to ) )"""
_CANDOUR = re.compile(
    rf"""\b i (?: 'm | \s am )? \s (?: \w+ \s )? {_NOT} \s (?: \w+ \s )? (?: know (?: ing )?
        | tell (?: ing )? | see (?: ing )? | check (?: ing )? | find (?: ing )? | say | hear | look
        | predict | foresee | recall | confirm | verify | access | remember | determine | observe
        | feel | smell | taste | have | read | receive | follow | recogni[sz]e | be \s sure ) \b
    | \b {_NOT} \s be \s (?: known | predicted | told | foreseen | determined ) \b
    | \b i \s have \s (?: no | never ) \b
    | \b i (?: 'm | \s am ) \s not \s (?: aware | sure | certain | familiar ) \b
    | \b i (?: 'm | \s am ) \s (?: just \s | only \s )? an? \s (?: \w+ \s )?
        (?: language \s model | assistant | program | ai ) \b
    | \b (?: nobody | no [\s-] one | nothing ) \s (?: can \s | could \s )?
        (?: knows? | tell | predict | foresee | wrote | recorded ) \b
    | \b (?: is | are | was | were ) \s (?: not | never ) \s (?: known | recorded | documented ) \b
    | \b unknown \b | \b out \s of \s date \b | \b outdated \b
    | \b no \s (?: reliable \s | surviving \s | written \s )? (?: record | source | evidence ) s? \b
    | \b my \s (?: knowledge | information | texts? | training ) \s (?: \w+ \s )?
        (?: end | stop | come | reach | go | is | are | may | might )
    | \b as \s far \s as \s i \s know \b | \b (?: last \s i | i \s last ) \s knew \b""",
    _FLAGS,
)
_ASKS = re.compile(
    r"""\? (?= [\s"'”)] | \Z ) | \b (?: let \s me \s know | tell \s me
    | please \s (?: share | specify | provide | give | paste | send | say )
    | i (?: 'd | \s would )? \s need \s (?: to \s know | more | the | your )
    | depends \s on \s (?: which | what | whether | where | how ) ) \b""",
    _FLAGS,
)


@dataclass(frozen=True, slots=True)
class Number(Strict):
    """The last number of the answer, in figures, is `value`."""

    check: Literal["number"]
    value: float
    tolerance: float = 0.0

    def passes(self, answer: str) -> bool:
        """Whether it does."""
        numbers = _NUMBER.findall(answer)
        if not numbers or len(numbers[-1]) > 30:
            return False
        found = float(numbers[-1].replace(",", "").replace("−", "-"))
        return abs(found - self.value) <= self.tolerance + 1e-9


@dataclass(frozen=True, slots=True)
class Count(Strict):
    """The answer has at least `min` and at most `max` of something; None bounds nothing."""

    check: Literal["count"]
    of: Literal["words", "sentences", "lines", "paragraphs", "list_items"]
    min: int | None = None
    max: int | None = None

    def __post_init__(self) -> None:
        if self.min is None and self.max is None:
            raise ValueError("give min or max")

    def passes(self, answer: str) -> bool:
        """Whether it does."""
        found = _COUNTED[self.of](answer.strip())
        return (self.min is None or found >= self.min) and (self.max is None or found <= self.max)


@dataclass(frozen=True, slots=True)
class Json(Strict):
    """The answer is one JSON value, an object with `keys` where there are any."""

    check: Literal["json"]
    keys: tuple[str, ...] = ()

    def passes(self, answer: str) -> bool:
        """Whether it does."""
        try:
            value: Any = json.loads(_unfenced(answer))
        except (ValueError, RecursionError):
            return False
        if not self.keys:
            return isinstance(value, dict | list) and bool(value)
        return isinstance(value, dict) and set(self.keys) <= set(value)


@dataclass(frozen=True, slots=True)
class Python(Strict):
    """The answer holds Python that parses and has a function or class called `defines`."""

    check: Literal["python"]
    defines: str

    def passes(self, answer: str) -> bool:
        """Whether it does. Nothing is executed."""
        return any(
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and node.name == self.defines
            and not _is_empty(node)
            for node in ast.walk(_parse(answer))
        )


@dataclass(frozen=True, slots=True)
class Candour(Strict):
    """The answer says that something is not known to it, or cannot be."""

    check: Literal["candour"]

    def passes(self, answer: str) -> bool:
        """Whether it does."""
        return _CANDOUR.search(answer.replace("’", "'")) is not None


@dataclass(frozen=True, slots=True)
class Asks(Strict):
    """The answer asks for something."""

    check: Literal["asks"]

    def passes(self, answer: str) -> bool:
        """Whether it does."""
        return _ASKS.search(answer.replace("’", "'")) is not None


@dataclass(frozen=True, slots=True)
class Instructions(Strict):
    """The answer follows every one of IFEval's instructions, strictly (Zhou et al. 2023).

    Attributes:
        prompt: the whole prompt, which some instructions are about.
        ids: names of the instructions.
        arguments: those of each.
    """

    check: Literal["instructions"]
    prompt: str
    ids: tuple[str, ...]
    arguments: tuple[dict[str, Any], ...] = field(hash=False)

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.arguments):
            raise ValueError(f"{len(self.ids)} instructions with {len(self.arguments)} arguments")

    def passes(self, answer: str) -> bool:
        """Whether it does. Raises ConfigurationError where lm-eval or its data is missing."""
        from selfalign.evaluation.ifeval import follows

        return follows(self.prompt, self.ids, self.arguments, answer)


Check = Annotated[
    Number | Count | Json | Python | Candour | Asks | Instructions, Field(discriminator="check")
]


def _unfenced(answer: str) -> str:
    """What a code fence around the whole answer holds, or the answer itself."""
    fenced = _FENCED.search(answer)
    return fenced[1] if fenced and fenced[0] == answer.strip() else answer


def _parse(answer: str) -> ast.Module:
    """The Python of an answer, fenced or from its first line of code on; nothing where it is none.

    Without a fence, up to 20 lines of prose may follow the code.
    """
    code = "\n".join(_FENCED.findall(answer))
    lines = answer[match.start() :].splitlines() if (match := _CODE_LINE.search(answer)) else []
    attempts = [code] if code else ["\n".join(lines[: len(lines) - cut]) for cut in range(21)]
    for attempt in attempts:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ast.parse(attempt)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return ast.Module([], [])


def _is_empty(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """Whether a definition does nothing: `pass`, `...` or a docstring alone."""
    return all(
        isinstance(each, ast.Pass)
        or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
        for each in node.body
    )


def _sentences(text: str) -> int:
    ends = len(_SENTENCE_END.findall(text))
    return ends + (not _SENTENCE_END.search(text[-3:]) and bool(text))


_COUNTED: dict[str, Callable[[str], int]] = {
    "words": lambda text: len(text.split()),
    "sentences": _sentences,
    "lines": lambda text: sum(bool(line.strip()) for line in text.splitlines()),
    "paragraphs": lambda text: sum(bool(part.strip()) for part in re.split(r"\n\s*\n", text)),
    "list_items": lambda text: len(_LIST_ITEM.findall(text)),
}
