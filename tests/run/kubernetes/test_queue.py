"""The work queue, by a clock that the test moves."""

from __future__ import annotations

import pytest

from selfalign.controller.queue import LAST_RETRY_SECONDS, WorkQueue


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue:
    return WorkQueue(clock)


def drain(queue: WorkQueue) -> list[str]:
    names = []
    while (name := queue.get(0)) is not None:
        names.append(name)
        queue.done(name)
    return names


def test_a_name_added_often_is_worked_on_once(queue: WorkQueue) -> None:
    for name in ("a", "b", "a", "a"):
        queue.add(name)
    assert queue.depth == 2
    assert drain(queue) == ["a", "b"]


def test_a_name_is_never_worked_on_twice_at_once_and_no_event_is_lost(queue: WorkQueue) -> None:
    queue.add("a")
    assert queue.get(0) == "a"
    queue.add("a")
    assert queue.get(0) is None
    queue.done("a")
    assert queue.get(0) == "a"
    queue.done("a")
    assert queue.get(0) is None


def test_a_name_for_later_comes_when_it_is_due(queue: WorkQueue, clock: Clock) -> None:
    queue.add_later("a", 10)
    assert queue.get(0) is None
    clock.now = 10
    assert drain(queue) == ["a"]


def test_the_earlier_of_two_times_counts_and_the_later_one_is_forgotten(
    queue: WorkQueue, clock: Clock
) -> None:
    queue.add_later("a", 10)
    queue.add_later("a", 5)
    queue.add_later("a", 7)
    clock.now = 5
    assert drain(queue) == ["a"]
    clock.now = 20
    assert drain(queue) == []


def test_failures_come_back_later_and_later_up_to_a_bound(queue: WorkQueue) -> None:
    delays = [queue.retry("a") for _ in range(12)]
    assert delays[:4] == [1, 2, 4, 8]
    assert delays[-1] == LAST_RETRY_SECONDS
    assert queue.retry("b") == 1


def test_a_success_forgets_the_failures(queue: WorkQueue) -> None:
    queue.retry("a")
    queue.retry("a")
    queue.succeeded("a")
    assert queue.retry("a") == 1


def test_a_later_time_does_not_hold_back_an_event(queue: WorkQueue) -> None:
    queue.add_later("a", 100)
    queue.add("a")
    assert drain(queue) == ["a"]


def test_a_closed_queue_gives_nothing_out(queue: WorkQueue) -> None:
    queue.add("a")
    queue.close()
    assert queue.get(0) is None
