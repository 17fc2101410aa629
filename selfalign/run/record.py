"""What is remembered of a run: its request, its attempts, its status.

`runs/<id>/run.json` in the store holds the RunRecord and `runs/<id>/status.json` the RunStatus; the
status of an AlignmentRun is the same RunStatus. They are an index for people. The truth about a
stage is its manifest, so losing these objects loses no work.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from selfalign.errors import ConfigurationError, DataError
from selfalign.pipeline import BY_NAME
from selfalign.store.base import NotFound, Store
from selfalign.store.documents import (
    StoredCount,
    StoredModel,
    StoredName,
    decode_json,
    parse_document,
)
from selfalign.store.keys import is_key


def _check_moment(text: str) -> str:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None or not 1970 <= moment.year < 9000:
        raise ValueError(f"{text[:40]!r} is no time with its offset from UTC")
    return text


_Moment = Annotated[str, AfterValidator(_check_moment)]
_READERS = 16  # run.json objects that are read at once
AttemptCondition = Literal["Pending", "Active", "Complete", "Failed"]
Cause = Literal["permanent", "temporary", "disrupted"]
StagePhase = Literal["Pending", "Running", "Done", "Reused", "Failed"]
RunPhase = Literal["Running", "Succeeded", "Failed", "Interrupted"]
# A Job's name is a label value of its pods, at most 63 characters, and an Indexed Job's pod is
# called `<job>-<index>`: 40 leave room for `-elaborate-9999-9999`. The CRD has the same rule.
_RUN_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")
AWAITING_APPROVAL = "AwaitingApproval"  # reason of a run whose model a person is to decide on
KEPT_DISRUPTIONS = 5  # attempts of a stage that cost nothing; older ones are forgotten


class _Status(StoredModel):
    """snake_case here and in the store, camelCase in an AlignmentRun; unknown fields are ignored,
    since another version may have written them."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True
    )


class Attempt(_Status):
    """One try at a stage: worker processes on one machine, a Job on a cluster.

    Attributes:
        number: counts the attempts at a stage within the run, from 1. It names the Job.
        condition: Pending while the start is announced and nobody has seen the attempt.
        cause: set where the condition is Failed. Disrupted attempts cost nothing.
        message: what went wrong, for people; of an Active attempt, in a part of it.
        waiting: why an Active attempt makes no progress; empty when it works.
        done, total: finished shards of an attempt that has shards.
        started_at, finished_at: ISO 8601; None until they are known.
        disrupted: one of the attempt's pods was evicted, preempted or drained.
        gpus: that its pods hold at a time; None where that is not known.
    """

    stage: str
    key: str
    number: StoredCount
    condition: AttemptCondition
    cause: Cause | None = None
    exit_code: int | None = None
    message: str = ""
    remedy: str | None = None
    waiting: str = ""
    done: StoredCount | None = None
    total: StoredCount | None = None
    started_at: _Moment | None = None
    finished_at: _Moment | None = None
    disrupted: bool = False
    gpus: StoredCount | None = None

    @property
    def identity(self) -> tuple[str, str, int]:
        """What tells one attempt of a run from another."""
        return (self.stage, self.key, self.number)

    @property
    def seconds(self) -> float:
        """How long the attempt took; 0 while that is not known, and where clocks differ by more."""
        if not self.started_at or not self.finished_at:
            return 0.0
        took = datetime.fromisoformat(self.finished_at) - datetime.fromisoformat(self.started_at)
        return max(took.total_seconds(), 0.0)

    @property
    def gpu_seconds(self) -> float | None:
        """GPUs that it held, times its seconds; None where GPUs were not counted."""
        return None if self.gpus is None else self.gpus * self.seconds


def _check_stage(name: str) -> str:
    if name not in BY_NAME:
        raise ValueError(f"{name[:100]!r} is no stage")
    return name


class StageState(_Status):
    """How a stage of a run stands.

    Attributes:
        key: of the artifact; None while the stages before are not published.
        attempts: charged attempts; disrupted ones are counted apart.
        done, total: records, steps or shards, as the stage counts.
        seconds: of all attempts that have ended.
        message: why the stage waits or failed.
    """

    name: Annotated[str, AfterValidator(_check_stage)]
    phase: StagePhase = "Pending"
    key: StoredName | None = None
    digest: str | None = None
    attempts: StoredCount = 0
    disruptions: StoredCount = 0
    done: StoredCount | None = None
    total: StoredCount | None = None
    seconds: float | None = Field(None, ge=0, le=1e12)
    message: str = ""

    @property
    def artifact(self) -> str:
        """What the stage writes."""
        return BY_NAME[self.name].writes

    @model_validator(mode="before")
    @classmethod
    def _as_0_3_wrote_it(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("attempts"), list):
            return {**value, "name": value.get("stage"), "attempts": len(value["attempts"])}
        return value


