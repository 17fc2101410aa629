"""Events tell what happened once, and never get in the way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from selfalign.controller.events import SILENCE_SECONDS, Recorder
from selfalign.controller.memory import MemoryCluster
from selfalign.controller.resources import new_run

from .unreliable import Unreliable


class Told:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 1, tzinfo=UTC)
        self.cluster = MemoryCluster()
        self.unreliable = Unreliable(self.cluster)
        self.run = self.cluster.create("alignmentruns", new_run("toy", "selfalign", {}))
        self.restart()

    def restart(self) -> None:
        self.recorder = Recorder(self.unreliable, clock=lambda: self.now)


@pytest.fixture
def told() -> Told:
    return Told()


def test_an_event_names_its_object_and_fits_the_api(told: Told) -> None:
    told.recorder.emit(told.run, "StageStarted", "x" * 5000, warning=True)
    (event,) = told.cluster.list("events")
    assert event["involvedObject"]["uid"] == told.run["metadata"]["uid"]
    assert event["type"] == "Warning"
    assert len(event["message"]) <= 1024
    assert len(event["metadata"]["name"]) <= 63


def test_the_same_again_is_silence_without_a_call(told: Told) -> None:
    for _ in range(10):
        told.recorder.emit(told.run, "StoreUnavailable", "down")
    assert len(told.unreliable.calls) == 1


def test_the_same_after_a_restart_raises_the_count_of_the_one_event(told: Told) -> None:
    told.recorder.emit(told.run, "StoreUnavailable", "down")
    told.restart()
    told.now += timedelta(seconds=60)
    told.recorder.emit(told.run, "StoreUnavailable", "down")
    (event,) = told.cluster.list("events")
    assert event["count"] == 2
    assert event["lastTimestamp"] == "2026-11-01T00:01:00Z"
    assert event["firstTimestamp"] == "2026-11-01T00:00:00Z"


def test_the_same_is_told_again_after_a_while(told: Told) -> None:
    told.recorder.emit(told.run, "StoreUnavailable", "down")
    told.now += timedelta(seconds=SILENCE_SECONDS)
    told.recorder.emit(told.run, "StoreUnavailable", "down")
    assert [call[0] for call in told.unreliable.calls] == ["create", "create", "patch"]


def test_another_message_is_another_event(told: Told) -> None:
    told.recorder.emit(told.run, "StageStarted", "one")
    told.recorder.emit(told.run, "StageStarted", "two")
    assert len(told.cluster.list("events")) == 2


def test_an_api_server_that_fails_is_survived(told: Told) -> None:
    told.unreliable.arm(0, "lost")
    told.recorder.emit(told.run, "StageStarted", "one")
    assert told.cluster.list("events") == []
