"""The name that clients ask for, before a vLLM server that holds adapters (form adapter).

    vllm ... --middleware selfalign.serving.alias.Alias     with SELFALIGN_SERVING_DIRECTORY set

A request for `selfalign` goes to the adapter that the link `current` names once the request has
arrived whole, and stays with it; so the name moves between requests, never within one. Only the
questions in ASKED pass, of an adapter and never of the bare base model. vLLM loads adapters for
whoever asks, from any path; here only who holds the pod's own token may have it do so.

The directory:

    base/                the base model
    adapters/<digest>/   an adapter, with the template, defaults and probe of its model
    current              a link to the adapter that is served
    startup.json         what the server was started with
    token                of the pod's own containers
    status.json          what `selfalign serving follow` found last
"""

from __future__ import annotations

import hmac
import json
import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

SERVED_NAME = "selfalign"  # what clients call the model, whichever it is today
DIRECTORY = "SELFALIGN_SERVING_DIRECTORY"
ADAPTERS, CURRENT, TOKEN, STATUS = "adapters", "current", "token", "status.json"
STATUS_PATH = "/selfalign/status"
LOAD_PATH, UNLOAD_PATH = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
TOKEN_HEADER = "X-Selfalign-Token"
# What may be asked of vLLM. It has more, such as /adapters, which loads adapters too.
ASKED = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses"),
    *("/v1/messages", "/v1/messages/count_tokens", "/tokenize", "/detokenize"),
)
_DIGEST = re.compile(r"[0-9a-f]{64}")

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Scope]]
_Send = Callable[[_Scope], Awaitable[None]]


def current_digest(directory: Path) -> str:
    """The digest of the adapter that is served. Raises OSError where none is."""
    return (directory / CURRENT).readlink().name


class Alias:
    """ASGI middleware; vLLM makes one, in the one process that takes requests."""

    def __init__(self, app: Callable[[_Scope, _Receive, _Send], Awaitable[None]]) -> None:
        self._app = app
        self._directory = Path(os.environ[DIRECTORY])
        self._token = (self._directory / TOKEN).read_bytes()
        self._running: Counter[str] = Counter()  # requests under way, by digest

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer, refuse or hand on one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["method"] in ("GET", "HEAD", "OPTIONS"):
            if scope["path"] == STATUS_PATH:
                await _answer(send, HTTPStatus.OK, self._status())
            else:
                await self._app(scope, receive, send)
        elif scope["path"] in (LOAD_PATH, UNLOAD_PATH):
            given = dict(scope["headers"]).get(TOKEN_HEADER.lower().encode(), b"")
            if hmac.compare_digest(given, self._token):
                await self._app(scope, receive, send)
            else:
                told = "adapters are loaded and unloaded by the server's own pod"
                await _refuse(send, HTTPStatus.FORBIDDEN, told)
        elif scope["path"] in ASKED and scope["method"] == "POST":
            await self._ask(scope, receive, send)
        else:
            await _refuse(send, HTTPStatus.FORBIDDEN, f"POST goes to {', '.join(ASKED)}")

    def _status(self) -> dict[str, Any]:
        """What is served, how many requests of each adapter are under way, what was found last."""
        try:
            found = json.loads((self._directory / STATUS).read_bytes())
        except FileNotFoundError:
            found = {}
        return {
            "digest": current_digest(self._directory),
            "running": dict(self._running),
            "found": found,
        }

    async def _ask(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            await _refuse(send, HTTPStatus.BAD_REQUEST, "the body is not a JSON object")
            return
        model = asked.get("model") or SERVED_NAME
        digest = current_digest(self._directory) if model == SERVED_NAME else model
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            told = f"the model {str(model)[:80]!r} is not served; ask for {SERVED_NAME!r}"
            await _refuse(send, HTTPStatus.NOT_FOUND, told)
            return
        self._running[digest] += 1
        try:
            await self._hand_on({**asked, "model": digest}, scope, receive, send)
        finally:
            self._running[digest] -= 1
            self._running += Counter()  # forgets what has come to 0

    async def _hand_on(
        self, asked: dict[str, Any], scope: _Scope, receive: _Receive, send: _Send
    ) -> None:
        body = json.dumps(asked).encode()
        replaced = (b"content-length", b"transfer-encoding")
        headers = [pair for pair in scope["headers"] if pair[0].lower() not in replaced]
        headers.append((b"content-length", str(len(body)).encode()))
        left: list[_Scope] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> _Scope:
            return left.pop() if left else await receive()  # afterwards: that the client has gone

        await self._app({**scope, "headers": headers}, again, send)


async def _refuse(send: _Send, status: HTTPStatus, told: str) -> None:
    error = {"message": told, "type": "invalid_request", "code": int(status)}
    await _answer(send, status, {"error": error})


async def _answer(send: _Send, status: HTTPStatus, value: dict[str, Any]) -> None:
    body = json.dumps(value).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body})
