"""Attempts as worker processes on this machine, and `selfalign run`, which drives them.

The driver and its decisions are the same as on a cluster. Nothing here is needed to resume: a
second `selfalign run` plans anew and finds what is published.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfalign.config import RunConfig
from selfalign.errors import (
    PERMANENT_EXIT_CODES,
    UNCHARGED_EXIT_CODES,
    Condemned,
    Interrupted,
    SelfAlignError,
)
from selfalign.identity import Inputs, replaced
from selfalign.load import write_resolved
from selfalign.pipeline import STAGES
from selfalign.records import now
from selfalign.run.decide import Start, decide
from selfalign.run.drive import Backoff, Driver, failed
from selfalign.run.executors.display import RunDisplay
from selfalign.run.executors.workers import WorkerResult, run_workers, stage_command
from selfalign.run.notify import NotDelivered, new_notice, send_until
from selfalign.run.plan import Planned, StagePlan, heed_gc, plan_from_store
from selfalign.run.record import Attempt, Cause, RunStatus, write_status
from selfalign.run.view import added_up
from selfalign.store.base import Store
from selfalign.store.files import explain_os_error

_STATUS_INTERVAL_SECONDS = 5.0
_NOTICE_SECONDS = 30.0  # for each target of `notify`; then the process ends
_CONDEMNED_SECONDS = 15.0  # between two looks while gc deletes what this run would have used
_BACKOFF = Backoff(first_seconds=2.0, factor=2.0, limit_seconds=60.0)


@dataclass(slots=True)
class LocalRun:
    """One run on this machine, from its first step to its end.

    Attributes:
        directory: where the resolved configuration and the log are written.
        max_attempts: charged attempts per stage.
        until: end the run successfully once this stage is published; None is all of them.
    """

    run_id: str
    config: RunConfig
    inputs: Inputs
    store: Store
    directory: Path
    display: RunDisplay
    max_attempts: int = 3
    until: str | None = None
    _status: RunStatus = field(init=False)
    _attempts: list[Attempt] = field(default_factory=list, init=False)
    _written: float = field(default=0.0, init=False)
    _reused: set[str] = field(default_factory=set, init=False)
    _shards: dict[int, dict[str, Any]] = field(default_factory=dict, init=False)

    def run(self) -> RunStatus:
        """Drive the run to its end and return its last status.

        Raises Interrupted, and SelfAlignError for what goes wrong around the stages: the store, an
        artifact in it, this machine's disk. The status is written in every case.
        """
        self._status = RunStatus(id=self.run_id, started_at=now())
        try:
            status = self._drive()
        except OSError as error:
            explained = explain_os_error(error, "run", self.directory)
            self._end(explained)
            raise explained from error
        except BaseException as error:
            self._end(error)
            raise
        self._notify()
        return status

    def attempts(self, remembered: Sequence[Attempt]) -> list[Attempt]:
        """The attempts of this process; those of an earlier one left nothing behind."""
        return list(self._attempts)

    def start(self, planned: Planned, number: int) -> None:
        """Run one worker process for each shard and wait for all."""
        stage = planned.stage.name
        shards: int = getattr(self.config, stage).num_shards
        self._shards = {}
        self.display.stage_started(planned, number, shards)
        started, clock = now(), time.monotonic()
        commands = [
            stage_command(
                stage,
                str(self.directory / "config.yaml"),
                shard=shard,
                num_shards=shards,
                key=planned.key,
                run=self.run_id,
            )
            for shard in range(shards)
        ]
        with (self.directory / "log.jsonl").open("a", encoding="utf-8") as log_file:
            results = run_workers(commands, log_file, lambda event: self._event(stage, event))
        attempt = _attempt(planned, number, results, started)
        self._attempts.append(attempt)
        if attempt.condition == "Complete":
            self.display.stage_finished(planned, time.monotonic() - clock)
        else:
            actions = decide([planned], self._attempts, max_attempts=self.max_attempts)
            again = any(isinstance(action, Start) for action in actions)
            self.display.attempt_failed(stage, number, attempt.message, again)

    def _drive(self) -> RunStatus:
        # with the models' digests, so that no worker hashes their files again
        revisions: dict[str, str | None] = {"base_model.revision": self.inputs.base_model}
        revisions["evaluate.judge.model.revision"] = self.inputs.judge
        resolved = replaced(self.config, revisions)
        write_resolved(resolved, self.directory / "config.yaml")
        driver = Driver(
            self,
            self._plan,
            self._save,
            self.max_attempts,
            _BACKOFF,
            heed=lambda named: heed_gc(self.store, named),
        )
        while True:
            try:
                status, wait_seconds = driver.step(self._status)
            except Condemned as error:
                self.display.waiting(error.message)
                time.sleep(_CONDEMNED_SECONDS)
                continue
            if status.finished or status.awaits_approval:
                return status
            if status.reason == "Waiting" and wait_seconds:
                time.sleep(wait_seconds)

    def _plan(self) -> list[StagePlan]:
        plan = plan_from_store(self.config, self.inputs, self.store)
        names = [stage.name for stage in STAGES]
        plan = plan if self.until is None else plan[: names.index(self.until) + 1]
        for planned in plan:
            name = planned.stage.name
            if isinstance(planned, Planned) and planned.manifest and name not in self._reused:
                self._reused.add(name)
                if not any(a.stage == name and a.key == planned.key for a in self._status.attempts):
                    self.display.stage_reused(planned)
        return plan

    def _save(self, status: RunStatus) -> None:
        self._status, self._written = status, time.monotonic()
        write_status(self.store, status)

    def _event(self, stage: str, event: dict[str, Any]) -> None:
        if event.get("event") != "stage.progress":
            return
        self._shards[event["shard"]] = event
        progress = added_up(list(self._shards.values()))
        self.display.progress(stage, progress, event.get("loss"))
        update = {"done": progress.done, "total": progress.total}
        stages = [
            state.model_copy(update=update) if state.name == stage else state
            for state in self._status.stages
        ]
        self._status = self._status.model_copy(update={"stages": stages, "updated_at": now()})
        if time.monotonic() - self._written > _STATUS_INTERVAL_SECONDS:
            with contextlib.suppress(SelfAlignError, OSError):  # no reason to stop the workers
                self._save(self._status)

    def _end(self, error: BaseException) -> None:
        """Write the last status. A store that refuses it must not hide what ended the run."""
        reason, moment = type(error).__name__, now()
        if isinstance(error, Interrupted | KeyboardInterrupt):
            update = {
                "phase": "Interrupted",
                "reason": "Interrupted",
                "message": "finished work is kept",
                "updated_at": moment,
            }
            status = self._status.model_copy(update=update)
        else:
            known = error if isinstance(error, SelfAlignError) else SelfAlignError(str(error))
            status = failed(
                self._status,
                reason,
                known.message,
                known.remedy,
                exit_code=known.exit_code,
                moment=moment,
            )
        self._status = status
        with contextlib.suppress(SelfAlignError, OSError):
            write_status(self.store, status)
        if status.finished:
            self._notify()

    def _notify(self) -> None:
        """Tell each target of `notify` how the run ended. A failure is only shown."""
        if not self.config.notify:
            return
        notice = new_notice(
            self.store,
            self._status,
            unique=f"{self.store.url} {self.run_id}",
            source=f"/runs/{self.run_id}",
            where=f"--store {shlex.quote(self.store.url)}",
        )
        for target in self.config.notify:
            try:
                send_until(_NOTICE_SECONDS, notice, target)
            except NotDelivered as error:
                self.display.not_told(target.url_variable, str(error))
                continue
            told = {**self._status.notified, target.url_variable: notice.id}
            self._status = self._status.model_copy(update={"notified": told})
            with contextlib.suppress(SelfAlignError, OSError):
                write_status(self.store, self._status)


def _attempt(planned: Planned, number: int, results: list[WorkerResult], started: str) -> Attempt:
    """The attempt that several workers make together: the worst of them decides its cause."""
    attempt = Attempt(
        stage=planned.stage.name,
        key=planned.key,
        number=number,
        condition="Complete",
        started_at=started,
        finished_at=now(),
    )
    ends = [result for result in results if result.exit_code != 0]
    if not ends:
        return attempt
    worst = min(ends, key=lambda r: (r.exit_code not in PERMANENT_EXIT_CODES, r.shard))
    where = f"shard {worst.shard}: " if len(results) > 1 else ""
    return attempt.model_copy(
        update={
            "condition": "Failed",
            "cause": classify_exit(worst.exit_code),
            "exit_code": worst.exit_code,
            "message": where + worst.message,
            "remedy": worst.remedy,
        }
    )


def classify_exit(code: int) -> Cause:
    """Whether another attempt can help. An unknown failure may pass, so it is tried again."""
    if code in PERMANENT_EXIT_CODES:
        return "permanent"
    return "disrupted" if code in UNCHARGED_EXIT_CODES else "temporary"
