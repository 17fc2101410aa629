"""A small OpenAI-compatible chat server, for machines without a GPU: one request at a time.

    GET  /health               200 when it answers
    GET  /v1/models            the names that the model is served under
    POST /v1/chat/completions  one answer to a conversation; no streaming

Each connection takes one request, so that a server that stops breaks none: what was accepted is
answered first. On GPUs vLLM serves the same directory.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from selfalign.errors import ConfigurationError, DataError, SelfAlignError
from selfalign.records import FinishReason
from selfalign.store.documents import decode_json
from selfalign.telemetry import log

_LONGEST_BODY = 1 << 20  # bytes of a conversation
_SOCKET_SECONDS = 30.0  # a client that sends nothing is not waited for any longer


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and how many tokens it took."""

    text: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_new_tokens: int


class _Message(BaseModel):
    role: str
    content: str


class ChatRequest(BaseModel):
    """The fields of a request that are heeded; others change nothing that this server can do.

    None leaves it to the model's own defaults.
    """

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: list[_Message] = Field(min_length=1)
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)
    n: Literal[1] = 1
    stream: Literal[False] = False


class ChatServer(ThreadingHTTPServer):
    """Listens as soon as it is made; `serve_forever` answers until `shutdown`.

    Args:
        names: under which the model is served; the first is the one that replies name.
        answer: gives the model's answer, never called twice at once. Raises DataError for a
            conversation that the model cannot be asked.
        port: 0 lets the system choose.

    Raises ConfigurationError where the address is taken.
    """

    daemon_threads = False  # what was accepted is answered before the process ends
    request_queue_size = 128

    def __init__(
        self, names: Sequence[str], answer: Callable[[ChatRequest], Reply], host: str, port: int
    ) -> None:
        self.names, self._answer = list(names), answer
        self._one_at_a_time = threading.Lock()
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise ConfigurationError(
                f"{host}:{port}: {error.strerror}", remedy="choose another --port or --host"
            ) from error

    def complete(self, body: bytes) -> dict[str, Any]:
        """The reply to a request for a chat completion. Raises DataError for a wrong one."""
        try:
            request = ChatRequest.model_validate(decode_json(body))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(f"{where}: {first['msg']}") from error
        except ValueError as error:
            raise DataError(f"the body is not JSON: {error}") from error
        if request.model not in self.names:
            raise UnknownModel(f"model {request.model!r}: this serves {', '.join(self.names)}")
        with self._one_at_a_time:
            reply = self._answer(request)
        tokens = (reply.num_prompt_tokens, reply.num_new_tokens)
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": reply.text},
                    "finish_reason": reply.finish_reason,
                }
            ],
            "usage": {
                "prompt_tokens": tokens[0],
                "completion_tokens": tokens[1],
                "total_tokens": sum(tokens),
            },
        }


class UnknownModel(DataError):
    """A request names a model that is not served here: 404, as OpenAI answers."""


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer
    timeout = _SOCKET_SECONDS
    server_version, sys_version = "selfalign", ""

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(HTTPStatus.OK, {})
        elif self.path == "/v1/models":
            models = [{"id": name, "object": "model"} for name in self.server.names]
            self._send(HTTPStatus.OK, {"object": "list", "data": models})
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "/health, /v1/models, /v1/chat/completions")

    def do_POST(self) -> None:
        if self.path != "/v1/chat/completions":
            self._refuse(HTTPStatus.NOT_FOUND, "POST goes to /v1/chat/completions")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _LONGEST_BODY:
            told = f"Content-Length is {length!r}, expected at most {_LONGEST_BODY}"
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, told)
            return
        try:
            self._send(HTTPStatus.OK, self.server.complete(self.rfile.read(int(length))))
        except UnknownModel as error:
            self._refuse(HTTPStatus.NOT_FOUND, error.message)
        except DataError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except SelfAlignError as error:
            log.error("answer.failed", error=error.message)
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, error.message)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request"
        self._send(status, {"error": {"message": message, "type": kind, "code": int(status)}})

    def _send(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        data = json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace")
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_arguments: object) -> None:
        """Questions are nobody else's; what fails is logged where it fails."""
