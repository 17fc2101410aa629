"""`decide` is pure: whatever the order of events, losses and repeats, it ends right."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from selfalign.pipeline import STAGES
from selfalign.run.decide import Await, Fail, Start, Succeed, decide
from selfalign.run.plan import Blocked, Planned, StagePlan
from selfalign.run.record import Attempt, Cause
from selfalign.store.manifest import Counts, Manifest, Provenance

NAMES = ("instruct", "curate", "align")
FIRST, SECOND, _ = NAMES
ROWS = {stage.name: stage for stage in STAGES}
PUBLISHED = Manifest(
    artifact="any",
    stage="any",
    key="any",
    digest="any",
    identity={},
    parents={},
    shards=[],
    files=[],
    counts=Counts(),
    details={},
    provenance=Provenance(started_at="", finished_at=""),
)


def planned(name: str, *, published: bool = False) -> Planned:
    return Planned(ROWS[name], f"key-{name}", {}, {}, PUBLISHED if published else None)


def plan(published: int) -> list[StagePlan]:
    """A chain: a stage's key is known once the one before it is published."""
    return [
        planned(name, published=index < published)
        if index <= published
        else Blocked(ROWS[name], ("what it reads",))
        for index, name in enumerate(NAMES)
    ]


def attempt(number: int, condition: str, cause: str | None = None, **values: object) -> Attempt:
    """At the first stage, under its key unless another is given."""
    known = {"stage": FIRST, "key": f"key-{FIRST}", "number": number, "condition": condition}
    return Attempt.model_validate({**known, "cause": cause, **values})


def test_the_first_stage_without_an_artifact_is_started() -> None:
    assert decide(plan(1), [], max_attempts=3) == [Start(planned(SECOND), 1)]


def test_a_run_with_every_artifact_published_succeeds_without_any_attempt() -> None:
    assert decide(plan(3), [], max_attempts=3) == [Succeed()]


def test_an_active_attempt_is_waited_for() -> None:
    assert decide(plan(0), [attempt(1, "Active")], max_attempts=3) == []


def test_an_announced_attempt_that_nobody_saw_is_started_under_its_number() -> None:
    attempts = [attempt(1, "Failed", "temporary"), attempt(2, "Pending")]
    assert decide(plan(0), attempts, max_attempts=3) == [Start(planned(FIRST), 2)]


def test_a_complete_attempt_without_an_artifact_is_tried_again() -> None:
    assert decide(plan(0), [attempt(1, "Complete")], max_attempts=3) == [Start(planned(FIRST), 2)]


def test_a_permanent_failure_ends_the_run_with_its_message_and_code() -> None:
    values = {"message": "bad seeds", "remedy": "correct them", "exit_code": 2}
    attempts = [attempt(1, "Failed", "permanent", **values)]
    assert decide(plan(0), attempts, max_attempts=3) == [
        Fail(FIRST, "PermanentFailure", "bad seeds", "correct them", 2)
    ]


def test_a_failure_of_a_stage_that_is_published_after_all_does_not_matter() -> None:
    attempts = [attempt(1, "Failed", "permanent")]
    assert decide(plan(1), attempts, max_attempts=3) == [Start(planned(SECOND), 1)]


def test_attempts_at_another_key_are_not_charged_and_their_numbers_are_not_used_again() -> None:
    attempts = [attempt(n, "Failed", "temporary", key="another") for n in (1, 2, 3)]
    assert decide(plan(0), attempts, max_attempts=3) == [Start(planned(FIRST), 4)]


def test_disruptions_are_free_of_charge() -> None:
    attempts = [attempt(n, "Failed", "disrupted") for n in range(1, 20)]
    assert decide(plan(0), attempts, max_attempts=1) == [Start(planned(FIRST), 20)]


def test_temporary_failures_are_bounded_and_the_last_message_is_told() -> None:
    attempts = [attempt(n, "Failed", "temporary", message=f"down {n}") for n in (1, 2)]
    (action,) = decide(plan(0), attempts, max_attempts=2)
    assert action == Fail(FIRST, "AttemptsExhausted", "2 attempts failed; last: down 2")


def test_independent_stages_start_together() -> None:
    both: list[StagePlan] = [planned(FIRST), planned(SECOND)]
    starts = [Start(planned(FIRST), 1), Start(planned(SECOND), 1)]
    assert decide(both, [], max_attempts=1) == starts


@dataclass
class World:
    """A scheduler's surroundings: stages publish or fail as a script says; observers forget."""

    outcomes: list[tuple[str, Cause | None]]
    published: int = 0
    attempts: dict[tuple[str, int], Attempt] = field(default_factory=dict)
    started: list[tuple[str, int]] = field(default_factory=list)

    def start(self, action: Start) -> None:
        identity = (action.planned.stage.name, action.number)
        assert identity not in self.attempts, "an attempt was started twice"
        self.started.append(identity)
        self.attempts[identity] = attempt(
            action.number, "Active", stage=identity[0], key=action.planned.key
        )

    def settle(self) -> None:
        """The oldest running attempt ends as the script says."""
        for identity, active in self.attempts.items():
            if active.condition == "Active":
                condition, cause = self.outcomes.pop(0) if self.outcomes else ("Complete", None)
                if condition == "Complete":
                    self.published += 1
                self.attempts[identity] = active.model_copy(
                    update={"condition": condition, "cause": cause, "message": str(cause)}
                )
                return


outcome = st.one_of(
    st.just(("Complete", None)),
    st.sampled_from([("Failed", "temporary"), ("Failed", "disrupted"), ("Failed", "permanent")]),
)


@settings(max_examples=300)
@given(
    script=st.lists(outcome, max_size=15),
    max_attempts=st.integers(1, 4),
    order=st.randoms(use_true_random=False),
)
def test_every_history_ends_right_in_any_order_of_observation(script, max_attempts, order) -> None:
    world = World(list(script))
    for _ in range(200):
        observed = list(world.attempts.values())
        observed += order.sample(observed, k=len(observed) // 2)  # duplicates
        order.shuffle(observed)
        actions = decide(plan(world.published), observed, max_attempts=max_attempts)
        assert actions == decide(
            plan(world.published), list(reversed(observed)), max_attempts=max_attempts
        )
        if actions == [Succeed()]:
            assert world.published == len(NAMES)
            break
        if isinstance(actions[0], Fail):
            failed = [a for a in world.attempts.values() if a.stage == actions[0].stage]
            charged = [a for a in failed if a.cause == "temporary"]
            assert len(charged) == max_attempts or any(a.cause == "permanent" for a in failed)
            break
        for action in actions:
            if isinstance(action, Start):
                world.start(action)
        world.settle()
    else:
        raise AssertionError("the run neither succeeded nor failed")
    per_stage = {stage: [n for s, n in world.started if s == stage] for stage in NAMES}
    for numbers in per_stage.values():
        assert numbers == list(range(1, len(numbers) + 1))


def test_nothing_is_started_while_a_person_decides_and_the_attempt_that_asked_is_free() -> None:
    asked = attempt(1, "Complete")
    waits = replace(planned(FIRST), approval="awaited")
    assert decide([waits, *plan(0)[1:]], [asked], max_attempts=1) == [Await(waits)]
    given_ = replace(planned(FIRST), approval="given")
    assert decide([given_], [asked], max_attempts=1) == [Start(given_, 2)]
    again = decide([given_], [asked, attempt(2, "Complete")], max_attempts=1)
    assert isinstance(again[0], Fail)
