"""`selfalign run` on one machine: observe the store, `decide`, apply with worker processes.

The same decisions as on a cluster, with a process group in the place of a Job. Nothing here is
needed to resume: a second call observes the store and goes on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from selfalign.config import RunConfig
from selfalign.errors import (
    INTERRUPTED_EXIT_CODES,
    PERMANENT_EXIT_CODES,
    Interrupted,
    SelfAlignError,
)
from selfalign.identity import Inputs
from selfalign.load import write_resolved
from selfalign.pipeline import STAGES
from selfalign.records import now
from selfalign.run.decide import Attempt, Cause, Fail, StageState, Start, Succeed, decide
from selfalign.run.plan import StagePlan, plan_from_store
from selfalign.run.record import (
    AttemptRecord,
    Phase,
    RunStatus,
    StageRecord,
    write_status,
)
from selfalign.runner.workers import WorkerResult, run_workers, stage_command
from selfalign.store.base import Store
from selfalign.store.files import explain_os_error

_STATUS_INTERVAL_SECONDS = 5.0


class RunFailed(Exception):
    """The run ended without success. Carries the exit code of the stage that ended it."""

    def __init__(
        self, stage: str, reason: str, message: str, exit_code: int, remedy: str | None = None
    ) -> None:
        super().__init__(message)
        self.stage = stage
        self.reason = reason
        self.message = message
        self.remedy = remedy
        self.exit_code = exit_code


class RunObserver(Protocol):
    """Whoever shows a run to a person."""

    def stage_reused(self, planned: StagePlan) -> None: ...

    def stage_started(self, planned: StagePlan, attempt: int, num_shards: int) -> None: ...

    def event(self, stage: str, event: dict[str, Any]) -> None: ...

    def stage_finished(self, planned: StagePlan, seconds: float) -> None: ...

    def attempt_failed(self, stage: str, attempt: int, message: str, again: bool) -> None: ...


@dataclass(slots=True)
class LocalRun:
    """One run on this machine.

    Attributes:
        directory: where the resolved configuration and the log are written.
        max_attempts: charged attempts per stage.
        retry_delay_seconds: before the second attempt; doubles with each further one.
        until: stop, successfully, once this stage is published; None is all of them.
    """

    run_id: str
    config: RunConfig
    inputs: Inputs
    store: Store
    directory: Path
    observer: RunObserver
    max_attempts: int = 3
    retry_delay_seconds: float = 2.0
    until: str | None = None
    sleep: Callable[[float], None] = time.sleep
    _attempts: list[Attempt] = field(default_factory=list)
    _records: dict[str, StageRecord] = field(default_factory=dict)
    _status_written: float = 0.0

    def run(self) -> list[StagePlan]:
        """Drive the run to its end; return the final plan.

        Raises RunFailed when a stage fails for good, SelfAlignError for what goes wrong around
        the stages: the store, an artifact found there, this machine's disk.
        """
        self._records = {s.name: StageRecord(stage=s.name, artifact=s.writes) for s in STAGES}
        config_path = self.directory / "config.yaml"
        try:
            write_resolved(self._pinned(), config_path)
            return self._loop(config_path, set())
        except RunFailed as failure:
            self._end("Failed", failure.reason, failure.message, failure.remedy)
            raise
        except Interrupted:
            self._end("Interrupted", "Interrupted", "finished work is kept")
            raise
        except SelfAlignError as error:
            self._end("Failed", type(error).__name__, error.message, error.remedy)
            raise
        except OSError as error:
            explained = explain_os_error(error, "run", self.directory)
            remedy = getattr(explained, "remedy", None)
            self._end("Failed", type(explained).__name__, str(explained), remedy)
            raise explained from error
        except BaseException:
            self._end("Interrupted", "Interrupted", "finished work is kept")
            raise

    def _end(self, phase: Phase, reason: str, message: str, remedy: str | None = None) -> None:
        """The last status. A store that does not take it must not hide what ended the run."""
        with contextlib.suppress(SelfAlignError, OSError):
            self._write_status(phase, reason, message, remedy)

    def _loop(self, config_path: Path, seen: set[str]) -> list[StagePlan]:
        while True:
            plan = plan_from_store(self.config, self.inputs, self.store)
            self._observe(plan, seen)
            considered = self._considered(plan)
            states = [
                StageState(p.stage.name, getattr(p, "key", None), p.manifest is not None)
                for p in considered
            ]
            for action in decide(states, self._attempts, max_attempts=self.max_attempts):
                if isinstance(action, Succeed):
                    self._write_status("Succeeded", verdict=_verdict(plan))
                    return plan
                if isinstance(action, Fail):
                    raise self._failure(action)
                if isinstance(action, Start):
                    planned = next(p for p in plan if p.stage.name == action.stage)
                    self._start(planned, action, config_path)

    def _considered(self, plan: list[StagePlan]) -> list[StagePlan]:
        if self.until is None:
            return plan
        names = [planned.stage.name for planned in plan]
        return plan[: names.index(self.until) + 1]

    def _pinned(self) -> RunConfig:
        """The configuration with the base model's digest, so that no worker hashes it again."""
        base = self.config.base_model.model_copy(update={"revision": self.inputs.base_model})
        return self.config.model_copy(update={"base_model": base})

    def _observe(self, plan: list[StagePlan], seen: set[str]) -> None:
        for planned in plan:
            name = planned.stage.name
            if planned.manifest is None or name in seen:
                continue
            seen.add(name)
            attempted = any(
                a.stage == name and a.key == getattr(planned, "key", None) for a in self._attempts
            )
            self._update(
                name,
                key=getattr(planned, "key", None),
                digest=planned.manifest.digest,
                phase="Done" if attempted else "Reused",
            )
            if not attempted:
                self.observer.stage_reused(planned)
        self._write_status("Running")

    def _start(self, planned: StagePlan, action: Start, config_path: Path) -> None:
        name = action.stage
        if action.attempt > 1:
            self.sleep(self.retry_delay_seconds * 2 ** (action.attempt - 2))
        shards = getattr(self.config, name).num_shards
        self.observer.stage_started(planned, action.attempt, shards)
        started, clock = now(), time.monotonic()
        self._update(name, key=action.key, phase="Running")
        self._write_status("Running")
        commands = [
            stage_command(
                name,
                str(config_path),
                shard=shard,
                num_shards=shards,
                key=action.key,
                run=self.run_id,
            )
            for shard in range(shards)
        ]
        with (self.directory / "log.jsonl").open("a", encoding="utf-8") as log_file:
            results = run_workers(commands, log_file, lambda event: self._event(name, event))
        seconds = time.monotonic() - clock
        attempt = _attempt(action, results)
        self._attempts.append(attempt)
        self._record_attempt(attempt, started, seconds)
        if attempt.condition == "Complete":
            self.observer.stage_finished(planned, seconds)
        else:
            again = attempt.cause != "permanent" and action.attempt < self.max_attempts
            self.observer.attempt_failed(name, action.attempt, attempt.message, again)

    def _event(self, stage: str, event: dict[str, Any]) -> None:
        self.observer.event(stage, event)
        if event.get("event") == "stage.progress":
            self._update(stage, done=event.get("done", 0), total=event.get("total"))
            if time.monotonic() - self._status_written > _STATUS_INTERVAL_SECONDS:
                self._write_status("Running")

    def _record_attempt(self, attempt: Attempt, started: str, seconds: float) -> None:
        record = AttemptRecord(
            number=attempt.number,
            condition=attempt.condition,
            started_at=started,
            finished_at=now(),
            exit_code=attempt.exit_code,
            cause=attempt.cause,
            message=attempt.message,
        )
        before = self._records[attempt.stage]
        self._update(
            attempt.stage,
            attempts=[*before.attempts, record],
            seconds=round((before.seconds or 0.0) + seconds, 2),
            phase="Failed" if attempt.condition == "Failed" else before.phase,
        )

    def _update(self, stage: str, **values: Any) -> None:
        self._records[stage] = self._records[stage].model_copy(update=values)

    def _write_status(
        self,
        phase: Phase,
        reason: str = "",
        message: str = "",
        remedy: str | None = None,
        verdict: str | None = None,
    ) -> None:
        self._status_written = time.monotonic()
        write_status(
            self.store,
            RunStatus(
                id=self.run_id,
                phase=phase,
                updated_at=now(),
                reason=reason,
                message=message,
                remedy=remedy,
                verdict=verdict,
                stages=list(self._records.values()),
            ),
        )

    def _failure(self, action: Fail) -> RunFailed:
        codes = [a.exit_code for a in self._attempts if a.stage == action.stage and a.exit_code]
        code = codes[-1] if codes else 1
        code = code if code > 0 else 1
        return RunFailed(action.stage, action.reason, action.message, code, action.remedy)


