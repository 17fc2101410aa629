"""A receiver of notices: a real HTTP server that answers as a test tells it."""

from __future__ import annotations

import json
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What one request is answered with; `slow` waits until the receiver is closed."""

    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    slow: bool = False


@dataclass
class Request:
    headers: dict[str, str]
    body: dict[str, Any]
    raw: bytes


class Receiver:
    """Serves on loopback until closed. Each request takes the next answer, else 204.

    Attributes:
        requests: all that came, in their order.
        taken: idempotency key -> the first body with it that was answered 2xx. A slow answer
            counts: the receiver has the notice, whatever the sender waits for.
    """

    def __init__(self, *answers: Answer) -> None:
        self.answers = deque(answers)
        self.requests: list[Request] = []
        self.taken: dict[str, dict[str, Any]] = {}
        self._released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook/a-secret-path"

    def close(self) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            return

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            body = json.loads(raw)
            headers = dict(self.headers)
            answer = receiver.answers.popleft() if receiver.answers else Answer()
            receiver.requests.append(Request(headers, body, raw))
            if answer.status < 300:
                receiver.taken.setdefault(headers["Idempotency-Key"], body)
            if answer.slow:
                receiver._released.wait(60)
            try:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
            except OSError:
                return  # the sender has given up

    return Handler
