"""An OCI registry in this process, as far as pushing and pulling need it.

It holds to the distribution specification where a client could be wrong: a blob with another digest
than it was sent under is refused, and so is a manifest whose blobs are not there.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import uuid
from base64 import b64encode
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

USER, PASSWORD, TOKEN = "someone", "a-secret-password", "a-secret-token"


class Registry:
    """Serves on loopback until closed.

    Args:
        challenge: how it asks who this is: not at all, for a password, or for a token.

    Attributes:
        asked: method and path of every request, in their order.
        break_off: how many uploads end after half of their bytes, without an answer.
        forget: to how many uploads the token is a stranger's, as when it ran out.
        answers: status and code of the specification for the next requests instead of an answer.
    """

    def __init__(self, challenge: str | None = None) -> None:
        self.challenge = challenge
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.break_off = 0
        self.answers: list[tuple[int, str]] = []
        self.lose_a_byte = False
        self.forget = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.host = f"127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def uploads(self) -> int:
        return sum(method == "POST" and "blobs" in path for method, path in self.asked)

    def pull(self, tag: str) -> dict[str, bytes]:
        """What `oras pull` writes: each layer under its title."""
        layers = json.loads(self.manifests[tag])["layers"]
        return {
            layer["annotations"]["org.opencontainers.image.title"]: self.blobs[layer["digest"]]
            for layer in layers
        }


def _handler(registry: Registry) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            return

        def do_HEAD(self) -> None:
            self._serve()

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def do_PUT(self) -> None:
            self._serve()

        def _serve(self) -> None:
            url = urlsplit(self.path)
            registry.asked.append((self.command, url.path))
            if url.path == "/token":
                self._token()
            elif not self._known() or self._forgotten():
                self._refuse(401, "UNAUTHORIZED", self._challenge())
            elif registry.answers:
                self._refuse(*registry.answers.pop(0))
            elif self.command == "POST":
                self._send(202, {"Location": f"/upload/{uuid.uuid4()}?state=kept"})
            elif self.command == "PUT" and url.path.startswith("/upload/"):
                self._take_blob(parse_qs(url.query))
            elif self.command == "PUT":
                self._take_manifest(url.path.rpartition("/")[2], self._body())
            else:
                self._give(url.path)

        def _known(self) -> bool:
            found = self.headers.get("Authorization")
            basic = "Basic " + b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            wanted = {None: found, "basic": basic, "bearer": f"Bearer {TOKEN}"}
            return found == wanted[registry.challenge]

        def _forgotten(self) -> bool:
            if not registry.forget or not self.path.startswith("/upload/"):
                return False
            registry.forget -= 1
            self._body()
            return True

        def _challenge(self) -> str:
            if registry.challenge == "basic":
                return 'Basic realm="Registry, with a comma"'
            return f'Bearer realm="http://{registry.host}/token",service="registry",scope="x,y"'

        def _token(self) -> None:
            """For the password, or for an identity token that a form brings."""
            asked = parse_qs(urlsplit(self.path).query) | parse_qs(self._body().decode())
            basic = "Basic " + b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            known = self.headers.get("Authorization") == basic
            known |= asked.get("refresh_token") == [PASSWORD]
            right = asked.get("scope") == ["repository:team/model:pull,push"]
            token = TOKEN if known and right and asked["service"] == ["registry"] else "another"
            self._send(200, {}, json.dumps({"access_token": token}).encode())

        def _take_blob(self, query: dict[str, list[str]]) -> None:
            if registry.break_off:
                registry.break_off -= 1
                self.rfile.read(int(self.headers["Content-Length"]) // 2)
                self.close_connection = True
                return
            data = self._body()
            data = data[:-1] if registry.lose_a_byte else data
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
            if query["digest"] != [digest] or query["state"] != ["kept"]:
                self._refuse(400, "DIGEST_INVALID")
                return
            registry.blobs[digest] = data
            self._send(201, {})

        def _take_manifest(self, tag: str, data: bytes) -> None:
            found = json.loads(data)
            parts = [found["config"], *found["layers"]]
            if any(len(registry.blobs.get(p["digest"], b"")) != p["size"] for p in parts):
                self._refuse(404, "MANIFEST_BLOB_UNKNOWN")
                return
            registry.manifests[tag] = data
            self._send(201, {})

        def _give(self, path: str) -> None:
            name = path.rpartition("/")[2]
            found = registry.manifests.get(name) if "/manifests/" in path else None
            found = registry.blobs.get(name) if "/blobs/" in path else found
            if not re.match(r"/v2/team/model/(manifests|blobs)/", path) or found is None:
                self._refuse(404, "NAME_UNKNOWN")
            else:
                self._send(200, {}, found)

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _refuse(self, status: int, code: str, challenge: str | None = None) -> None:
            told = {
                "errors": [{"code": code, "message": f"{HTTPStatus(status).phrase} Bearer {TOKEN}"}]
            }
            self.close_connection = True  # a body may be left unread
            headers = {"WWW-Authenticate": challenge} if challenge else {}
            self._send(status, headers, json.dumps(told).encode())

        def _send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler
