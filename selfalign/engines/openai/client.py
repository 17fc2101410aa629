"""HTTP to an OpenAI-compatible server: many requests at once, failures tried again within bounds.

What concerns one request is a `RequestFailed`; what concerns all is an error of this project:
wrong credentials, address or model are permanent, a server that does not answer is temporary.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NoReturn

import httpx2

from selfalign.config import ServerConfig
from selfalign.engines.base import QuarantineReason
from selfalign.errors import ConfigurationError, EngineError

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0  # between attempts; doubled each time
PROBE_SECONDS = 60.0  # for one token of a server that is alive
CLOSING_SECONDS = 0.1
LONGEST_MESSAGE = 300  # characters of what a server says
_OVERLOADED = (429, 503)
_TRY_AGAIN = (408, 425)


class RequestFailed(Exception):
    """This request cannot be answered, while others can."""

    def __init__(self, reason: QuarantineReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Failure:
    """One attempt that failed in a way that may pass; `wait` is what the server asks for."""

    kind: Literal["timeout", "overloaded", "failed"]
    message: str
    wait: float = 0.0


class Client:
    """One server. Its requests run on an event loop in a thread of their own.

    Args:
        probe: a request that any healthy server answers: it tells a bad request from a bad server.

    Raises:
        ConfigurationError: the variable of the key is not set.
    """

    def __init__(self, server: ServerConfig, probe: tuple[str, dict[str, Any]] | None = None):
        self.probe = probe
        self._server = server
        self._key = _key(server)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for each request
        self._http = httpx2.AsyncClient(
            headers=headers,
            timeout=server.timeout_seconds,
            limits=httpx2.Limits(max_connections=server.concurrency + 1),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def submit(self, path: str, body: dict[str, Any]) -> Future[Any]:
        """The decoded answer to a POST; RequestFailed or an error of this project."""
        return asyncio.run_coroutine_threadsafe(self._persist("POST", path, body), self._loop)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """As `submit`, and wait."""
        return self.submit(path, body).result()

    def get(self, path: str) -> Any:
        """The decoded answer to a GET."""
        work = self._persist("GET", path, None)
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """Cancel what is under way and close the connections."""
        if not self._loop.is_running():
            return
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(PROBE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PROBE_SECONDS)
        self._loop.close()

    async def _stop(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._http.aclose()
        await asyncio.sleep(CLOSING_SECONDS)  # a transport closes its socket a moment later

    async def _persist(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """Try until there is an answer, or `give_up_after_seconds` have passed since a failure."""
        wait, first_failure = FIRST_WAIT_SECONDS, 0.0
        while True:
            answer = await self._once(method, path, body, self._server.timeout_seconds)
            if not isinstance(answer, _Failure):
                return answer
            first_failure = first_failure or time.monotonic()
            pause = max(answer.wait, wait * random.uniform(0.5, 1.0))
            if time.monotonic() + pause > first_failure + self._server.give_up_after_seconds:
                await self._give_up(answer)
            await asyncio.sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    async def _give_up(self, failure: _Failure) -> NoReturn:
        """The request is at fault where the server answers another one, else the server is."""
        if failure.kind != "overloaded" and self.probe is not None:
            alive = await self._once("POST", *self.probe, PROBE_SECONDS)
            if not isinstance(alive, _Failure):
                reason: QuarantineReason = (
                    "never_ending" if failure.kind == "timeout" else "aborted"
                )
                raise RequestFailed(reason, f"{failure.message}; the server answers others")
        raise EngineError(
            f"engine.server {self._server.url}: {failure.message}, for "
            f"{self._server.give_up_after_seconds:g} s",
            remedy="see that the server runs and is reached from here; what is done is kept",
        )

    async def _once(
        self, method: str, path: str, body: dict[str, Any] | None, seconds: float
    ) -> Any:
        """The decoded answer, or a _Failure."""
        try:
            async with asyncio.timeout(seconds):  # httpx2's own is for each read, not for all
                response = await self._http.request(method, self._address(path), json=body)
        except (TimeoutError, httpx2.TimeoutException):
            return _Failure("timeout", f"no answer within {seconds:g} s")
        except (httpx2.TransportError, httpx2.DecodingError) as e:
            return _Failure("failed", f"{type(e).__name__}: {e}")
        status = response.status_code
        if status == 200:
            try:
                return response.json()
            except (ValueError, RecursionError):
                return _Failure("failed", "the answer is no JSON")
        message = f"HTTP status {status}: {self._told(response)}"
        if status in _OVERLOADED:
            return _Failure("overloaded", message, retry_after(response))
        if status >= 500 or status in _TRY_AGAIN:
            return _Failure("failed", message, retry_after(response))
        if status in (401, 403):
            variable = self._server.key_variable
            raise ConfigurationError(
                f"engine.server {self._server.url}: {message}",
                remedy=f"correct the key in the environment variable {variable}"
                if variable
                else "name the environment variable of its key: engine.server.key_variable",
            )
        if status < 400 or status in (404, 405):
            raise ConfigurationError(
                f"engine.server {self._server.url}: {path}: {message}",
                remedy="correct engine.server.url (most end in /v1) and engine.served_model",
            )
        raise RequestFailed("refused", message)

    def _address(self, path: str) -> str:
        """`path` below the URL; one that begins with a slash, below the URL without /v1."""
        url = self._server.url.rstrip("/")
        return url.removesuffix("/v1") + path if path.startswith("/") else f"{url}/{path}"

    def _told(self, response: httpx2.Response) -> str:
        """What the server says, shortened, without the key."""
        text = response.text
        if self._key:
            text = text.replace(self._key, "(key)")
        return " ".join(text.split())[:LONGEST_MESSAGE] or "(nothing)"


def _key(server: ServerConfig) -> str | None:
    if server.key_variable is None:
        return None
    key = os.environ.get(server.key_variable, "").strip()
    if not key:
        raise ConfigurationError(
            f"engine.server.key_variable: the environment variable {server.key_variable} is not "
            "set here",
            remedy="export it where the stage runs; on a cluster, give it to the stage's pods from "
            "a Secret (env in the stage's values)",
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigurationError(
            f"the environment variable {server.key_variable} holds what no key can: characters "
            "beyond printable ASCII",
            remedy="set it again",
        )
    return key


def retry_after(response: httpx2.Response) -> float:
    """Seconds that the server asks to wait; 0 where it does not."""
    value = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
