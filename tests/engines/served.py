"""A real HTTP server whose /v1/completions is OpenAI's, around the transformers engine.

It stands in for vLLM's server where vLLM is not installed: the client's requests, tokens and scores
are real, the sampling is that of `transformers`. One request is computed at a time.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from selfalign.config import EngineConfig
from selfalign.engines.base import GenerationRequest, Sampling
from selfalign.engines.open import open_engine
from tests.loopback import answering


@dataclass
class ModelServer:
    """What a test sets, and what was seen.

    Attributes:
        url: ends in /v1.
        rows: what /v1/models lists.
        key: that requests must bear; None: none.
        echo: whether it scores.
        tokenize: whether it has /tokenize; "content": one that looks for the text under that name.
        bodies: of completions asked for.
        headers: of the last request.
    """

    url: str
    rows: list[dict[str, Any]]
    key: str | None = None
    echo: bool = True
    tokenize: bool | str = True
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)


class _Model:
    def __init__(self, directory: Path, max_length: int) -> None:
        import torch

        torch.set_num_threads(1)  # threads only wait for each other in models this small
        config = EngineConfig(kind="transformers", dtype="float32", max_length=max_length)
        self.engine: Any = open_engine(config, directory)
        self.lock = threading.Lock()

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to the body of a request. Raises ValueError for a wrong one."""
        prompt, limit = body["prompt"], body["max_tokens"]
        if not prompt or len(prompt) + limit > self.engine.max_length:
            raise ValueError(f"{len(prompt)} + {limit} tokens exceed {self.engine.max_length}")
        with self.lock:
            done = self._generate(body, prompt, limit)
            logprobs = self._logprobs(prompt) if body.get("echo") else None
        choice = {"text": done.text, "finish_reason": done.finish_reason, "logprobs": logprobs}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": done.num_new_tokens}
        return {"choices": [choice], "usage": usage}

    def _generate(self, body: dict[str, Any], prompt: list[int], limit: int) -> Any:
        from selfalign.engines.transformers.decoding import Row, decode

        sampling = Sampling(
            body["temperature"],
            body.get("top_p", 1.0),
            limit,
            body.get("repetition_penalty", 1.0),
            tuple(body.get("stop", ())),
        )
        request = GenerationRequest("x", "", sampling, body.get("seed", 0))
        stream = self.engine._tokenizer.stream(prompt, sampling.stop)
        row = Row(request, prompt, limit, stream)
        steps = decode(self.engine._forward, [row], self.engine._end_tokens)
        (done,) = [each for step in steps for each in step]
        return done

    def _logprobs(self, prompt: list[int]) -> dict[str, Any]:
        import torch

        with torch.inference_mode():
            _, logits = self.engine._forward.start([prompt], len(prompt))  # (1, tokens, words)
            likelihoods = logits[0, :-1].float().log_softmax(-1)
            chosen = likelihoods.gather(-1, torch.tensor(prompt[1:])[:, None])[:, 0]
        return {"token_logprobs": [None, *chosen.tolist(), -1.0]}  # the last: the new token's


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: ModelServer
    model: _Model

    def do_GET(self) -> None:
        state = self.server_state
        if not self._allowed():
            return
        if self.path == "/v1/models":
            self._answer(200, {"data": state.rows})
        elif self.path == "/version":
            self._answer(200, {"version": "0.1"})
        else:
            self._answer(404, {"error": {"message": "not found"}})

    def do_POST(self) -> None:
        state = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        state.headers = dict(self.headers)
        if not self._allowed():
            return
        if self.path == "/tokenize" and state.tokenize:
            text = body.get("prompt" if state.tokenize is True else state.tokenize, "")
            tokenizer = self.model.engine._tokenizer.tokenizer
            self._answer(200, {"tokens": tokenizer(text)["input_ids"] if text else []})
        elif self.path != "/v1/completions":
            self._answer(404, {"error": {"message": "not found"}})
        elif body["model"] not in {row["id"] for row in state.rows}:
            self._answer(404, {"error": {"message": f"no model {body['model']}"}})
        elif body.get("echo") and not state.echo:
            self._answer(400, {"error": {"message": "echo is not supported"}})
        else:
            state.bodies.append(body)
            try:
                self._answer(200, self.model.complete(body))
            except ValueError as error:
                self._answer(400, {"error": {"message": str(error)}})

    def _allowed(self) -> bool:
        key = self.server_state.key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return True
        told = self.headers.get("Authorization", "none")
        self._answer(401, {"error": {"message": f"wrong key: {told}"}})
        return False

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's name
        """Quiet."""


@contextmanager
def serving(directory: Path, max_length: int, port: int = 0) -> Iterator[ModelServer]:
    """A server of the model in `directory`, on loopback; port 0 is any free one."""
    model = _Model(directory, max_length)
    handler = type("Handler", (_Handler,), {"model": model})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    row = {"id": str(directory), "root": str(directory), "owned_by": "vllm"}
    state = ModelServer(
        f"http://127.0.0.1:{server.server_port}/v1", [row | {"max_model_len": max_length}]
    )
    handler.server_state = state  # type: ignore[attr-defined]
    with answering(server):
        yield state


def serve(directory: Path, max_length: int, port: int) -> None:
    """Serve until the process is killed."""
    with serving(directory, max_length, port):
        threading.Event().wait()
