"""A run as a store has it, and what differs between two: settings, seeds, rows, scores, answers.

`selfalign diff` prints it; the report says it of a run and the one before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from pydantic import RootModel

from selfalign.errors import hide_secrets
from selfalign.evaluation.answers import Answers, Item, changes, items_of
from selfalign.evaluation.gate import Verdict
from selfalign.evaluation.scores import ItemScore
from selfalign.evaluation.summary import Comparison, EvaluationSummary, summarise
from selfalign.load import flatten
from selfalign.pipeline import STAGES
from selfalign.records import EvaluationRecord, canonical_json
from selfalign.run.record import RunRecord, RunStatus, read_run, status_to_show
from selfalign.stages.approval import ApprovalRequest, read_request
from selfalign.store.artifact import read_file_as, read_manifest, read_records
from selfalign.store.base import Store
from selfalign.store.documents import parse_document
from selfalign.store.manifest import Manifest

FINAL = "final"
_SHOWN_VALUE = 120  # characters of a setting


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


@dataclass(frozen=True, slots=True)
class Setting:
    """A value that differs; None where one run lacks it."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Kept:
    """What a stage kept in each run, and whether both have the very same artifact."""

    stage: str
    before: int | None
    after: int | None
    same: bool


@dataclass(frozen=True, slots=True)
class RunDiff:
    """Two runs.

    Attributes:
        scores: of the final models on the items both answered, overall before kinds.
        answers: of the final models; None where one run has no evaluation of these items.
    """

    before: RunView
    after: RunView
    settings: list[Setting]
    kept: list[Kept]
    scores: list[Comparison]
    answers: Answers | None


def compare(before: RunView, after: RunView) -> RunDiff:
    """What differs from one run to another. Raises nothing for what one of them lacks."""
    answers = _answers(before, after)
    return RunDiff(
        before=before,
        after=after,
        settings=list(_settings(before, after)),
        kept=list(_kept(before, after)),
        scores=_scores(before, after),
        answers=answers if answers.compared else None,
    )


def _settings(before: RunView, after: RunView) -> Iterator[Setting]:
    left, right = (_settings_of(run) for run in (before, after))
    for name in sorted(left.keys() | right.keys()):
        if left.get(name) != right.get(name):
            yield Setting(name, left.get(name), right.get(name))


def _settings_of(run: RunView) -> dict[str, str]:
    """Settings; code, seeds and data by digest, as far as the run's artifacts name them."""
    values = flatten(run.run.config).items()
    found = {name: hide_secrets(canonical_json(each))[:_SHOWN_VALUE] for name, each in values}
    found["code version"] = run.run.code_version
    for manifest in run.manifests.values():
        for group in ("seeds", "data"):
            for name, digest in (manifest.identity.get(group) or {}).items():
                found[f"{group}: {name}"] = str(digest)[:12]
        if manifest.identity.get("base_model"):
            found["base model"] = str(manifest.identity["base_model"])[:24]
    return found


def _kept(before: RunView, after: RunView) -> Iterator[Kept]:
    for stage in STAGES:
        left, right = (run.manifests.get(stage.writes) for run in (before, after))
        if left is not None or right is not None:
            yield Kept(
                stage.name,
                None if left is None else left.counts.kept,
                None if right is None else right.counts.kept,
                left is not None and right is not None and left.digest == right.digest,
            )


def _scores(before: RunView, after: RunView) -> list[Comparison]:
    sides = {"before": before.scores.get(FINAL), "after": after.scores.get(FINAL)}
    if not sides["before"] or not sides["after"] or after.summary is None:
        return []
    kinds = {score.item_id: score.kind for score in sides["before"]}
    same = [score for score in sides["after"] if kinds.get(score.item_id) == score.kind]
    found = summarise(
        {"before": sides["before"], "after": same},
        confidence=after.summary.confidence,
        comparisons=[("after", "before")],
    )
    return [row for row in found.comparisons if row.n]


def _answers(before: RunView, after: RunView) -> Answers:
    earlier = {item.id: item for item in before.items if FINAL in item.texts}
    items = [
        Item(
            item.id,
            item.kind,
            item.prompt,
            {"after": item.texts[FINAL], "before": earlier[item.id].texts[FINAL]},
            {"after": item.values[FINAL], "before": earlier[item.id].values[FINAL]},
        )
        for item in after.items
        if FINAL in item.texts and item.id in earlier and earlier[item.id].prompt == item.prompt
    ]
    return changes(items, "after", "before")
