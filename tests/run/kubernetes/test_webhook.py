"""A webhook is told which model is current: a real receiver, at least once, under one id."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from selfalign.run.executors.kubernetes.serving import Target
from selfalign.run.executors.kubernetes.webhook import KEY_VARIABLE, URL_VARIABLE, WebhookTarget
from tests.run.receiver import Answer, Receiver

from .test_serving import NEW, OLD, Site

KEY = b"k" * 32


class Killed(Exception):
    """The controller's process is killed."""


class Unwritable:
    """A cluster whose caller is killed when it would write a status."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster

    def __getattr__(self, name: str) -> Any:
        if name == "patch_status":
            raise Killed
        return getattr(self._cluster, name)


@dataclass
class WebhookSite(Site):
    """A namespace whose webhook is a real receiver; time between attempts passes when told."""

    receiver: Receiver = field(default_factory=Receiver)
    environment: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        encoded = base64.b64encode(KEY).decode()
        self.environment = {URL_VARIABLE: self.receiver.url, KEY_VARIABLE: f"whsec_{encoded}"}
        super().__post_init__()

    def target(self, cluster: Any) -> Target:
        return WebhookTarget(self.environment, lambda: 1234.5, lambda: self.seconds)

    def digests(self) -> list[str]:
        return [request.body["data"]["digest"] for request in self.receiver.requests]


@pytest.fixture
def site() -> Iterator[WebhookSite]:
    found = WebhookSite()
    try:
        for name, digest in (("first", OLD), ("second", NEW)):
            found.run(name, digest)
        found.promote(OLD, "first", f"models/{OLD}")
        yield found
    finally:
        found.receiver.close()


def test_a_promotion_is_told_once_signed_and_with_one_id_for_each_move(site: WebhookSite) -> None:
    site.serving.step()
    assert site.served("first") == ("True", "Served")
    (request,) = site.receiver.requests
    assert request.body == {
        "type": "selfalign.model.current",
        "timestamp": "2026-11-01T01:00:00+00:00",
        "data": {"digest": OLD, "uri": f"memory/models/{OLD}", "run": "first"},
    }
    event = request.headers["webhook-id"]
    assert request.headers["Idempotency-Key"] == event
    signed = f"{event}.1234.".encode() + request.raw
    expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert request.headers["webhook-timestamp"] == "1234"
    assert request.headers["webhook-signature"] == f"v1,{expected}"
    site.promote(NEW, "second", f"models/{NEW}")
    site.serving.step()
    assert (site.served("second"), site.served("first")) == (
        ("True", "Served"),
        ("False", "Replaced"),
    )
    site.restart()  # it is remembered on the run
    site.serving.step()
    assert site.digests() == [OLD, NEW]
    assert site.receiver.requests[1].headers["webhook-id"] != event


def test_what_is_refused_is_sent_again_under_the_same_id_and_told(site: WebhookSite) -> None:
    site.receiver.answers.extend([Answer(503), Answer(500, {"Retry-After": "40"})])
    site.serving.step()
    assert site.served("first") == ("False", "NotReady")
    assert "has not taken it: HTTP status 503; it is tried again" in site.message("first")
    site.serving.step()
    assert len(site.receiver.requests) == 1  # not yet due
    for seconds, sent, standing in ((3, 2, "NotReady"), (30, 2, "NotReady"), (45, 3, "Served")):
        site.seconds = seconds
        site.serving.step()
        assert (len(site.receiver.requests), site.served("first")[1]) == (sent, standing)
    assert len({request.headers["webhook-id"] for request in site.receiver.requests}) == 1
    assert list(site.receiver.taken.values()) == [site.receiver.requests[-1].body]


def test_an_answer_that_a_killed_controller_never_saw_is_asked_for_again(site: WebhookSite) -> None:
    site.restart(Unwritable(site.cluster))
    with pytest.raises(Killed):
        site.serving.step()
    site.restart()
    site.serving.step()
    assert site.served("first") == ("True", "Served")
    assert site.digests() == [OLD, OLD]
    assert len(site.receiver.taken) == 1


def test_a_rollback_is_told_too(site: WebhookSite) -> None:
    site.serving.step()
    site.promote(NEW, "second", f"models/{NEW}")
    site.serving.step()
    site.promote(OLD, None, f"models/{OLD}")
    site.serving.step()
    assert site.served("first") == ("True", "Served")
    assert site.digests() == [OLD, NEW, OLD]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        (URL_VARIABLE, "", f"{URL_VARIABLE} is not set"),
        (URL_VARIABLE, "ftp://a-secret", f"{URL_VARIABLE} holds no http address"),
        (KEY_VARIABLE, "short", f"{KEY_VARIABLE} holds no key of at least 24 bytes"),
        (KEY_VARIABLE, "whsec_!", f"{KEY_VARIABLE} holds no key of at least 24 bytes"),
        (KEY_VARIABLE, "whsec_ü", f"{KEY_VARIABLE} holds no key of at least 24 bytes"),
    ],
    ids=str,
)
def test_a_secret_that_is_missing_is_told_and_never_shown(
    site: WebhookSite, name: str, value: str, told: str
) -> None:
    site.environment[name] = value
    site.serving.step()
    assert site.served("first") == ("False", "NotReady")
    assert told in site.message("first")
    assert "a-secret" not in site.message("first")
    assert site.receiver.requests == []