class RunStatus(_Status):
    """How a run stands.

    Attributes:
        reason: one word for programs: Running, Waiting, Suspended, AwaitingApproval, a verdict, an
            error's name.
        message: the cause, for people.
        remedy: what to do about it; None where the message needs no action.
        exit_code: of the stage or error that ended the run; None unless it failed.
        verdict: None before the gate has judged.
        stage: under way, or where the run ended.
        progress: published stages of all stages, e.g. "3/8".
        notified: who was told of what: a target's url_variable -> id of the last notice it took.
    """

    id: str
    phase: RunPhase = "Running"
    reason: str = ""
    message: str = ""
    remedy: str | None = None
    exit_code: int | None = None
    verdict: Literal["Promoted", "NotPromoted", "NoChange", "Rejected"] | None = None
    stage: str = ""
    progress: str = ""
    started_at: str | None = None
    updated_at: str = ""
    completed_at: str | None = None
    stages: list[StageState] = Field(default_factory=list)
    attempts: list[Attempt] = Field(default_factory=list)
    notified: dict[str, str] = Field(default_factory=dict)

    @property
    def gpu_hours(self) -> float | None:
        """GPUs times hours of every attempt that has ended; None where GPUs were not counted."""
        counted = [s for attempt in self.attempts if (s := attempt.gpu_seconds) is not None]
        return sum(counted) / 3600 if counted else None

    @property
    def finished(self) -> bool:
        """Whether the run has ended, well or not."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def awaits_approval(self) -> bool:
        """Whether a person is to decide on the final model."""
        return not self.finished and self.reason == AWAITING_APPROVAL

    def key_of(self, stage: str) -> str | None:
        """Key of the artifact that a stage makes; None while it is not known."""
        return next((state.key for state in self.stages if state.name == stage), None)


class RunRecord(StoredModel):
    """What was asked for. Written once."""

    id: str
    created_at: str
    code_version: str
    config: dict[str, Any]
    annotation_lines: StoredCount | None = None

    @property
    def on_cluster(self) -> bool:
        """Whether the controller made the run: it reads no seeds, so it counts no lines."""
        return self.annotation_lines is None


def of_stage(attempts: Iterable[Attempt], stage: str, key: str | None) -> list[Attempt]:
    """The attempts at one artifact, by number."""
    mine = [a for a in attempts if a.stage == stage and a.key == key]
    return sorted(mine, key=lambda attempt: attempt.number)


def to_remember(attempts: Iterable[Attempt]) -> list[Attempt]:
    """All charged attempts, and of each artifact the latest disrupted ones, oldest first."""
    kept: list[Attempt] = []
    disruptions: dict[tuple[str, str], int] = {}
    for attempt in sorted(attempts, key=lambda a: (a.stage, a.number), reverse=True):
        if attempt.cause == "disrupted":
            group = (attempt.stage, attempt.key)
            disruptions[group] = disruptions.get(group, 0) + 1
            if disruptions[group] > KEPT_DISRUPTIONS:
                continue
        kept.append(attempt)
    return kept[::-1]


def check_run_name(name: str) -> None:
    """Raise ConfigurationError for a name that would not do on a cluster."""
    if not _RUN_NAME.fullmatch(name):
        raise ConfigurationError(
            f"run name {name[:100]!r}: expected at most 40 lower-case letters, digits and hyphens, "
            "because the names of Jobs and pods begin with it",
            remedy="give the run another name",
        )


def new_run_id() -> str:
    """A fresh id that sorts by time and is a valid name on a cluster."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def write_run(store: Store, record: RunRecord) -> None:
    """Create the run. Raises PreconditionFailed when the id is taken."""
    store.write(f"runs/{record.id}/run.json", record.to_bytes(), if_absent=True)


def write_status(store: Store, status: RunStatus) -> None:
    """Overwrite the run's status."""
    store.write(f"runs/{status.id}/status.json", status.to_bytes())


def read_run(store: Store, run_id: str) -> RunRecord:
    """The run.

    Raises ConfigurationError, naming the latest runs, when there is none of this id, and DataError
    when its record cannot be read.
    """
    name = f"runs/{run_id}/run.json"
    try:
        if not is_key(name):
            raise NotFound(name)
        return parse_document(
            f"{store.url}/{name}",
            store.read(name),
            RunRecord,
            remedy=f"delete {name}: it is an index for people, no artifact is lost with it; if "
            "another version of selfalign wrote it, use that one",
        )
    except NotFound:
        known = run_ids(store)[-5:]
        raise ConfigurationError(
            f"no run {run_id!r} in {store.url}",
            remedy=f"the latest runs are {', '.join(known)}" if known else "no run was made yet",
        ) from None


def read_status(store: Store, run_id: str) -> RunStatus | None:
    """The run's status, or None when none can be read."""
    name = f"runs/{run_id}/status.json"
    try:
        return parse_document(f"{store.url}/{name}", store.read(name), RunStatus)
    except (NotFound, DataError):
        return None


def status_to_show(store: Store, run_id: str) -> RunStatus:
    """The run's status, or one that says that none can be read."""
    return read_status(store, run_id) or RunStatus(
        id=run_id,
        phase="Interrupted",
        reason="NoStatus",
        message=f"runs/{run_id}/status.json cannot be read: the run has only begun, or ended "
        "before it wrote one",
    )


def latest_run(store: Store) -> str:
    """The newest run's id. Raises ConfigurationError when there is none."""
    ids = run_ids(store)
    if not ids:
        raise ConfigurationError(
            f"{store.url}: no run was made yet", remedy="start one: selfalign run --config FILE"
        )
    return ids[-1]


def run_ids(store: Store) -> list[str]:
    """Ids of all runs by creation, oldest first. A run whose record cannot be read comes last."""
    keys = [key for key in store.list("runs/") if key.endswith("/run.json")]
    # One small object for each run: over a year of nights, reading one after the other is slow.
    with ThreadPoolExecutor(_READERS) as readers:
        created = list(readers.map(lambda key: _created(store, key), keys))
    ids = [key.split("/")[1] for key in keys]
    found = ((when, each) for when, each in zip(created, ids, strict=True) if when is not None)
    return [run_id for _, run_id in sorted(found)]


def _created(store: Store, key: str) -> float | None:
    """When a run was created; None where its record was removed meanwhile.

    Only this field is read, because another version may have written the rest.
    """
    try:
        return datetime.fromisoformat(decode_json(store.read(key))["created_at"]).timestamp()
    except NotFound:
        return None
    except (ValueError, TypeError, KeyError, OverflowError):
        return math.inf
