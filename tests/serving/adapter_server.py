"""A server with vLLM's surface for adapters, behind the real middleware, over real HTTP.

An adapter answers as its own probe says, unless it is among the `wrong` ones.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from selfalign.serving.alias import CURRENT, DIRECTORY, Alias
from tests.loopback import answering


class Surface:
    """What vLLM does with a request, as an ASGI application.

    Attributes:
        loaded: path of each adapter by its name.
        asked: the body of every question.
        posted: the paths of what was asked of adapters.
        held: adapters that do not answer yet.
        wrong: adapters that answer something else than their probe says.
    """

    def __init__(self, directory: Path) -> None:
        path = (directory / CURRENT).resolve()
        self.loaded: dict[str, Path] = {path.name: path}
        self.asked: list[dict[str, Any]] = []
        self.posted: list[str] = []
        self.held: set[str] = set()
        self.wrong: set[str] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive()).get("body") if scope["method"] == "POST" else None
        status, value = await self._answer(scope["path"], json.loads(body) if body else {})
        data = json.dumps(value).encode()
        headers = [(b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    async def _answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": name} for name in ["base", *self.loaded]]}
        if path == "/v1/chat/completions":
            return await self._chat(body)
        self.posted.append(path)
        name = body["lora_name"]
        if path == "/v1/unload_lora_adapter":
            return (200, "") if self.loaded.pop(name, None) else (404, "no such adapter")
        if name in self.loaded:
            return 400, "has already been loaded"
        if not (Path(body["lora_path"]) / "adapter_model.safetensors").is_file():
            return 404, "no weights there"
        self.loaded[name] = Path(body["lora_path"])
        return 200, "Success"

    async def _chat(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.asked.append(body)
        if body["model"] not in self.loaded:
            return 404, f"{body['model']} does not exist"
        adapter = self.loaded[body["model"]]
        while body["model"] in self.held:
            await asyncio.sleep(0.01)
        known = json.loads((adapter / "probe.json").read_bytes())["questions"]
        prompt = body["messages"][-1]["content"]
        told = next((q["answer"] for q in known if q["prompt"] == prompt), "What?")
        text = "Something else." if body["model"] in self.wrong else told
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return 200, {"model": body["model"], "choices": [choice]}


class _Handler(BaseHTTPRequestHandler):
    server: Any

    def do_GET(self) -> None:
        self._run(b"")

    def do_POST(self) -> None:
        self._run(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    do_PUT = do_DELETE = do_POST  # noqa: N815 - the names that http.server looks for

    def _run(self, body: bytes) -> None:
        headers = [(k.lower().encode(), v.encode()) for k, v in self.headers.items()]
        scope = {"type": "http", "method": self.command, "path": self.path, "headers": headers}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.send_response(message["status"])
                for name, value in message["headers"]:
                    self.send_header(name.decode(), value.decode())
                self.end_headers()
            else:
                self.wfile.write(message["body"])

        asyncio.run(self.server.app(scope, receive, send))

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def adapter_server(directory: Path, patch: Any) -> Iterator[tuple[str, Surface]]:
    """The server of a directory that `prepare` made; its address, and what is behind it."""
    patch.setenv(DIRECTORY, str(directory))
    surface = Surface(directory)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.app = Alias(surface)  # type: ignore[attr-defined]
        with answering(server):
            yield f"http://127.0.0.1:{server.server_port}", surface
            surface.held.clear()
