"""Records: one JSON object per line in a shard. No I/O here.

Every record has an `id` that derives from what produced it, never from its line number.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, PlainValidator

Json = dict[str, Any]
FinishReason = Literal["stop", "length"]  # of a completion: at a stop string or its end, or cut


class FrozenModel(BaseModel):
    """Text with exactly these fields, read once and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(FrozenModel):
    """Base of all records."""

    id: str


class Candidate(Record):
    """A prompt the model wrote, before curation. `source` is the paper's stage 1a or 1b."""

    source: Literal["self_instruct", "topic_guided"]
    text: str
    type: str | None = None
    topic: str | None = None
    request: str


def _is_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, got {type(value).__name__}")
    return value


# Half of a surrogate pair, which JSON can spell and UTF-8 cannot, is read too: the stage that reads
# such a prompt sets that one row aside, and not the file.
_AnyText = Annotated[str, PlainValidator(_is_text)]


class Prompt(Record):
    """A curated prompt."""

    source: Literal["self_instruct", "topic_guided"]
    text: _AnyText
    type: str | None = None
    topic: str | None = None


class AlignedResponse(Record):
    """An answer that passed the filters, with the thought that led to it. `id` is the prompt's.

    `rules` are the numbers the thought cites, in order of first citation; `verdicts` names each
    filter and what it did ("kept", "cut: ...").
    """

    prompt: str
    thought: str
    rules: tuple[int, ...]
    response: str
    finish_reason: FinishReason
    verdicts: dict[str, str]
    model: str
    template: str
    seed: int


class VerboseResponse(Record):
    """The engraved model's long answer. `id` is the prompt's."""

    prompt: str
    response: str
    finish_reason: FinishReason
    verdicts: dict[str, str]
    model: str
    template: str
    seed: int


class EvaluationRecord(Record):
    """One model's value on one item of one metric; the unit comparisons are paired by.
    `against` is the model whose answer a judge saw beside, null for every other metric."""

    model: str
    item_id: str
    metric: str
    kind: str | None
    value: float
    length_words: int | None
    text: str
    sample: int = 0
    against: str | None = None


def now() -> str:
    """The time as records hold it: ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value that digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def record_seed(run_seed: int, *names: str) -> int:
    """A 63-bit seed that depends on the run's seed and a record's name alone."""
    raw = hashlib.sha256("\x1f".join((str(run_seed), *names)).encode()).digest()
    return int.from_bytes(raw[:8], "big") >> 1
