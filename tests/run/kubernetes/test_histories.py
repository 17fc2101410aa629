"""Any history ends right: the controller killed between any two calls, a second controller at work
between them, calls lost, answers lost, Jobs failing, evicted and deleted by hand, runs made anew,
another run promoted meanwhile."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from datetime import timedelta
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from selfalign.errors import SelfAlignError, StoreUnavailable
from selfalign.pipeline import BY_NAME, STAGES
from selfalign.run.executors.kubernetes.cluster import Conflict, Gone, Resource
from selfalign.run.executors.kubernetes.crd import ATTEMPT_LABEL, KEY_LABEL, STAGE_LABEL
from selfalign.store.artifact import read_manifest
from selfalign.store.base import Store
from selfalign.store.pointer import PromotedModel
from tests.artifacts import promote

from .memory import MemoryCluster
from .unreliable import Killed, Unreliable
from .worlds import DictStore, Refused, World, complete, ended_pod, fail, publish

FAULTS = ("lost", "unheard", "killed-before", "killed-after")
calls = st.integers(0, 12)
seldom = st.sampled_from([False, False, False, True])


class Journal(MemoryCluster):
    """The API double, which remembers every Job that was ever created in it, which of them had
    nothing to do any more, and which had the name of one that a status had told of before."""

    def __init__(self, store: Store, **options: Any) -> None:
        super().__init__(**options)
        self.store = store
        self.created: list[Resource] = []
        self.superfluous: list[str] = []
        self.observed: set[tuple[str, str]] = set()  # uid of the run, name of the Job
        self.used_again: list[str] = []

    def patch_status(self, run: Resource, status: Resource) -> Resource:
        done = super().patch_status(run, status)
        self.observed |= {
            (run["metadata"]["uid"], f"{run['metadata']['name']}-{row['stage']}-{row['number']}")
            for row in status.get("attempts") or []
            if row["condition"] != "Pending"
        }
        return done

    def create(self, kind: str, body: Resource) -> Resource:
        made = super().create(kind, body)
        if kind == "jobs":
            self.created.append(made)
            owner = made["metadata"]["ownerReferences"][0]["uid"]
            if (owner, made["metadata"]["name"]) in self.observed:
                self.used_again.append(made["metadata"]["name"])
            labels = made["metadata"]["labels"]
            artifact = BY_NAME[labels[STAGE_LABEL]].writes
            if read_manifest(self.store, artifact, labels[KEY_LABEL]) is not None:
                self.superfluous.append(made["metadata"]["name"])
        return made


class Histories(RuleBasedStateMachine):
    """One controller, and now and then a second one; everything around them may go wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        journal = Journal(self.world.store, clock=lambda: self.world.now, collect=False)
        for kind in ("configmaps", "cronjobs"):
            for found in self.world.cluster.list(kind):
                journal.create(kind, found)
        self.journal = self.world.cluster = journal
        self.unreliable = self.world.api = Unreliable(journal)
        self.world.restart()
        self.charged: Counter[tuple[str, str, str]] = Counter()  # uid, stage, key
        self.permanent: set[tuple[str, str, str]] = set()
        self.others = 0
        self.world.submit(maxAttempts=2)

    @initialize(stages=st.sampled_from([0, 0, 3, 5, 6, 7]))
    def an_earlier_run_has_left_artifacts(self, stages: int) -> None:
        """The run begins in the middle: what comes late is reached as often as what comes first."""
        self.world.submit("before")
        for stage in STAGES[:stages]:
            self.world.step("before")
            self.world.finish(f"before-{stage.name}-1")
        uid = self.world.run("before")["metadata"]["uid"]
        self.journal.delete("alignmentruns", "before", uid=uid)
        self.journal.collect_garbage()

    # what happens around the controller

    @rule()
    def look(self) -> None:
        self._look()

    @rule(seconds=st.sampled_from([1, 20, 40, 130, 700]))
    def time_passes_and_it_looks(self, seconds: int) -> None:
        self.world.now += timedelta(seconds=seconds)
        self._look()

    @rule(call=calls, fault=st.sampled_from(FAULTS))
    def look_while_a_call_fails(self, call: int, fault: str) -> None:
        self.unreliable.arm(call, fault)
        self._look()
        self.unreliable.disarm()

    @rule(data=st.data(), call=calls)
    def a_job_ends_while_it_looks(self, data: st.DataObject, call: int) -> None:
        active = self._active()
        if not active:
            return
        job = data.draw(st.sampled_from(active))
        self.unreliable.arm(call, "meanwhile", lambda: self._succeed(job))
        self._look()
        self.unreliable.disarm()

    @rule(call=calls)
    def a_job_is_deleted_while_it_looks(self, call: int) -> None:
        jobs = self.world.jobs()
        if jobs:
            self.unreliable.arm(call, "meanwhile", lambda: self._delete(jobs[-1]))
            self._look()
            self.unreliable.disarm()

    @rule(data=st.data(), call=calls, steps=st.integers(1, 3))
    def another_controller_works_meanwhile(
        self, data: st.DataObject, call: int, steps: int
    ) -> None:
        def meanwhile() -> None:
            for _ in range(steps):
                with contextlib.suppress(SelfAlignError):
                    second.reconcile("toy")
                active = self._active()
                if active and data.draw(st.booleans()):
                    self._succeed(data.draw(st.sampled_from(active)))

        second = self.world.controller(self.journal)
        self.unreliable.arm(call, "meanwhile", meanwhile)
        self._look()
        self.unreliable.disarm()

    @rule()
    def the_controller_is_killed(self) -> None:
        self.world.restart()

    @rule(data=st.data())
    @precondition(lambda self: self._active())
    def a_job_succeeds(self, data: st.DataObject) -> None:
        self._succeed(data.draw(st.sampled_from(self._active())))

    @rule(data=st.data())
    @precondition(lambda self: self._active())
    def a_job_has_published_and_goes_on(self, data: st.DataObject) -> None:
        self._publish(data.draw(st.sampled_from(self._active())))

    @rule(data=st.data(), code=st.sampled_from([1, 69, 70, 71, 75, 137]))
    @precondition(lambda self: self._active())
    def a_job_fails_for_a_reason_that_may_pass(self, data: st.DataObject, code: int) -> None:
        job = data.draw(st.sampled_from(self._active()))
        self.charged[self._of(job)] += 1
        fail(self.journal, job, self.world.now, code=code, message="may pass")

    @rule(data=st.data(), pods=st.booleans(), really=seldom)
    @precondition(lambda self: self._active())
    def a_job_fails_for_good(self, data: st.DataObject, pods: bool, really: bool) -> None:
        if not really:
            return
        job = data.draw(st.sampled_from(self._active()))
        self.permanent.add(self._of(job))
        fail(
            self.journal,
            job,
            self.world.now,
            code=3,
            message="corrupt",
            reason="PodFailurePolicy",
            pods=pods,
        )

    @rule(data=st.data())
    @precondition(lambda self: self._active())
    def a_job_is_stopped_by_a_signal(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self._active()))
        fail(self.journal, job, self.world.now, code=143, message="stopped")

    @rule(data=st.data())
    @precondition(lambda self: self._active())
    def a_job_completes_without_publishing(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self._active()))
        self.charged[self._of(job)] += 1
        complete(self.journal, job, self.world.now)

    @rule(data=st.data())
    @precondition(lambda self: self._active())
    def a_pod_is_evicted_and_its_job_goes_on(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self._active()))
        with contextlib.suppress(Conflict):
            ended_pod(self.journal, job, self.world.now, code=137, disrupted=True, suffix="evicted")

    @rule(data=st.data())
    @precondition(lambda self: self.world.jobs())
    def a_job_is_deleted_by_hand(self, data: st.DataObject) -> None:
        self._delete(data.draw(st.sampled_from(self.world.jobs())))

    @rule()
    def garbage_is_collected(self) -> None:
        self.journal.collect_garbage()

    @rule(really=seldom)
    def the_pinned_configuration_is_deleted_by_hand(self, really: bool) -> None:
        with contextlib.suppress(Gone):
            if really:
                uid = self.journal.get("controllerrevisions", "toy-config")["metadata"]["uid"]
                self.journal.delete("controllerrevisions", "toy-config", uid=uid)

    @rule()
    def the_store_is_down_for_a_look(self) -> None:
        assert isinstance(self.world.store, DictStore)
        self.world.store.failure = StoreUnavailable("down")
        self._look()
        self.world.store.failure = None

    @rule()
    def the_templates_change(self) -> None:
        for found in self.journal.list("cronjobs"):
            container = found["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
            container["image"] = f"selfalign/any:{self.world.now.timestamp()}"
            self.journal.replace("cronjobs", found)

    @rule(suspend=st.booleans())
    def suspend_is_toggled(self, suspend: bool) -> None:
        self.journal.patch("alignmentruns", "toy", {"spec": {"suspend": suspend}})

    @rule(seed=st.integers(1, 5))
    def the_configuration_is_edited(self, seed: int) -> None:
        self.journal.patch("alignmentruns", "toy", {"spec": {"config": {"seed": seed}}})

    @rule()
    def another_run_promotes_its_model(self) -> None:
        self.others += 1
        key, digest = f"other{self.others}", f"digest{self.others}"
        model = PromotedModel(artifact="final_model", key=key, digest=digest)
        promote(self.world.store, model, run="x")

    @rule(really=seldom)
    def the_run_is_deleted_and_made_anew(self, really: bool) -> None:
        if not really:
            return
        self.journal.delete("alignmentruns", "toy", uid=self.world.run()["metadata"]["uid"])
        self.world.submit(maxAttempts=2)

    # what always holds

    @invariant()
    def the_name_of_a_job_that_was_observed_is_not_used_again(self) -> None:
        assert self.journal.used_again == []

    @invariant()
    def an_artifact_has_at_most_one_active_job(self) -> None:
        keys = [
            self.journal.get("jobs", job)["metadata"]["labels"][KEY_LABEL] for job in self._active()
        ]
        assert len(keys) == len(set(keys))

    @invariant()
    def every_artifact_is_published_once(self) -> None:
        assert isinstance(self.world.store, DictStore)
        published = Counter(key for key in self.world.store.writes if key.endswith("manifest.json"))
        assert max(published.values(), default=1) == 1

    @invariant()
    def a_finished_stage_is_never_run_again(self) -> None:
        assert self.journal.superfluous == []

    @invariant()
    def only_real_failures_are_charged(self) -> None:
        uid = self.world.run()["metadata"]["uid"]
        rows = self.world.status().get("attempts") or []
        charged: Counter[tuple[str, str, str]] = Counter(
            (uid, row["stage"], row["key"]) for row in rows if row.get("cause") == "temporary"
        )
        assert charged <= self.charged

    @invariant()
    def a_failed_run_has_a_cause(self) -> None:
        failed = [c for c in self.world.status().get("conditions") or [] if c["type"] == "Failed"]
        if not failed or failed[0]["status"] != "True":
            return
        uid = self.world.run()["metadata"]["uid"]
        reason = failed[0]["reason"]
        if reason == "PermanentFailure":
            assert any(identity[0] == uid for identity in self.permanent)
        else:
            assert reason == "AttemptsExhausted", failed
            worst = max((n for i, n in self.charged.items() if i[0] == uid), default=0)
            assert worst >= 2

    @invariant()
    def the_status_fits_an_object(self) -> None:
        assert len(json.dumps(self.world.status())) < 200_000

    def teardown(self) -> None:
        """Left in peace, every history ends."""
        self.journal.patch("alignmentruns", "toy", {"spec": {"suspend": False}})
        for _ in range(60):
            if self.world.status().get("completedAt"):
                break
            self.world.now += timedelta(seconds=700)
            self._look()
            self.journal.collect_garbage()
            for job in self._active():
                self._succeed(job)
            self.the_name_of_a_job_that_was_observed_is_not_used_again()
        status = self.world.status()
        assert status.get("completedAt"), f"it does not end: {status.get('message')}"
        self.a_failed_run_has_a_cause()
        succeeded = self.world.condition("Succeeded")["status"] == "True"
        assert succeeded == (status["progress"] == f"{len(STAGES)}/{len(STAGES)}")
        assert succeeded == (status.get("verdict") == "Promoted")

    # how it is done

    def _look(self) -> None:
        try:
            self.world.step()
        except Killed:
            self.world.restart()
        except SelfAlignError:
            pass

    def _active(self) -> list[str]:
        """Jobs of the run that there is now which have not ended."""
        uid = self.world.run()["metadata"]["uid"]
        return [
            job["metadata"]["name"]
            for job in self.journal.list("jobs")
            if not (job.get("status") or {}).get("conditions")
            and job["metadata"]["ownerReferences"][0]["uid"] == uid
        ]

    def _of(self, job: str) -> tuple[str, str, str]:
        found = self.journal.get("jobs", job)
        labels = found["metadata"]["labels"]
        assert labels[ATTEMPT_LABEL].isdigit()
        owner = found["metadata"]["ownerReferences"][0]["uid"]
        return (owner, labels[STAGE_LABEL], labels[KEY_LABEL])

    def charge(self, identity: tuple[str, str, str]) -> None:
        self.charged[identity] += 1

    def _publish(self, job: str) -> None:
        """Publish, unless the stage would refuse since a pointer moved under it."""
        try:
            publish(self.journal, self.world.store, job)
        except Refused as refused:
            (self.permanent.add if refused.code == 2 else self.charge)(self._of(job))
            fail(self.journal, job, self.world.now, code=refused.code, message=str(refused))

    def _succeed(self, job: str) -> None:
        with contextlib.suppress(Gone):
            if self._ended(job):
                return
            self._publish(job)
            labels = self.journal.get("jobs", job)["metadata"]["labels"]
            artifact = BY_NAME[labels[STAGE_LABEL]].writes
            published = read_manifest(self.world.store, artifact, labels[KEY_LABEL]) is not None
            if published and not self._ended(job):
                complete(self.journal, job, self.world.now)

    def _ended(self, job: str) -> bool:
        return bool((self.journal.get("jobs", job).get("status") or {}).get("conditions"))

    def _delete(self, job: str) -> None:
        with contextlib.suppress(Gone):
            uid = self.journal.get("jobs", job)["metadata"]["uid"]
            self.journal.delete("jobs", job, uid=uid)


Histories.TestCase.settings = settings(
    max_examples=24, stateful_step_count=40, deadline=None, phases=[Phase.generate]
)
TestEveryHistoryEndsRight = Histories.TestCase
