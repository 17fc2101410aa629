"""serving.kind webhook: whoever serves is told which model is current.

    current.json moves -> one signed POST, repeated until it is answered 2xx -> Served

At least once: that it was taken is remembered in the run's condition `Served`, after the answer, so
it may come twice, under one id, and once more after a restart where the run is gone. Signed as
https://www.standardwebhooks.com says: HMAC-SHA256 over `id.timestamp.body`. The address and the key
are secrets of the environment.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from selfalign.config import NotifyConfig
from selfalign.records import digest
from selfalign.run.executors.kubernetes.cluster import Resource
from selfalign.run.executors.kubernetes.serving import Reason, Wanted
from selfalign.run.notify import NotDelivered, address, post, wait_seconds

URL_VARIABLE, KEY_VARIABLE = "SELFALIGN_WEBHOOK_URL", "SELFALIGN_WEBHOOK_KEY"
_MIN_KEY_BYTES = 24
_KEY_PREFIX = "whsec_"  # before a key in base64


@dataclass(slots=True)
class WebhookTarget:
    """Tells one address which model is wanted.

    Attributes:
        clock: seconds since 1970, for the signature.
        monotonic: seconds, for the time between attempts.
    """

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    _taken: str = field(default="", init=False)  # an event's id
    _failed: tuple[str, int, float, str] = field(default=("", 0, 0.0, ""), init=False)

    def follow(self, wanted: Wanted, was: Resource | None) -> tuple[Reason, str]:
        """Send what was not taken yet, if an attempt is due; how the last one ended."""
        event = event_id(wanted)
        taken = f"model {wanted.digest}: the webhook has taken it, event {event}"
        if was is not None and (was["status"], was["message"]) == ("True", taken):
            self._taken = event
        if self._failed[0] != event:
            self._failed = (event, 0, 0.0, "")
        _, failures, due, why = self._failed
        if self._taken != event and self.monotonic() >= due:
            try:
                self._send(wanted)
                self._taken = event
            except NotDelivered as error:
                failures, why = failures + 1, str(error)
                due = self.monotonic() + wait_seconds(failures, error)
                self._failed = (event, failures, due, why)
        if self._taken == event:
            return "Served", taken
        return "NotReady", (
            f"model {wanted.digest[:12]}: the webhook has not taken it: {why}; it is tried again; "
            "remedy: see what answers at the address in the Secret of serving.webhook.secretName"
        )

    def _send(self, wanted: Wanted) -> None:
        """One attempt. Raises NotDelivered."""
        url = address(NotifyConfig(url_variable=URL_VARIABLE), self.environment)
        body = json.dumps(event_body(wanted)).encode()
        event, timestamp = event_id(wanted), str(int(self.clock()))
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": event,
            "webhook-id": event,
            "webhook-timestamp": timestamp,
            "webhook-signature": signature(self._key(), event, timestamp, body),
        }
        post(url, body, headers)

    def _key(self) -> bytes:
        found = self.environment.get(KEY_VARIABLE, "").strip()
        key = found.encode()
        if found.startswith(_KEY_PREFIX):
            try:
                key = base64.b64decode(found.removeprefix(_KEY_PREFIX), validate=True)
            except ValueError:  # also what is no ASCII
                key = b""
        if len(key) < _MIN_KEY_BYTES:
            raise NotDelivered(
                f"the environment variable {KEY_VARIABLE} holds no key of at least "
                f"{_MIN_KEY_BYTES} bytes"
            )
        return key


def event_id(wanted: Wanted) -> str:
    """The idempotency key: one for each move of the pointer."""
    return digest([wanted.digest, wanted.uri, wanted.moved_at])[:32]


def event_body(wanted: Wanted) -> dict[str, object]:
    """What is sent."""
    data = {"digest": wanted.digest, "uri": wanted.uri, "run": wanted.run}
    return {"type": "selfalign.model.current", "timestamp": wanted.moved_at, "data": data}


def signature(key: bytes, event: str, timestamp: str, body: bytes) -> str:
    """The header webhook-signature."""
    signed = f"{event}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
