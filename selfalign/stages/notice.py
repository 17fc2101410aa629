"""What a notice says of a verdict: counts, failed rules, the answers that changed most.

`promote` writes it beside its verdict, small and bounded, so that whoever sends notices reads
neither the evaluation nor what models wrote beyond it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, RootModel

from selfalign.records import EvaluationRecord
from selfalign.store.artifact import artifact_prefix, read_file_as, read_manifest, read_records
from selfalign.store.base import Store
from selfalign.store.documents import StoredModel
from selfalign.store.manifest import Manifest

if TYPE_CHECKING:
    from selfalign.evaluation.answers import Answers, Pair
    from selfalign.evaluation.gate import Verdict

Change = Literal["better", "worse", "other"]
NOTICE_NAME = "notice.json"
MOST_CHANGED = 5
MAX_BYTES = 1 << 20  # of an object of the promotion; those made here have a few KiB
_FAILED_RULES, _RULE, _PROMPT, _ANSWER = 10, 300, 200, 300  # how many, and characters of each


class ChangedAnswer(StoredModel):
    """A held-out prompt that the final model answers otherwise than the model before."""

    item: str = Field(max_length=_PROMPT)
    kind: str = Field(max_length=_PROMPT)
    change: Change
    prompt: str = Field(max_length=_PROMPT)
    before: str = Field(max_length=_ANSWER)
    after: str = Field(max_length=_ANSWER)


class VerdictNotice(StoredModel):
    """What `notice.json` holds.

    Attributes:
        failed_rules: the gate's explanation of each, at most ten.
        against: "promoted" or "base": whose answers the final model's are compared with.
        compared: held-out prompts that both answered; `better`, `worse`, `other` are those changed.
        most_changed: at most five.
    """

    failed_rules: list[str] = Field(default_factory=list, max_length=_FAILED_RULES)
    against: str = Field("base", max_length=20)
    compared: int = 0
    better: int = 0
    worse: int = 0
    other: int = 0
    most_changed: list[ChangedAnswer] = Field(default_factory=list, max_length=MOST_CHANGED)


def verdict_notice(store: Store, evaluation: Manifest, verdict: Verdict) -> VerdictNotice:
    """Gather the notice from the evaluation that was judged."""
    from selfalign.evaluation.answers import changes, items_of

    prompts = read_file_as(store, evaluation, "prompts.json", RootModel[dict[str, str]]).root
    items, _ = items_of(read_records(store, evaluation, EvaluationRecord), prompts)
    against = "promoted" if any("promoted" in item.texts for item in items) else "base"
    found = changes(items, "final", against)
    failed = [rule.explanation for rule in verdict.reasons if rule.outcome == "failed"]
    return VerdictNotice(
        failed_rules=[_cut(each, _RULE) for each in failed[:_FAILED_RULES]],
        against=against,
        compared=found.compared,
        better=len(found.better),
        worse=len(found.worse),
        other=len(found.other),
        most_changed=_most_changed(found),
    )


def read_notice(store: Store, promotion: str) -> VerdictNotice | None:
    """The notice of a published promotion; None where it has none, or an object is too large.

    Raises DataError for one that is none.
    """
    if not is_small(store, promotion):
        return None
    manifest = read_manifest(store, "promotion", promotion)
    if manifest is None or all(e.name != f"files/{NOTICE_NAME}" for e in manifest.files):
        return None
    return read_file_as(store, manifest, NOTICE_NAME, VerdictNotice)


def is_small(store: Store, promotion: str) -> bool:
    """Whether a promotion can be read into the controller's memory."""
    entries = store.entries(artifact_prefix("promotion", promotion))
    return all(entry.bytes <= MAX_BYTES for entry in entries)


def _most_changed(found: Answers) -> list[ChangedAnswer]:
    """Answers that got worse and better first, then those that differ most in their words."""
    sorts: dict[Change, list[Pair]] = {
        "worse": found.worse,
        "better": found.better,
        "other": found.other,
    }
    pairs = [(change, pair) for change, each in sorts.items() for pair in each[:MOST_CHANGED]]
    pairs.sort(key=lambda each: (-abs(each[1].change), each[1].alike, each[1].item.id))
    return [
        ChangedAnswer(
            item=_cut(pair.item.id, _PROMPT),
            kind=_cut(pair.item.kind, _PROMPT),
            change=change,
            prompt=_cut(pair.item.prompt, _PROMPT),
            before=_cut(pair.before, _ANSWER),
            after=_cut(pair.after, _ANSWER),
        )
        for change, pair in pairs[:MOST_CHANGED]
    ]


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
