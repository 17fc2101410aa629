"""One run as a store has it, with its evaluation and verdict."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from pydantic import RootModel

from selfalign.evaluation.answers import Item, items_of
from selfalign.evaluation.gate import Verdict
from selfalign.evaluation.scores import ItemScore
from selfalign.evaluation.summary import EvaluationSummary
from selfalign.records import EvaluationRecord
from selfalign.run.record import RunRecord, RunStatus, read_run, status_to_show
from selfalign.stages.approval import ApprovalRequest, read_request
from selfalign.store.artifact import read_file_as, read_manifest, read_records
from selfalign.store.base import Store
from selfalign.store.documents import parse_document
from selfalign.store.manifest import Manifest


@dataclass(slots=True)
class RunView:
    """One run, as far as it has come.

    Attributes:
        items: held-out prompts and every variant's answers.
        scores: variant -> its values of `heldout.aligned`.
        request: what a person is to decide, where the gate's yes is not carried out yet.
    """

    run: RunRecord
    status: RunStatus
    manifests: dict[str, Manifest]
    summary: EvaluationSummary | None = None
    verdict: Verdict | None = None
    items: list[Item] = field(default_factory=list)
    scores: dict[str, list[ItemScore]] = field(default_factory=dict)
    request: ApprovalRequest | None = None


def view(store: Store, run_id: str) -> RunView:
    """A run with its evaluation and verdict. Raises ConfigurationError for an unknown run."""
    run = read_run(store, run_id)
    status = status_to_show(store, run_id)
    found = RunView(run, status, _manifests(store, status))
    evaluation, promotion = (found.manifests.get(name) for name in ("evaluation", "promotion"))
    if evaluation is not None:
        found.summary = read_file_as(store, evaluation, "summary.json", EvaluationSummary)
        prompts = read_file_as(store, evaluation, "prompts.json", RootModel[dict[str, str]]).root
        records = read_records(store, evaluation, EvaluationRecord)
        found.items, found.scores = items_of(records, prompts)
    if promotion is not None:
        found.verdict = read_file_as(store, promotion, "verdict.json", Verdict)
    elif (key := status.key_of("promote")) is not None:
        found.request = read_request(store, key)
        if found.request is not None:
            verdict = json.dumps(found.request.verdict).encode()
            found.verdict = parse_document(f"{store.url}: request of {key}", verdict, Verdict)
    return found


def _manifests(store: Store, status: RunStatus) -> dict[str, Manifest]:
    found = (
        (each.artifact, read_manifest(store, each.artifact, each.key))
        for each in status.stages
        if each.key
    )
    return {artifact: manifest for artifact, manifest in found if manifest is not None}
