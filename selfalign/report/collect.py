"""Everything the report shows, gathered from a store for one run. Reads only what is published.

A run that is not finished has a report too: what is missing is simply not there yet.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pydantic import RootModel

from selfalign.evaluation.gate import Verdict
from selfalign.evaluation.summary import EvaluationSummary
from selfalign.records import AlignedResponse, EvaluationRecord
from selfalign.run.record import (
    RunRecord,
    RunStatus,
    read_run,
    read_status,
    run_ids,
    status_to_show,
)
from selfalign.run.storage import total_bytes, written_bytes
from selfalign.stages.train import loss_curve
from selfalign.store.artifact import read_file, read_file_as, read_manifest, read_records
from selfalign.store.base import Store
from selfalign.store.manifest import Manifest
from selfalign.store.pointer import PromotedModel, read_pointer, standing

SHOWN_ANSWERS_PER_KIND = 3
SHOWN_RESPONSES = 5
HISTORY_LENGTH = 14  # runs: two weeks of nights

# Lines or examples of human supervision, as published (Self-Align, table on annotation).
PUBLISHED_ANNOTATION = (
    ("Self-Align (Dromedary)", "fewer than 300 lines"),
    ("Dolly-V2", "15 thousand"),
    ("Alpaca", "52 thousand"),
    ("Vicuna", "70 thousand"),
    ("InstructGPT", "77 thousand"),
    ("OpenAssistant", "161 thousand"),
    ("Koala", "472 thousand"),
)


@dataclass(frozen=True, slots=True)
class Answers:
    """One held-out prompt and what each variant said to it."""

    kind: str
    prompt: str
    texts: dict[str, tuple[str, bool]]  # variant -> (answer, aligned)


@dataclass(slots=True)
class ReportData:
    """What the report shows.

    Attributes:
        rules: citations by rule number, over all aligned responses.
        current: the model that is promoted now, by this run or another.
        standing: what became of the final model if it passed the gate, else empty.
        losses: stage -> loss curve.
        history: earlier runs and this one, oldest first.
        bytes_written: of the artifacts that this run made.
    """

    run: RunRecord
    status: RunStatus
    manifests: dict[str, Manifest]
    summary: EvaluationSummary | None = None
    verdict: Verdict | None = None
    standing: str = ""
    current: PromotedModel | None = None
    rules: Counter[int] = field(default_factory=Counter)
    responses: list[AlignedResponse] = field(default_factory=list)
    losses: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    answers: list[Answers] = field(default_factory=list)
    history: list[RunStatus] = field(default_factory=list)
    bytes_written: int = 0
    bytes_in_store: int = 0


def collect(store: Store, run_id: str) -> ReportData:
    """Gather a run's report. Raises ConfigurationError for an unknown run."""
    run = read_run(store, run_id)
    status = status_to_show(store, run_id)
    manifests = {}
    for record in status.stages:
        manifest = read_manifest(store, record.artifact, record.key) if record.key else None
        if manifest is not None:
            manifests[record.artifact] = manifest
    data = ReportData(run, status, manifests)
    _add_evaluation(store, data)
    _add_responses(store, data)
    for artifact in ("engraved_model", "final_model"):
        if artifact in manifests:
            curve = read_file(store, manifests[artifact], "loss.jsonl")
            data.losses[manifests[artifact].stage] = loss_curve(curve)
    data.history = _history(store, run_id)
    data.bytes_written, data.bytes_in_store = written_bytes(store, status), total_bytes(store)
    return data


def _add_evaluation(store: Store, data: ReportData) -> None:
    current = read_pointer(store)
    data.current = None if current is None else current.pointer.model
    evaluation = data.manifests.get("evaluation")
    if evaluation is None:
        return
    data.summary = read_file_as(store, evaluation, "summary.json", EvaluationSummary)
    prompts = read_file_as(store, evaluation, "prompts.json", RootModel[dict[str, str]]).root
    data.answers = _answers(read_records(store, evaluation, EvaluationRecord), prompts)
    promotion = data.manifests.get("promotion")
    if promotion is not None:
        data.verdict = read_file_as(store, promotion, "verdict.json", Verdict)
        if data.verdict.promote:
            data.standing = standing(promotion.parent_digest("final_model"), current)


def _answers(records: Any, prompts: dict[str, str]) -> list[Answers]:
    found: dict[str, Answers] = {}
    kinds: Counter[str] = Counter()
    for record in records:
        if record.metric != "heldout.aligned" or record.item_id not in prompts:
            continue
        kind = record.kind or ""
        if record.item_id not in found:
            if kinds[kind] >= SHOWN_ANSWERS_PER_KIND:
                continue
            kinds[kind] += 1
            found[record.item_id] = Answers(kind, prompts[record.item_id], {})
        found[record.item_id].texts[record.model] = (record.text, record.value == 1)
    return sorted(found.values(), key=lambda a: a.kind)


def _add_responses(store: Store, data: ReportData) -> None:
    aligned = data.manifests.get("aligned_responses")
    if aligned is None:
        return
    for row in read_records(store, aligned, AlignedResponse):
        data.rules.update(row.rules)
        # the first answer that cites a rule not shown yet: a few rows, many rules
        shown = {rule for kept in data.responses for rule in kept.rules}
        if len(data.responses) < SHOWN_RESPONSES and set(row.rules) - shown:
            data.responses.append(row)


def _history(store: Store, run_id: str) -> list[RunStatus]:
    ids = run_ids(store)
    earlier = ids[: ids.index(run_id) + 1] if run_id in ids else []
    statuses = [read_status(store, each) for each in earlier[-HISTORY_LENGTH:]]
    return [status for status in statuses if status is not None]