def _verdict(plan: list[StagePlan]) -> str | None:
    """The gate's verdict in the words of an AlignmentRun's status; None before the gate."""
    promotion = plan[-1].manifest
    if promotion is None:
        return None
    return "Promoted" if promotion.details["promoted"] else "NotPromoted"


def _attempt(action: Start, results: list[WorkerResult]) -> Attempt:
    """Several workers make one attempt: the worst of them decides its cause."""
    failed = [result for result in results if result.exit_code != 0]
    if not failed:
        return Attempt(action.stage, action.key, action.attempt, "Complete")
    worst = min(failed, key=lambda r: (r.exit_code not in PERMANENT_EXIT_CODES, r.shard))
    where = f"shard {worst.shard}: " if len(results) > 1 else ""
    return Attempt(
        action.stage,
        action.key,
        action.attempt,
        "Failed",
        cause=classify_exit(worst.exit_code),
        exit_code=worst.exit_code,
        message=where + worst.message,
        remedy=worst.remedy,
    )


def classify_exit(code: int) -> Cause:
    """Whether another attempt can help. An unknown failure may pass, so it is tried again."""
    if code in PERMANENT_EXIT_CODES:
        return "permanent"
    return "disrupted" if code in INTERRUPTED_EXIT_CODES else "temporary"
