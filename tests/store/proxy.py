"""A loopback proxy in front of an S3 or model server that fails where a test says."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

from tests.loopback import answering


@dataclass
class Fault:
    """What happens to the next `times` requests of a method.

    Attributes:
        method: of the requests concerned; `*` is any.
        kind: `answer` with a status instead of forwarding; forward and `lose` the response;
            forward and `cut` the body of the response in half; `hang_up` without forwarding;
            `stall`: say nothing until the client has gone.
        times: how many requests.
        holding: only requests whose body holds this.
        headers: of `answer`.
        body: of `answer`, in the place of S3's error.
        status: of `answer`.
        code: S3's error code, in the body.
        message: S3's message, in the body.
    """

    method: str
    kind: Literal["answer", "lose", "cut", "hang_up", "stall"]
    times: int = 1
    status: int = 500
    code: str = "InternalError"
    message: str = "as the test asked"
    holding: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None


@dataclass
class Proxy:
    """Settings a test changes, and what was seen.

    Attributes:
        url: where it listens.
        upstream: where it forwards to.
        faults: see `Fault`.
        strip: request headers (lower case) that are dropped.
        hide: headers (lower case) of answers that are dropped.
        requests: the methods seen, in order.
        headers: names (lower case) of the headers of the last request.
    """

    url: str
    upstream: str
    faults: list[Fault] = field(default_factory=list)
    strip: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()
    requests: list[str] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)

    def take(self, method: str, body: bytes = b"") -> Fault | None:
        """The fault for this request, used up by one."""
        for fault in self.faults:
            if fault.method in (method, "*") and fault.times > 0 and fault.holding in body:
                fault.times -= 1
                return fault
        return None

    def count(self, method: str) -> int:
        """Requests of this method so far."""
        return self.requests.count(method)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy
    lock: threading.Lock

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.lock:
            self.proxy.requests.append(self.command)
            self.proxy.headers = [name.lower() for name in self.headers]
            fault = self.proxy.take(self.command, body)
        if fault is not None and fault.kind == "answer":
            self._answer(fault)
            return
        if fault is not None and fault.kind == "hang_up":
            self._hang_up()
            return
        if fault is not None and fault.kind == "stall":
            self.connection.recv(1)  # returns when the client closes
            self.close_connection = True
            return
        status, headers, content = self._forward(body)
        if fault is not None and fault.kind == "lose":
            self._hang_up()
            return
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if fault is not None:
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle  # noqa: N815  http.server's names

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, fault: Fault) -> None:
        text = f"<Error><Code>{fault.code}</Code><Message>{fault.message}</Message></Error>"
        text = text if fault.body is None else fault.body
        content = b"" if self.command == "HEAD" else text.encode()
        self.send_response(fault.status)
        self.send_header("Content-Type", "application/xml")
        for name, value in fault.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        host = urlsplit(self.proxy.upstream).netloc
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in ("expect", "connection", *self.proxy.strip)
        }
        connection = http.client.HTTPConnection(host)
        try:
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        kept = [
            (name, value)
            for name, value in response.getheaders()
            if name.lower()
            not in ("connection", "transfer-encoding", "date", "server", *self.proxy.hide)
        ]
        if not any(name.lower() == "content-length" for name, _ in kept):
            kept.append(("Content-Length", str(len(content))))
        return response.status, kept, content

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's name
        """Quiet."""


@contextmanager
def running_proxy(upstream: str, host: str = "127.0.0.1") -> Iterator[Proxy]:
    """A proxy in front of `upstream`, on a free port of `host`."""
    handler = type("Handler", (_Handler,), {"lock": threading.Lock()})
    server = ThreadingHTTPServer((host, 0), handler)
    server.daemon_threads = True
    proxy = Proxy(f"http://{host}:{server.server_port}", upstream)
    handler.proxy = proxy  # type: ignore[attr-defined]
    with answering(server):
        yield proxy
