"""The AlignmentRun resource: names and labels, spec, and its status as a RunStatus. Pure."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from selfalign.errors import ConfigurationError
from selfalign.run.executors.kubernetes.cluster import Resource, is_true, name_of
from selfalign.run.record import RunStatus
from selfalign.store.documents import first_problem

GROUP = "selfalign.io"
VERSION = "v1alpha1"
PLURAL = "alignmentruns"
KIND = "AlignmentRun"
API_VERSION = f"{GROUP}/{VERSION}"

RUN_LABEL = f"{GROUP}/run"
STAGE_LABEL = f"{GROUP}/stage"
ATTEMPT_LABEL = f"{GROUP}/attempt"
KEY_LABEL = f"{GROUP}/key"
TEMPLATE_LABEL = f"{GROUP}/stage-template"
NIGHTLY_LABEL = f"{GROUP}/nightly"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
KUEUE_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
MAX_PARALLELISM_ANNOTATION = f"{GROUP}/max-parallelism"
SPEC_DIGEST_ANNOTATION = f"{GROUP}/spec-digest"
CONFIG_ANNOTATION = f"{GROUP}/config"  # of a pod: its config.yaml, which it mounts as a file
SUBMITTED_BY_ANNOTATION = f"{GROUP}/submitted-by"
# What a person decided on a run's model. For people to read: what counts is in the store.
DECISION_ANNOTATION = f"{GROUP}/decision"
DECIDED_BY_ANNOTATION = f"{GROUP}/decided-by"
DECIDED_AT_ANNOTATION = f"{GROUP}/decided-at"

MANAGER = "selfalign-controller"
PLATFORM_CONFIG = "selfalign-config"
CONFIG_FILE = "config.yaml"
POLICY_FILE = "policy.yaml"
STAGE_CONTAINER = "stage"
MAX_NAME_LENGTH = 63  # a Job's name is a label value of its pods
_MESSAGE_LIMIT = 900  # characters; an Event's message ends at 1 KiB

ConditionType = Literal["Accepted", "Progressing", "Succeeded", "Failed", "Served"]


class AlignmentRunSpec(BaseModel):
    """What a person asks for.

    Attributes:
        config: overrides of the platform's configuration, shaped as a RunConfig.
        max_attempts: charged attempts per stage.
        suspend: start no further stage while true; what runs goes on.
        ttl_seconds_after_finished: delete the run and its Jobs this long after its end; None
            keeps it.
        queue_name: a Kueue LocalQueue; None leaves it to the stage's template.
        priority: a PriorityClass for the pods; None leaves it to the stage's template.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )

    config: dict[str, Any] = Field(default_factory=dict)
    max_attempts: int = Field(3, ge=1, le=10)
    suspend: bool = False
    ttl_seconds_after_finished: int | None = Field(None, ge=0, le=2**31 - 1)
    queue_name: str | None = None
    priority: str | None = None


def new_run(
    name: str,
    namespace: str,
    spec: Resource,
    *,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
) -> Resource:
    """An AlignmentRun to be created."""
    metadata: Resource = {"name": name, "namespace": namespace}
    if labels:
        metadata["labels"] = labels
    if annotations:
        metadata["annotations"] = annotations
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}


def parse_spec(run: Resource) -> AlignmentRunSpec:
    """The spec. Raises ConfigurationError naming the field that is wrong."""
    try:
        return AlignmentRunSpec.model_validate(run.get("spec") or {})
    except ValidationError as error:
        raise ConfigurationError(
            f"AlignmentRun {name_of(run)}: spec.{first_problem(error)}",
            remedy="see `kubectl explain alignmentrun.spec`",
        ) from error


def job_name(run: str, stage: str, attempt: int) -> str:
    """Deterministic, so that a second create of the same attempt is a conflict, not a twin."""
    name = f"{run}-{stage}-{attempt}"
    assert len(name) <= MAX_NAME_LENGTH, name
    return name


def config_name(run: str) -> str:
    """The ControllerRevision that pins a run's configuration."""
    return f"{run}-config"


def of_run(run: str) -> str:
    """Label selector of everything that belongs to a run."""
    return f"{RUN_LABEL}={run}"


def status_of(run: Resource) -> RunStatus:
    """The run's status; an empty one before the controller has seen the run."""
    try:
        return RunStatus.model_validate(
            {**_phase(run), **(run.get("status") or {}), "id": name_of(run)}
        )
    except ValidationError:  # edited by hand, or written by another version: start anew
        return RunStatus(id=name_of(run), **_phase(run))


def condition(run: Resource, kind: ConditionType) -> Resource | None:
    """The run's condition of this type, if it has one."""
    conditions = (run.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == kind), None)


def is_finished(run: Resource) -> bool:
    """Whether the run has ended, well or not."""
    return is_true(run, "Succeeded") or is_true(run, "Failed")


def phase_of(run: Resource) -> str:
    """One word for how a run stands: Succeeded, Failed, the reason it progresses or not, or Pending
    where the controller has not seen it."""
    if is_true(run, "Succeeded"):
        return "Succeeded"
    if is_true(run, "Failed"):
        return "Failed"
    found = condition(run, "Progressing")
    return found["reason"] if found else "Pending"


def to_resource_status(
    status: RunStatus, before: Resource, *, accepted: bool, generation: int, moment: str
) -> Resource:
    """The status as the AlignmentRun holds it: the RunStatus's dump, and conditions. One that
    something else writes, Served, stays.

    Args:
        before: the status that the resource has; conditions keep their transition times.
        accepted: whether the run's own configuration is valid, as far as it is known.
    """
    dump = status.model_dump(
        mode="json", by_alias=True, exclude_none=True, exclude={"id", "phase", "updated_at"}
    )
    dump["message"] = status.message[:_MESSAGE_LIMIT]
    dump["observedGeneration"] = generation
    message = one_line(status)
    ended, well = status.finished, status.phase == "Succeeded"
    progressing = "Succeeded" if well else status.reason
    wanted: list[tuple[ConditionType, bool, str]] = [
        ("Accepted", accepted, "Valid" if accepted else status.reason),
        ("Progressing", not ended, progressing),
        ("Succeeded", well, status.reason),
    ]
    if ended:
        wanted.append(("Failed", not well, status.reason))
    old = {c["type"]: c for c in before.get("conditions") or []}
    conditions = []
    for kind, value, reason in wanted:
        text = "True" if value else "False"
        known = old.get(kind) or {}
        same = known.get("status") == text
        valid = kind == "Accepted" and accepted
        conditions.append(
            {
                "type": kind,
                "status": text,
                "reason": reason,
                "message": "the configuration is valid" if valid else message,
                "observedGeneration": generation,
                "lastTransitionTime": known["lastTransitionTime"] if same else moment,
            }
        )
    if "Served" in old:  # serving.py writes it, also after the run's end
        conditions.append(old["Served"])
    return {**dump, "conditions": conditions}


def one_line(status: RunStatus) -> str:
    """Cause and remedy in one line."""
    message = "; ".join(line.strip() for line in status.message.splitlines() if line.strip())
    text = f"{message}; remedy: {status.remedy}" if status.remedy else message
    return text[:_MESSAGE_LIMIT]


def _phase(run: Resource) -> dict[str, Any]:
    """What the conditions say and the dump leaves out."""
    if is_true(run, "Succeeded"):
        return {"phase": "Succeeded"}
    return {"phase": "Failed" if is_true(run, "Failed") else "Running"}
