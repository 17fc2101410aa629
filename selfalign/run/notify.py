"""Tell people and programs how a run ended: one HTTP request to each target of `notify`.

At least once: whoever sends remembers what was taken in the run's status (`notified`), after the
answer. So a notice may come twice, and both have one id: the CloudEvents `id`, and the header
`Idempotency-Key`. The address is a secret: it is read from the environment when it is needed, and
neither it nor what the receiver says enters a log, a status or an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from selfalign.config import NotifyConfig
from selfalign.errors import ConfigurationError, SelfAlignError, printable
from selfalign.records import digest
from selfalign.run.record import RunStatus
from selfalign.run.view import REMEDIES
from selfalign.stages.approval import read_request
from selfalign.stages.notice import VerdictNotice, is_small, read_notice
from selfalign.store.base import Store

POST_SECONDS = 10.0  # for one request, from the name's resolution to the answer's headers
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 2.0, 300.0  # between attempts; doubled each time
LONGEST_RETRY_AFTER_SECONDS = 3600.0
_TYPE = "io.selfalign.run"
_ZERO_WIDTH_SPACE = "\u200b"
_SAME = 60  # characters that tell one rule's explanation from another's


class NotDelivered(Exception):
    """The receiver did not take a notice. Expected; another attempt may do.

    Attributes:
        retry_after_seconds: what the receiver asks to wait; 0 where it does not.
    """

    def __init__(self, why: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(why)
        self.retry_after_seconds = min(retry_after_seconds, LONGEST_RETRY_AFTER_SECONDS)


@dataclass(frozen=True, slots=True)
class Notice:
    """How a run ended, or that a person is to decide.

    Attributes:
        id: the same for each attempt to send it, another for another verdict of the same run.
        source: which of all runs it is: a URI reference.
        verdict: Promoted, NotPromoted, NoChange, Rejected, AwaitingApproval or Failed.
        reason: the status's.
        remedy: what to do; None where nothing is.
        report: the command that shows the report.
        link: the target's web address for this run; None where it names none.
        time: when the run ended, ISO 8601.
        answers: of the verdict, where there is one.
    """

    id: str
    source: str
    run: str
    verdict: str
    reason: str
    message: str
    remedy: str | None
    stage: str
    exit_code: int | None
    gpu_hours: float | None
    report: str
    time: str
    link: str | None = None
    answers: VerdictNotice = field(default_factory=VerdictNotice)


def notice_id(unique: str, status: RunStatus) -> str:
    """The idempotency key.

    Args:
        unique: what tells the run from every other: its uid, or its store and id.
    """
    return digest([unique, status.phase, status.reason, status.key_of("promote")])[:32]


def new_notice(
    store: Store | None, status: RunStatus, *, unique: str, source: str, where: str
) -> Notice:
    """The notice of a run that has ended or waits for a person, without what cannot be read.

    Args:
        where: the options by which commands find the run.
    """
    answers, promotion = VerdictNotice(), status.key_of("promote")
    if store is not None and promotion is not None:
        with contextlib.suppress(SelfAlignError):
            answers = _answers(store, status, promotion) or answers
    remedy = status.remedy
    if status.phase == "Failed":
        remedy = remedy or REMEDIES.get(status.exit_code or 0)
    if status.awaits_approval:
        at = f"{status.id} {where}"
        remedy = f"selfalign approve {at}, or selfalign reject {at} --reason WHY"
    return Notice(
        id=notice_id(unique, status),
        source=source,
        run=status.id,
        verdict=status.reason if status.awaits_approval else status.verdict or status.phase,
        reason=status.reason,
        message=status.message,
        remedy=remedy,
        stage=status.stage,
        exit_code=status.exit_code,
        gpu_hours=None if status.gpu_hours is None else round(status.gpu_hours, 2),
        report=f"selfalign report {status.id} {where}",
        time=status.completed_at or status.updated_at,
        answers=answers,
    )


def _answers(store: Store, status: RunStatus, promotion: str) -> VerdictNotice | None:
    if not status.awaits_approval:
        return read_notice(store, promotion)
    request = read_request(store, promotion) if is_small(store, promotion) else None
    return None if request is None else request.notice


def check_targets(
    targets: Sequence[NotifyConfig], environment: Mapping[str, str] = os.environ
) -> None:
    """Raise ConfigurationError where a target could not be told: better now than after the run."""
    for index, target in enumerate(targets):
        try:
            address(target, environment)
        except NotDelivered as error:
            raise ConfigurationError(
                f"notify[{index}].url_variable: {error}",
                remedy=f"export {target.url_variable} with the address, or remove the target",
            ) from None
    if targets and find_spec("httpx2") is None:
        raise ConfigurationError(
            "notify needs httpx2, which is not installed", remedy="pip install 'selfalign[notify]'"
        )


def cloud_event(notice: Notice) -> dict[str, Any]:
    """The notice as a CloudEvent, structured mode (CloudEvents 1.0.2, JSON event format)."""
    data = asdict(notice) | {"answers": notice.answers.model_dump(mode="json")}
    event = {
        "specversion": "1.0",
        "id": data.pop("id"),
        "source": data.pop("source"),
        "type": f"{_TYPE}.{notice.verdict}",
        "subject": notice.run,
        "datacontenttype": "application/json",
    }
    if time := data.pop("time"):
        event["time"] = time
    return {**event, "data": data}


def slack_message(notice: Notice) -> dict[str, Any]:
    """The notice as text. What models and configurations bring can neither mention people, nor
    link, nor format (https://docs.slack.dev/messaging/formatting-message-text)."""
    answers = notice.answers
    lines = [f"selfalign run {notice.run}: {notice.verdict}", notice.message]
    lines += [f"next: {notice.remedy}"] if notice.remedy else []
    told = notice.message  # it ends with failed rules, as far as they have room there
    lines += [f"- {rule}" for rule in answers.failed_rules if rule[:_SAME] not in told]
    if answers.compared:
        lines.append(
            f"{answers.compared} held-out answers against the {answers.against} model's: "
            f"{answers.better} better, {answers.worse} worse, {answers.other} otherwise changed"
        )
    for pair in answers.most_changed:
        lines += [f"{pair.change} [{pair.kind}] {pair.prompt}", f"  was: {pair.before}"]
        lines += [f"  now: {pair.after}"]
    if notice.gpu_hours is not None:
        lines.append(f"GPU hours: {notice.gpu_hours:,.2f}")
    lines.append(f"report: {notice.report}")
    text = "\n".join(map(_harmless, lines))
    text += f"\n{notice.link}" if notice.link else ""  # of the platform's own
    return {"text": text, "mrkdwn": False, "unfurl_links": False, "unfurl_media": False}


def _harmless(line: str) -> str:
    indent = "  " if line.startswith("  ") else ""
    text = printable(" ".join(line.split()))
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(character, entity)
    # @here and @channel are mentions to some receivers, and a bare address becomes a link
    text = text.replace("@", f"@{_ZERO_WIDTH_SPACE}").replace("://", f":{_ZERO_WIDTH_SPACE}//")
    return indent + text


def send(notice: Notice, target: NotifyConfig, environment: Mapping[str, str] = os.environ) -> None:
    """One attempt to deliver a notice, within POST_SECONDS. Raises NotDelivered."""
    if target.link is not None:
        notice = replace(notice, link=target.link.replace("{run}", notice.run))
    slack = target.format == "slack"
    body = slack_message(notice) if slack else cloud_event(notice)
    kind = "application/json" if slack else "application/cloudevents+json"
    headers = {"Content-Type": f"{kind}; charset=utf-8", "Idempotency-Key": notice.id}
    data = json.dumps(body, ensure_ascii=False).encode(errors="backslashreplace")
    post(address(target, environment), data, headers)


def address(target: NotifyConfig, environment: Mapping[str, str] = os.environ) -> str:
    """Where the target is. Raises NotDelivered, without the address, where there is none."""
    found = environment.get(target.url_variable, "").strip()
    try:
        parts = urlsplit(found)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        usable = False
    if not found:
        raise NotDelivered(f"the environment variable {target.url_variable} is not set")
    if not usable:
        raise NotDelivered(f"the environment variable {target.url_variable} holds no http address")
    return found


def post(url: str, data: bytes, headers: dict[str, str]) -> None:
    """One attempt to deliver, within POST_SECONDS. Raises NotDelivered, without the address."""
    asyncio.run(_post(url, data, headers))


async def _post(url: str, data: bytes, headers: dict[str, str]) -> None:
    try:
        import httpx2

        from selfalign.engines.openai.client import retry_after
    except ImportError:
        raise NotDelivered("httpx2 is not installed: pip install 'selfalign[notify]'") from None
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs the address
    try:
        async with (
            asyncio.timeout(POST_SECONDS),
            httpx2.AsyncClient(timeout=None) as client,
            # the answer's body is not read, so its size does not matter
            client.stream("POST", url, content=data, headers=headers) as response,
        ):
            status, wait = response.status_code, retry_after(response)
    except TimeoutError:
        raise NotDelivered(f"no answer within {POST_SECONDS:g} s") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
        raise NotDelivered(type(error).__name__) from None  # its text may hold the address
    if not 200 <= status < 300:
        raise NotDelivered(f"HTTP status {status}", wait)


def send_until(seconds: float, notice: Notice, target: NotifyConfig) -> None:
    """Try until the notice is taken, or so much time has passed. Raises NotDelivered."""
    deadline, failures = time.monotonic() + seconds, 0
    while True:
        try:
            send(notice, target)
            return
        except NotDelivered as error:
            failures += 1
            wait = wait_seconds(failures, error)
            if time.monotonic() + wait > deadline:
                raise
        time.sleep(wait)


def wait_seconds(failures: int, error: NotDelivered) -> float:
    """How long to wait after so many failures in a row, of which this is the last."""
    doubled: float = min(FIRST_WAIT_SECONDS * 2 ** min(failures - 1, 20), LONGEST_WAIT_SECONDS)
    return max(doubled, error.retry_after_seconds)
