"""Everything the report shows, gathered from a store for one run. Reads only what is published.

A run that is not finished has a report too: what is missing is simply not there yet. What cannot
be read of earlier runs, because another version wrote it, is left out.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from selfalign.errors import DataError
from selfalign.evaluation.scores import ALIGNED, HHH, MC1
from selfalign.evaluation.summary import EvaluationSummary, MetricSummary
from selfalign.records import AlignedResponse, Prompt
from selfalign.report.compare import RunDiff, RunView, compare, view
from selfalign.run.record import RunStatus, read_status, run_ids
from selfalign.run.storage import Held, held_bytes, written_bytes
from selfalign.stages.train import loss_curve
from selfalign.store.artifact import (
    artifact_keys,
    read_file,
    read_file_as,
    read_manifest,
    read_records,
)
from selfalign.store.base import Store
from selfalign.store.manifest import Manifest
from selfalign.store.pointer import PromotedModel, read_pointer, standing

SHOWN_RESPONSES = 5
HISTORY_LENGTH = 60  # runs: two months of nights
_READERS = 16  # of earlier runs' summaries, at once

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
class PastRun:
    """A run of the history and the scores of its evaluation: of its final model and of the base."""

    status: RunStatus
    final: MetricSummary | None = None
    base: MetricSummary | None = None


@dataclass(slots=True)
class Citations:
    """Which rules the aligned responses cite.

    Attributes:
        by_kind: kind of prompt -> answers that cite each rule; `answers` counts the answers.
        responses: a few, which cite many rules between them.
    """

    rules: Counter[int] = field(default_factory=Counter)
    by_kind: dict[str, Counter[int]] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    topics: Counter[str] = field(default_factory=Counter)
    responses: list[AlignedResponse] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Study:
    """What `selfalign ablate` found: the lines left out, in the order of the comparisons."""

    left_out: list[str]
    summary: EvaluationSummary


@dataclass(slots=True)
class ReportData(RunView):
    """What the report shows.

    Attributes:
        standing: what became of the final model if it passed the gate, else empty.
        losses: stage -> loss curve.
        history: earlier runs and this one, oldest first.
        since: from the latest earlier run that has an evaluation.
    """

    standing: str = ""
    current: PromotedModel | None = None
    citations: Citations = field(default_factory=Citations)
    losses: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    history: list[PastRun] = field(default_factory=list)
    since: RunDiff | None = None
    study: Study | None = None
    bytes_written: int = 0
    held: Held = field(default_factory=lambda: Held(0, whole=True))


def collect(store: Store, run_id: str) -> ReportData:
    """Gather a run's report. Raises ConfigurationError for an unknown run."""
    seen = view(store, run_id)
    data = ReportData(**{name: getattr(seen, name) for name in RunView.__slots__})
    current = read_pointer(store)
    data.current = None if current is None else current.pointer.model
    if data.verdict is not None and data.verdict.promote and data.request is None:
        final = data.manifests["promotion"].parent_digest("final_model")
        data.standing = standing(final, current)
    data.citations = _citations(store, data.manifests)
    for artifact in ("engraved_model", "final_model"):
        if artifact in data.manifests:
            curve = read_file(store, data.manifests[artifact], "loss.jsonl")
            data.losses[data.manifests[artifact].stage] = loss_curve(curve)
    data.history = _history(store, run_id)
    earlier = [past.status.id for past in data.history if past.final and past.status.id != run_id]
    with contextlib.suppress(DataError):
        data.since = compare(view(store, earlier[-1]), data) if earlier else None
    data.study = study_of(store, data.manifests)
    data.bytes_written = written_bytes(store, data.status)
    data.held = held_bytes(store)
    return data


def _citations(store: Store, manifests: dict[str, Manifest]) -> Citations:
    found = Citations()
    aligned, prompts = manifests.get("aligned_responses"), manifests.get("prompts")
    kinds: dict[str, str] = {}
    if prompts is not None:
        for prompt in read_records(store, prompts, Prompt):
            kinds[prompt.id] = prompt.type or prompt.source.replace("_", " ")
            if prompt.topic:
                found.topics[prompt.topic] += 1
    if aligned is None:
        return found
    shown: set[int] = set()
    for row in read_records(store, aligned, AlignedResponse):
        kind = kinds.get(row.id, "unknown")
        found.rules.update(row.rules)
        found.answers[kind] += 1
        found.by_kind.setdefault(kind, Counter()).update(row.rules)
        # the first answer that cites a rule not shown yet: a few rows, many rules
        if len(found.responses) < SHOWN_RESPONSES and set(row.rules) - shown:
            found.responses.append(row)
            shown.update(row.rules)
    return found


def study_of(store: Store, manifests: dict[str, Manifest]) -> Study | None:
    """The newest study of a run's base model and seeds; one that cannot be read is left out."""
    made_with = manifests.get("aligned_responses")
    if made_with is None:
        return None
    found = []
    for key in artifact_keys(store, "ablation"):
        with contextlib.suppress(DataError):
            manifest = read_manifest(store, "ablation", key)
            if manifest is not None and _same_inputs(manifest.identity, made_with.identity):
                found.append(manifest)
    found.sort(key=lambda each: each.provenance.finished_at)
    for manifest in reversed(found):
        with contextlib.suppress(DataError):
            summary = read_file_as(store, manifest, "summary.json", EvaluationSummary)
            left_out = manifest.identity["left_out"]
            pairs = {(row.subject, row.against) for row in summary.comparisons}
            if isinstance(left_out, list) and len(left_out) == len(pairs):
                return Study([str(line) for line in left_out], summary)
    return None


def _same_inputs(study: dict[str, Any], stage: dict[str, Any]) -> bool:
    """Whether both are of one base model, and of the same seeds where both read them."""
    if "left_out" not in study or study.get("base_model") != stage.get("base_model"):
        return False
    theirs, ours = study.get("seeds") or {}, stage.get("seeds") or {}
    return all(theirs[name] == ours[name] for name in theirs.keys() & ours.keys())


def _history(store: Store, run_id: str) -> list[PastRun]:
    ids = run_ids(store)
    earlier = ids[: ids.index(run_id) + 1] if run_id in ids else []
    with ThreadPoolExecutor(_READERS) as readers:
        found = list(readers.map(partial(_past, store), earlier[-HISTORY_LENGTH:]))
    return [past for past in found if past is not None]


def _past(store: Store, run_id: str) -> PastRun | None:
    status = read_status(store, run_id)
    if status is None:
        return None
    key = next((each.key for each in status.stages if each.name == "evaluate" and each.key), None)
    with contextlib.suppress(DataError):
        manifest = read_manifest(store, "evaluation", key) if key else None
        if manifest is not None:
            summary = read_file_as(store, manifest, "summary.json", EvaluationSummary)
            for metric in (ALIGNED, HHH, MC1):  # the first that was measured
                if final := summary.metric("final", metric):
                    return PastRun(status, final, summary.metric("base", metric))
    return PastRun(status)
