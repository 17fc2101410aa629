"""What a notice says, to whom, and that the address stays secret."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from selfalign.config import NotifyConfig
from selfalign.errors import ConfigurationError, DataError
from selfalign.identity import Inputs
from selfalign.load import load_config
from selfalign.run import notify
from selfalign.run.executors.display import RunDisplay
from selfalign.run.executors.local import LocalRun
from selfalign.run.notify import (
    NotDelivered,
    check_targets,
    new_notice,
    send,
    slack_message,
    wait_seconds,
)
from selfalign.run.record import RunStatus, StageState, read_status
from selfalign.store.local import LocalStore
from tests.run.receiver import Answer, Receiver

HOOK = NotifyConfig(url_variable="HOOK")
REFUSED = RunStatus(
    id="toy",
    phase="Succeeded",
    reason="NotPromoted",
    verdict="NotPromoted",
    message="Not promoted: <!channel> @everyone & https://evil.example \x1b[2J",
    completed_at="2026-11-01T01:00:00Z",
    stages=[StageState(name="promote", key="k")],
)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    yield server
    server.close()


def notice(status: RunStatus = REFUSED) -> notify.Notice:
    return new_notice(None, status, unique="u", source="/runs/toy", where="-n x")


def test_models_text_mentions_nobody_links_nowhere_and_steers_no_terminal() -> None:
    text = slack_message(notice())["text"]
    assert "&lt;!channel&gt; @\u200beveryone &amp; https:\u200b//evil.example \\x1b[2J" in text
    assert "\x1b" not in text
    assert "<" not in text


def test_a_target_s_link_names_the_run_and_no_other_address_becomes_one(receiver: Receiver) -> None:
    link = "https://reports.example/{run}.html"
    for form in ("slack", "cloudevents"):
        send(
            notice(), HOOK.model_copy(update={"link": link, "format": form}), {"HOOK": receiver.url}
        )
    slack, event = (request.body for request in receiver.requests)
    assert slack["text"].endswith("\nhttps://reports.example/toy.html")
    assert slack["text"].count("://") == 1
    assert event["data"]["link"] == "https://reports.example/toy.html"
    for wrong in ("https://x/", "ftp://x/{run}", "https://x/{run} <@all>"):
        with pytest.raises(ValidationError):
            NotifyConfig(url_variable="HOOK", link=wrong)


def test_one_verdict_has_one_id_and_another_has_another() -> None:
    later = REFUSED.model_copy(update={"updated_at": "2027-01-01T00:00:00Z", "message": "x"})
    promoted = REFUSED.model_copy(update={"reason": "Promoted"})
    assert notice().id == notice(later).id
    assert notice().id != notice(promoted).id


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "HOOK is not set"),
        ("ftp://secret.example/x", "HOOK holds no http address"),
        ("http://[secret", "HOOK holds no http address"),
        ("http://127.0.0.1:1/secret", "ConnectError"),
    ],
)
def test_a_wrong_address_is_told_by_its_variable_alone(url: str, why: str) -> None:
    with pytest.raises(NotDelivered, match=why) as caught:
        send(notice(), HOOK, {"HOOK": url})
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_target_that_cannot_be_told_is_told_before_the_run() -> None:
    check_targets([HOOK], {"HOOK": "https://hooks.example/x"})
    with pytest.raises(ConfigurationError, match=r"notify\[1\]\.url_variable: .* CHAT is not set"):
        check_targets([HOOK, NotifyConfig(url_variable="CHAT")], {"HOOK": "https://h.example"})


def test_a_redirection_is_not_followed(receiver: Receiver) -> None:
    receiver.answers.append(Answer(307, {"Location": receiver.url}))
    with pytest.raises(NotDelivered, match="HTTP status 307"):
        send(notice(), HOOK, {"HOOK": receiver.url})
    assert len(receiver.requests) == 1


def test_waits_grow_to_a_bound_and_heed_the_receiver_to_another() -> None:
    assert [wait_seconds(n, NotDelivered("x")) for n in (1, 2, 3)] == [2, 4, 8]
    assert wait_seconds(5000, NotDelivered("x")) == 300
    assert wait_seconds(1, NotDelivered("x", 60)) == 60
    assert wait_seconds(1, NotDelivered("x", 1e9)) == 3600


def test_a_local_run_that_fails_is_told_and_marked(
    world: Path, tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", receiver.url)
    monkeypatch.setattr(notify, "FIRST_WAIT_SECONDS", 0.01)
    receiver.answers.append(Answer(503))
    config = load_config(world, ["notify=[{url_variable: HOOK, format: slack}]"]).config

    def torn(*_: object) -> None:
        raise DataError("torn", remedy="mend it")

    monkeypatch.setattr("selfalign.run.executors.local.plan_from_store", torn)
    inputs = Inputs(seeds={}, base_model="0", data={})
    store, told = LocalStore(tmp_path / "store"), io.StringIO()
    display = RunDisplay(Console(file=told))
    run = LocalRun("toy", config, inputs, store, tmp_path / "log", display)
    with pytest.raises(DataError):
        run.run()
    status = read_status(store, "toy")
    assert (status.phase, list(status.notified)) == ("Failed", ["HOOK"])
    assert list(receiver.taken) == [status.notified["HOOK"]]
    text = receiver.requests[-1].body["text"]
    assert "torn" in text
    assert "next: mend it" in text
    assert "a-secret-path" not in told.getvalue() + json.dumps(status.model_dump())
