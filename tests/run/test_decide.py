"""`decide` is pure: whatever the order of events, losses and repeats, it ends right."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from selfalign.run.decide import (
    Attempt,
    Cause,
    Fail,
    StageState,
    Start,
    Succeed,
    Wait,
    decide,
)

NAMES = ("first", "second", "third")


def states(published: int, names: tuple[str, ...] = NAMES) -> list[StageState]:
    """A chain: a stage's key is known once the one before it is published."""
    return [
        StageState(name, f"key-{name}" if index <= published else None, index < published)
        for index, name in enumerate(names)
    ]


def test_the_first_stage_without_an_artifact_is_started() -> None:
    assert decide(states(1), [], max_attempts=3) == [Start("second", "key-second", 1)]


def test_a_run_with_every_artifact_published_succeeds_without_any_attempt() -> None:
    assert decide(states(3), [], max_attempts=3) == [Succeed()]


def test_a_running_attempt_is_waited_for() -> None:
    (action,) = decide(states(0), [Attempt("first", "key-first", 1, "Active")], max_attempts=3)
    assert isinstance(action, Wait)


def test_a_complete_attempt_without_an_artifact_is_tried_again() -> None:
    attempts = [Attempt("first", "key-first", 1, "Complete")]
    assert decide(states(0), attempts, max_attempts=3) == [Start("first", "key-first", 2)]


def test_a_permanent_failure_ends_the_run_with_its_message() -> None:
    attempts = [Attempt("first", "key-first", 1, "Failed", "permanent", 2, "bad seeds")]
    assert decide(states(0), attempts, max_attempts=3) == [
        Fail("first", "PermanentFailure", "bad seeds")
    ]


def test_a_failure_of_a_stage_that_is_published_after_all_does_not_matter() -> None:
    attempts = [Attempt("first", "key-first", 1, "Failed", "permanent", 2, "late")]
    assert decide(states(1), attempts, max_attempts=3) == [Start("second", "key-second", 1)]


def test_attempts_with_another_key_are_not_this_stage_s() -> None:
    attempts = [Attempt("first", "another", n, "Failed", "temporary", 70, "x") for n in (1, 2, 3)]
    assert decide(states(0), attempts, max_attempts=3) == [Start("first", "key-first", 1)]


def test_disruptions_are_free_of_charge() -> None:
    attempts = [
        Attempt("first", "key-first", n, "Failed", "disrupted", None, "evicted")
        for n in range(1, 20)
    ]
    assert decide(states(0), attempts, max_attempts=1) == [Start("first", "key-first", 20)]


def test_temporary_failures_are_bounded_and_the_last_message_is_told() -> None:
    attempts = [
        Attempt("first", "key-first", n, "Failed", "temporary", 69, f"down {n}") for n in (1, 2)
    ]
    (action,) = decide(states(0), attempts, max_attempts=2)
    assert action == Fail("first", "AttemptsExhausted", "2 attempts failed; last: down 2")


def test_independent_stages_start_together() -> None:
    both = [StageState("a", "ka", False), StageState("b", "kb", False)]
    assert decide(both, [], max_attempts=1) == [Start("a", "ka", 1), Start("b", "kb", 1)]


@dataclass
class World:
    """A scheduler's surroundings: stages publish or fail as a script says; observers forget."""

    outcomes: list[tuple[str, Cause | None]]
    published: int = 0
    attempts: dict[tuple[str, int], Attempt] = field(default_factory=dict)
    started: list[tuple[str, int]] = field(default_factory=list)

    def start(self, action: Start) -> None:
        identity = (action.stage, action.attempt)
        assert identity not in self.attempts, "an attempt was started twice"
        self.started.append(identity)
        self.attempts[identity] = Attempt(action.stage, action.key, action.attempt, "Active")

    def settle(self) -> None:
        """The oldest running attempt ends as the script says."""
        for identity, attempt in self.attempts.items():
            if attempt.condition == "Active":
                condition, cause = self.outcomes.pop(0) if self.outcomes else ("Complete", None)
                if condition == "Complete":
                    self.published += 1
                self.attempts[identity] = Attempt(
                    attempt.stage,
                    attempt.key,
                    attempt.number,
                    "Complete" if condition == "Complete" else "Failed",
                    cause,
                    message=str(cause),
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
        actions = decide(states(world.published), observed, max_attempts=max_attempts)
        assert actions == decide(
            states(world.published), list(reversed(observed)), max_attempts=max_attempts
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
