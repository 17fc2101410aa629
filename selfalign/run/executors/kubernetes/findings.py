"""What the newest finished run found, for /metrics: verdict, scores, tokens and GPU seconds.

Read once for each run, from its status and small objects of the store. What is larger
than MAX_OBJECT_BYTES is not read, and no more than MAX_SCORES scores are kept, so that neither a
store nor a configuration can fill the controller's memory or Prometheus'.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from pydantic import BaseModel

from selfalign.errors import DataError
from selfalign.run.executors.kubernetes import configuration, crd
from selfalign.run.executors.kubernetes.api import Cluster
from selfalign.run.executors.kubernetes.cluster import Resource
from selfalign.run.record import Attempt, StageState
from selfalign.serving.card import Score
from selfalign.store.artifact import artifact_prefix, read_file_as, read_manifest
from selfalign.store.base import Store
from selfalign.store.manifest import Manifest
from selfalign.telemetry import log

MAX_OBJECT_BYTES = 8 << 20  # a manifest of 10,000 parts has 6 MiB
MAX_SCORES = 300  # metrics times models: 14 of each of the usual models are 98
VERDICTS = ("Promoted", "NotPromoted", "NoChange", "Rejected", "None")
_LABEL_LIMIT = 80  # characters of a name that the store holds


class _Summary(BaseModel):
    metrics: list[Score]


class Findings(NamedTuple):
    """What a finished run found.

    Attributes:
        verdict: one of VERDICTS; "None" where the run ended before its gate judged.
        scores: overall means; those of single kinds, and of variants without a principle, are in
            the report.
        gpu_seconds: by stage, of this run's attempts; a stage that was reused has none.
    """

    run: str
    verdict: str
    scores: tuple[Score, ...]
    tokens_per_second: dict[str, float]
    gpu_seconds: dict[str, float]
    seconds: dict[str, float]


def findings_of(cluster: Cluster, open_store: Callable[[str], Store], run: Resource) -> Findings:
    """What a finished run found. Raises SelfAlignError where API server or store fail."""
    status = crd.status_of(run)
    store = open_store(configuration.platform_store(cluster))
    made = {
        stage.name: manifest
        for stage in status.stages
        if (manifest := _manifest(store, stage)) is not None
    }
    return Findings(
        run=status.id,
        verdict=status.verdict or "None",
        scores=_scores(store, made.get("evaluate")),
        tokens_per_second={
            name: rate
            for name, manifest in made.items()
            if (rate := manifest.provenance.tokens_per_second) is not None
        },
        gpu_seconds=_gpu_seconds(status.attempts),
        seconds={stage.name: stage.seconds for stage in status.stages if stage.seconds},
    )


def finished_at(run: Resource) -> datetime | None:
    """When the run ended; None while it has not."""
    completed = (run.get("status") or {}).get("completedAt")
    return datetime.fromisoformat(completed) if crd.is_finished(run) and completed else None


def _manifest(store: Store, stage: StageState) -> Manifest | None:
    """The manifest of a stage, without its entries; None where it is not there, too large or
    damaged: one bad artifact hides no other."""
    if stage.key is None:
        return None
    if not _is_small(store, artifact_prefix(stage.artifact, stage.key) + "manifest.json"):
        return None
    try:
        found = read_manifest(store, stage.artifact, stage.key)
    except DataError as error:
        log.warning("findings.unreadable", error=error.message)
        return None
    return None if found is None else found.model_copy(update={"shards": [], "identity": {}})


def _scores(store: Store, evaluation: Manifest | None) -> tuple[Score, ...]:
    if evaluation is None:
        return ()
    prefix = artifact_prefix(evaluation.artifact, evaluation.key)
    names = [file.location for file in evaluation.files if file.name == "files/summary.json"]
    if not names or not _is_small(store, prefix + names[0]):
        return ()
    try:
        summary = read_file_as(store, evaluation, "summary.json", _Summary)
    except DataError as error:
        log.warning("findings.unreadable", error=error.message)
        return ()
    overall = [
        row.model_copy(
            update={"model": row.model[:_LABEL_LIMIT], "metric": row.metric[:_LABEL_LIMIT]}
        )
        for row in summary.metrics
        if row.kind is None and "_without_" not in row.model
    ]
    unique = {(row.model, row.metric): row for row in overall}
    if len(unique) > MAX_SCORES:
        log.warning("findings.too_many_scores", found=len(unique), kept=MAX_SCORES)
    return tuple(unique.values())[:MAX_SCORES]


def _is_small(store: Store, key: str) -> bool:
    found = next(iter(store.entries(key)), None)  # in order, so this very key comes first
    if found is None or found.key != key:
        return False
    if found.bytes > MAX_OBJECT_BYTES:
        log.warning("findings.too_large", object=f"{store.url}/{key}", bytes=found.bytes)
    return found.bytes <= MAX_OBJECT_BYTES


def _gpu_seconds(attempts: list[Attempt]) -> dict[str, float]:
    spent: dict[str, float] = {}
    for attempt in attempts:
        if (used := attempt.gpu_seconds) is not None:
            spent[attempt.stage] = spent.get(attempt.stage, 0.0) + used
    return spent
