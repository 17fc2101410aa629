"""The API double behind HTTP, as the official client sees an API server: paged lists, streamed
watches with bookmarks, Status objects; and answers that a test asks for."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from selfalign.run.executors.kubernetes.cluster import ClusterRejected, Conflict, Gone
from tests.run.kubernetes.memory import MemoryCluster, has_fields, labelled

_PATH = re.compile(
    r"/(?:api/v1|apis/[^/]+/[^/]+)/namespaces/(?P<namespace>[^/]+)/(?P<kind>[a-z]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<part>status|log))?"
)


@dataclass
class Answer:
    """What is answered instead of the truth, once.

    Attributes:
        method: of the request it is for.
        status: 0 drops the connection without an answer; 200 with `events` is a watch.
        raw: the body, as it is.
    """

    method: str
    contains: str
    status: int
    message: str = ""
    reason: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    raw: str | None = None


class ApiServer:
    """Serves a MemoryCluster on loopback until closed."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self.cluster = cluster
        self.answers: deque[Answer] = deque()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.headers: list[dict[str, str]] = []
        self.stopping = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    def kubeconfig(self, path: Path, *, token: str = "a-secret-token") -> Path:
        """Write a kubeconfig that points here."""
        host = f"http://127.0.0.1:{self._server.server_address[1]}"
        value = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "double", "cluster": {"server": host}}],
            "users": [{"name": "tester", "user": {"token": token}}],
            "contexts": [
                {
                    "name": "double",
                    "context": {"cluster": "double", "user": "tester", "namespace": "selfalign"},
                }
            ],
            "current-context": "double",
        }
        path.write_text(yaml.safe_dump(value))
        return path

    def close(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def asked(self, method: str, contains: str) -> Answer | None:
        """The answer that a test asked for, if this request is the one."""
        for answer in self.answers:
            if answer.method == method and answer.contains in contains:
                self.answers.remove(answer)
                return answer
        return None


def _handler(server: ApiServer) -> type[BaseHTTPRequestHandler]:
    cluster = server.cluster

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            return

        def do_GET(self) -> None:
            self._serve("GET")

        def do_POST(self) -> None:
            self._serve("POST")

        def do_PATCH(self) -> None:
            self._serve("PATCH")

        def do_DELETE(self) -> None:
            self._serve("DELETE")

        def _serve(self, method: str) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            server.requests.append((method, parts.path, query))
            server.headers.append(dict(self.headers))
            answer = server.asked(method, self.path)
            if answer is not None:
                self._forced(answer)
                return
            found = _PATH.fullmatch(parts.path)
            assert found is not None, parts.path
            try:
                self._route(method, query, body, **found.groupdict())
            except Gone as error:
                self._status(404, "NotFound", str(error))
            except Conflict as error:
                self._status(409, "AlreadyExists" if method == "POST" else "Conflict", str(error))
            except ClusterRejected as error:
                self._status(422, "Invalid", str(error))

        def _route(
            self, method: str, query: dict[str, str], body: dict[str, Any], *, namespace: str,
            kind: str, name: str | None, part: str | None,
        ) -> None:  # fmt: skip
            assert namespace == cluster.namespace
            if part == "log":
                assert name is not None
                lines = cluster.log_lines(name, container=query["container"], follow=False,
                                          tail_lines=_number(query.get("tailLines")))  # fmt: skip
                self._stream(f"{line}\n".encode() for line in list(lines))
            elif query.get("watch") == "true":
                self._watch(kind, query)
            elif method == "GET" and name is None:
                self._list(kind, query)
            elif method == "GET":
                assert name is not None
                self._json(200, cluster.get(kind, name))
            elif method == "POST":
                self._json(201, cluster.create(kind, body))
            elif method == "PATCH":
                assert self.headers["Content-Type"] == "application/merge-patch+json"
                assert name is not None
                if part == "status":
                    run = {"metadata": {"name": name, **body["metadata"]}}
                    status = {k: v for k, v in body["status"].items() if v is not None}
                    self._json(200, cluster.patch_status(run, status))
                else:
                    self._json(200, cluster.patch(kind, name, body))
            else:
                assert name is not None
                assert body["propagationPolicy"] == "Background"
                uid = body["preconditions"]["uid"]
                if cluster.get(kind, name)["metadata"]["uid"] != uid:
                    raise Conflict("the UID in the precondition does not match")
                cluster.delete(kind, name, uid=uid)
                self._json(200, {"kind": "Status", "status": "Success"})

        def _list(self, kind: str, query: dict[str, str]) -> None:
            encoded, version = cluster.select(kind, query.get("labelSelector", ""))
            items = [json.loads(data) for data in encoded]
            items = [i for i in items if has_fields(i, query.get("fieldSelector", ""))]
            first, size = int(query.get("continue", "0")), int(query["limit"])
            metadata = {"resourceVersion": str(version)}
            if first + size < len(items):
                metadata["continue"] = str(first + size)
            self._json(200, {"items": items[first : first + size], "metadata": metadata})

        def _watch(self, kind: str, query: dict[str, str]) -> None:
            self._stream(
                json.dumps(event).encode() + b"\n"
                for event in self._events(
                    kind,
                    query.get("labelSelector", ""),
                    int(query["resourceVersion"]),
                    float(query["timeoutSeconds"]),
                )
            )

        def _events(
            self, kind: str, selector: str, version: int, seconds: float
        ) -> Iterator[dict[str, Any]]:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and not server.stopping.is_set():
                changes = cluster.changes_since(version)
                if changes is None:
                    status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "old"}
                    yield {"type": "ERROR", "object": status}
                    return
                for change in changes:
                    version = change.version
                    if change.kind == kind and labelled(change.labels, selector):
                        what = "DELETED" if change.deleted else "MODIFIED"
                        yield {"type": what, "object": json.loads(change.data)}
                bookmark = {"metadata": {"resourceVersion": str(version)}}
                yield {"type": "BOOKMARK", "object": bookmark}
                cluster.wait_beyond(version, 0.1)

        def _forced(self, answer: Answer) -> None:
            if answer.raw is not None:
                self._send(answer.status, answer.raw.encode())
                return
            if answer.status == 0:
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(2)
            elif answer.events:
                self._stream(json.dumps(event).encode() + b"\n" for event in answer.events)
            else:
                self._status(answer.status, answer.reason, answer.message)

        def _status(self, code: int, reason: str, message: str) -> None:
            self._json(code, {"kind": "Status", "code": code, "reason": reason, "message": message})

        def _json(self, code: int, value: dict[str, Any]) -> None:
            self._send(code, json.dumps(value).encode())

        def _send(self, code: int, data: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _stream(self, chunks: Iterator[bytes]) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with contextlib.suppress(OSError):  # who watches may leave
                for chunk in chunks:
                    self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
                    self.wfile.flush()
                self.wfile.write(b"0\r\n\r\n")

    return Handler


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)
