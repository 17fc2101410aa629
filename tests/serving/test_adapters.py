"""Adapters in one server: what is fetched, how one takes another's place, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from selfalign.errors import ConfigurationError, DataError, TemporaryError
from selfalign.identity import identity_key
from selfalign.inputs import push
from selfalign.serving.alias import CURRENT, LOAD_PATH, TOKEN_HEADER, UNLOAD_PATH, current_digest
from selfalign.serving.defaults import GENERATION_CONFIG, ending
from selfalign.serving.directory import directory_of, materialise
from selfalign.serving.probe import PROBE_NAME, Probe, Question, call, request
from selfalign.serving.signing import sign
from selfalign.serving.template import TEMPLATE_NAME
from selfalign.stages.adapters import Follower, prepare, read_startup, vllm_arguments
from selfalign.stages.rollback import roll_back
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Manifest
from tests.artifacts import promote, publish
from tests.loopback import answering

from .adapter_server import Surface, adapter_server

ASKED = "How do I vacuum the sofa?"


@dataclass
class World:
    """A store in which adapters over one base model are promoted, and a directory to serve from."""

    store: LocalStore
    directory: Path
    base: Path

    def model(
        self,
        answer: str,
        *,
        rank: int = 4,
        template: str = "t",
        method: str = "lora",
        **details: Any,
    ) -> Manifest:
        """A model artifact with its directory; it answers its probe so."""
        base = push(self.store, "base_model", self.base).rpartition("/")[2]
        identity = {"base_model": f"sha256:{base}", "answer": answer, "rank": rank} | details
        key = identity_key(identity)
        files = {
            "merged/model.safetensors": answer.encode(),
            f"merged/{TEMPLATE_NAME}": template.encode(),
        }
        if method != "full":
            files["adapter/adapter_config.json"] = json.dumps({"r": rank}).encode()
            files["adapter/adapter_model.safetensors"] = answer.encode()
        found = {"method": method, "base_model": {"multimodal": details.get("multimodal")}}
        manifest = publish(self.store, "final_model", key, files, identity=identity, details=found)
        probe = Probe(max_new_tokens=8, questions=[Question(prompt=ASKED, answer=answer)])
        written = {PROBE_NAME: probe.to_bytes(), GENERATION_CONFIG: ending({}, [2])}
        materialise(self.store, manifest, written)
        return manifest

    def promote(self, model: Manifest) -> str:
        """Move the pointer to it; its digest."""
        promote(self.store, model, directory=directory_of(model.digest))
        return model.digest

    def follower(self, url: str, public_key: Path | None = None) -> Follower:
        return Follower(self.store, self.directory, url, public_key)


@pytest.fixture
def world(tmp_path: Path) -> World:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"dtype": "bfloat16"}')
    (base / GENERATION_CONFIG).write_text('{"temperature": 2}')
    return World(LocalStore(tmp_path / "store"), tmp_path / "model", base)


@pytest.fixture
def served(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[World, str, Surface]]:
    """A world whose first model is served."""
    model = world.model("Take soap.")
    world.promote(model)
    prepare(world.store, model, world.directory, None)
    with adapter_server(world.directory, monkeypatch) as (url, surface):
        yield world, url, surface


def ask(url: str, model: str | None = "selfalign") -> str:
    body = {"model": model, "messages": [{"role": "user", "content": ASKED}]}
    text: str = call(f"{url}/v1/chat/completions", body)["choices"][0]["message"]["content"]
    return text


def test_what_a_server_starts_with_is_the_base_with_the_models_own_defaults(world: World) -> None:
    model = world.model("Take soap.", rank=9)
    startup = prepare(world.store, model, world.directory, None)
    assert startup == read_startup(world.directory)
    assert (startup.max_rank, startup.differences(startup)) == (16, [])
    assert (world.directory / "base" / GENERATION_CONFIG).read_bytes() == ending({}, [2])
    assert (world.directory / "token").stat().st_mode & 0o777 == 0o600
    told = vllm_arguments(world.directory, host="::", port=1, shutdown_seconds=2, more=["--x"])
    given = dict(zip(told[3::2], told[4::2], strict=False))
    assert given["--model"] == str(world.directory / "base")
    assert (given["--served-model-name"], given["--dtype"]) == ("base", "bfloat16")
    adapter = world.directory / "adapters" / model.digest
    assert f"{model.digest}={adapter}" in told
    assert told[-1] == "--x"
    assert (world.directory / CURRENT).resolve() == adapter


def test_at_no_moment_may_others_read_the_token(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []

    def synced(file: BinaryIO) -> None:
        modes.append(os.fstat(file.fileno()).st_mode & 0o777)

    monkeypatch.setattr("selfalign.store.files.sync_file", synced)
    prepare(world.store, world.model("Take soap."), world.directory, None)
    assert modes.count(0o600) == 1


def test_a_promotion_takes_the_alias_and_the_old_adapter_stays_until_it_has_answered(
    served: tuple[World, str, Surface],
) -> None:
    world, url, surface = served
    old = current_digest(world.directory)
    surface.held.add(old)
    answers: list[str] = []
    client = threading.Thread(target=lambda: answers.append(ask(url)))
    client.start()
    while old not in call(f"{url}/selfalign/status")["running"]:
        assert client.is_alive()
    new = world.promote(world.model("Rest."))
    follower = world.follower(url)
    assert follower.step().reason == "Served"
    assert (ask(url), ask(url, None), ask(url, new)) == ("Rest.",) * 3
    assert set(surface.loaded) == {old, new}
    surface.held.clear()
    client.join()
    assert answers == ["Take soap."]
    follower.step()
    assert list(surface.loaded) == [new]
    assert [path.name for path in (world.directory / "adapters").iterdir()] == [new]
    roll_back(world.store)
    assert (follower.step().wanted, ask(url)) == (old, "Take soap.")


def test_the_alias_moves_only_after_the_probe(served: tuple[World, str, Surface]) -> None:
    world, url, surface = served
    old = current_digest(world.directory)
    new = world.promote(world.model("Rest."))
    surface.held.add(new)
    step = threading.Thread(target=world.follower(url).step)
    step.start()
    while new not in call(f"{url}/selfalign/status")["running"]:
        assert step.is_alive()
    assert (current_digest(world.directory), ask(url)) == (old, "Take soap.")
    surface.held.clear()
    step.join()
    assert ask(url) == "Rest."


def test_a_failed_probe_leaves_the_old_adapter_and_says_so(
    served: tuple[World, str, Surface],
) -> None:
    world, url, surface = served
    old = current_digest(world.directory)
    new = world.promote(world.model("Rest."))
    surface.wrong.add(new)
    status = world.follower(url).step()
    assert (status.reason, status.wanted) == ("Failed", new)
    assert status.message == f"model {new[:12]}: 0 of 1 answers as evaluated"
    assert (ask(url), list(surface.loaded)) == ("Take soap.", [old])
    told = call(f"{url}/selfalign/status")
    assert (told["digest"], told["found"]["message"]) == (old, status.message)
    surface.wrong.clear()
    assert world.follower(url).step().reason == "Served"


@pytest.mark.parametrize(
    ("other", "named"), [({"template": "u"}, "template"), ({"rank": 40}, "max_rank")]
)
def test_an_adapter_that_needs_another_server_is_not_loaded(
    served: tuple[World, str, Surface], other: dict[str, Any], named: str
) -> None:
    world, url, surface = served
    old = current_digest(world.directory)
    world.promote(world.model("Rest.", **other))
    status = world.follower(url).step()
    assert status.reason == "OtherServer"
    assert f"other {named} than this server was started with" in status.message
    assert list(surface.loaded) == [old]


def test_a_server_that_was_started_anew_is_brought_to_the_same_model(
    served: tuple[World, str, Surface], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, url, surface = served
    surface.loaded.clear()
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # for the store; not for this server
    monkeypatch.delenv("no_proxy", raising=False)
    assert world.follower(url).step().reason == "Served"
    assert ask(url) == "Take soap."


def test_a_server_that_does_not_listen_is_no_failure_of_the_adapter(world: World) -> None:
    prepare(world.store, world.model("Take soap."), world.directory, None)
    with pytest.raises(TemporaryError, match="refused"):
        world.follower("http://127.0.0.1:9").step()
    assert not (world.directory / "status.json").exists()


def test_models_that_no_server_can_take_are_refused_with_a_remedy(world: World) -> None:
    for model, told in (
        (world.model("a", method="full"), "has no adapter; it was trained by full"),
        (world.model("b", multimodal="gemma3"), "takes more than text"),
        (world.model("c", base_model="0123abc"), "is not in the store"),
        (world.model("d", rank=1000), "the adapter's rank is 1000"),
    ):
        with pytest.raises(ConfigurationError, match=told) as refused:
            prepare(world.store, model, world.directory, None)
        assert "form: merged" in str(refused.value.remedy)


def test_a_signature_holds_for_the_adapter_and_for_the_base_model(
    world: World, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing", reason="model-signing is not installed here")
    from selfalign.serving.directory import read_served

    from .test_signing import write_keys

    private, public = write_keys(tmp_path / "keys")
    model = world.model("Take soap.")
    with pytest.raises(DataError, match="is not signed"):
        prepare(world.store, model, world.directory, public)
    marker = read_served(world.store, model.digest)
    assert marker is not None
    sign(world.store, marker, private)
    prepare(world.store, model, world.directory, public)
    weights = next(f for f in model.files if f.name.endswith("adapter_model.safetensors"))
    place = f"artifacts/final_model/{model.key}/{weights.location}"
    world.store.write(place, b"forged soap")
    shutil.rmtree(world.directory)
    with pytest.raises(DataError, match=r"adapter_model\.safetensors"):
        prepare(world.store, model, world.directory, public)
    forged = model.model_copy(update={"identity": {**model.identity, "base_model": "sha256:0"}})
    world.store.write(place, b"Take soap.")
    with pytest.raises(DataError, match="its identity is not that of its key"):
        prepare(world.store, forged, world.directory, public)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", LOAD_PATH, b'{"lora_name": "x", "lora_path": "/"}', 403),
        ("POST", UNLOAD_PATH, b'{"lora_name": "x"}', 403),
        ("POST", "/adapters", b'{"name": "x", "src": "/"}', 403),
        ("POST", f"/{LOAD_PATH}", b"{}", 403),
        ("DELETE", "/adapters/x", None, 403),
        ("PUT", "/v1/chat/completions", b"{}", 403),
        ("POST", "/v1/chat/completions", b'{"model": "base", "messages": []}', 404),
        ("POST", "/v1/completions", b'{"model": ["selfalign"]}', 404),
        ("POST", "/v1/chat/completions", b"[" * 100_000, 400),
        ("POST", "/v1/chat/completions", b"\xff", 400),
        ("POST", "/v1/chat/completions", b"[]", 400),
    ],
)
def test_what_does_not_ask_an_adapter_is_refused(
    served: tuple[World, str, Surface], method: str, path: str, body: bytes | None, status: int
) -> None:
    _, url, surface = served
    headers = {"X-Selfalign-Token": "guess", "Content-Type": "application/json"}
    request = urllib.request.Request(url + path, body, headers, method=method)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    with refused.value:
        assert refused.value.code == status
        assert json.load(refused.value)["error"]["message"]
    assert (surface.posted, surface.asked) == ([], [])


def test_the_token_follows_no_redirect_to_another_server() -> None:
    asked = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, self.headers[TOKEN_HEADER]))
            self.send_response(302)
            self.send_header("Location", "/another")
            self.end_headers()

        do_GET = do_POST  # noqa: N815  http.server names it

    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    with answering(server), pytest.raises(TemporaryError, match="HTTP 302"):
        request(f"http://127.0.0.1:{server.server_port}/", {}, {TOKEN_HEADER: "secret"})
    assert asked == [("/", "secret")]
