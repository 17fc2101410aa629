"""Models into an OCI registry: one that runs in this process, and a real one where it is installed.

`apt-get install docker-registry` brings the reference implementation; it is found on PATH.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest

from selfalign.errors import (
    ConfigurationError,
    DataError,
    StorageFull,
    StoreDenied,
    StoreUnavailable,
)
from selfalign.serving.directory import MARKER, ServedModel, materialise, read_served
from selfalign.serving.export import export
from selfalign.store import registry as client
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Manifest
from tests.loopback import answering

from .registry import PASSWORD, TOKEN, USER, Registry
from .test_directory import FILES, model


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture(autouse=True)
def _no_wait_and_no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAITS_SECONDS", (0.0, 0.0, 0.0))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)


@pytest.fixture
def registry(request: pytest.FixtureRequest) -> Iterator[Registry]:
    found = Registry(getattr(request, "param", None))
    yield found
    found.close()


def log_in(tmp_path: Path, host: str, password: str = PASSWORD, **more: object) -> None:
    auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
    config = {"auths": {host: {"auth": auth}}} | more
    (tmp_path / "config.json").write_text(json.dumps(config))


def push(store: LocalStore, manifest: Manifest, registry: Registry, tag: str = ":one") -> str:
    return export(store, manifest, "merged", f"oci://{registry.host}/team/model{tag}")[1]


def test_an_artifact_pulls_as_the_directory_that_servers_load(
    store: LocalStore, registry: Registry
) -> None:
    manifest = model(store)
    served = materialise(store, manifest, {"README.md": b"scores", "probe.json": b"{}"})
    reference = push(store, manifest, registry)
    name, _, digest = reference.partition("@sha256:")
    assert name == f"oci://{registry.host}/team/model:one"
    found = registry.pull("one")
    assert found.pop(MARKER) == served.to_bytes()
    assert found == {**FILES, "README.md": b"scores", "probe.json": b"{}"}
    pushed = json.loads(registry.manifests["one"])
    assert pushed["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    kinds = {layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"].split(".", 4)[4]
             for layer in pushed["layers"]}  # fmt: skip
    assert kinds["model-1-of-2.safetensors"] == "v1.raw"
    assert kinds["README.md"] == "v1.raw"
    config = json.loads(registry.blobs[pushed["config"]["digest"]])
    assert config["descriptor"]["version"] == served.digest
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in pushed["layers"]]
    assert len(digest) == 64


def test_an_adapter_has_a_tag_of_its_own(store: LocalStore, registry: Registry) -> None:
    manifest = model(store, "adapter")
    exported, _ = export(store, manifest, "adapter", f"oci://{registry.host}/team/model")
    found = registry.pull(f"{manifest.digest[:12]}-adapter")
    assert ServedModel.model_validate_json(found.pop(MARKER)).form == exported.form == "adapter"
    assert found == FILES


def test_a_push_that_breaks_off_goes_on_and_a_second_one_sends_nothing(
    store: LocalStore, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = model(store)
    registry.break_off = 1  # tried again at once
    read, left = LocalStore.download, [2]

    def stops(self: LocalStore, key: str, target: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        read(self, key, target)

    monkeypatch.setattr(LocalStore, "download", stops)
    with pytest.raises(KeyboardInterrupt):
        push(store, manifest, registry)
    assert not registry.manifests
    assert len(registry.blobs) == 2
    left[0] = 1  # one file is left, and that alone is read
    first = push(store, manifest, registry)
    sent = registry.uploads()
    assert push(store, manifest, registry) == first
    assert registry.uploads() == sent


def test_a_registry_that_keeps_breaking_off_or_loses_a_byte_is_told_and_nothing_is_tagged(
    store: LocalStore, registry: Registry
) -> None:
    manifest = model(store)
    registry.break_off = 99
    with pytest.raises(StoreUnavailable, match=r"oci://.*/team/model: config\.json \(sha256:"):
        push(store, manifest, registry)
    registry.break_off, registry.lose_a_byte = 0, True
    with pytest.raises(StoreUnavailable, match="DIGEST_INVALID"):
        push(store, manifest, registry)
    assert not registry.manifests


def test_a_flipped_byte_in_the_store_is_not_pushed(store: LocalStore, registry: Registry) -> None:
    manifest = model(store)
    served = materialise(store, manifest, {})
    store.write(f"models/{served.digest}/model-2-of-2.safetensors", b"3")
    with pytest.raises(DataError, match=r"model-2-of-2\.safetensors: corrupt: expected SHA-256"):
        push(store, manifest, registry)
    assert not registry.manifests


def test_a_tag_stays_with_its_model_and_each_model_has_one_of_its_own(
    store: LocalStore, registry: Registry
) -> None:
    manifest = model(store)
    before = push(store, manifest, registry, "")
    assert f":{manifest.digest[:12]}@" in before
    materialise(store, manifest, {"README.md": b"scores"})  # promoted meanwhile
    assert push(store, manifest, registry, "") != before
    push(store, manifest, registry, ":kept")
    other = manifest.model_copy(update={"digest": "0" * 64, "key": "other"})
    store.write("artifacts/final_model/other/manifest.json", b"")
    with pytest.raises(ConfigurationError, match="kept: names something else than the merged form"):
        push(store, other, registry, ":kept")
    registry.manifests["image"] = b"{}"
    with pytest.raises(ConfigurationError, match="image: names something else"):
        push(store, manifest, registry, ":image")


@pytest.mark.parametrize("registry", ["basic", "bearer"], indirect=True)
def test_who_is_not_known_is_refused_without_any_secret_and_a_login_helps(
    store: LocalStore, registry: Registry, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = model(store)
    for password in (None, "a-wrong-password"):
        if password:
            log_in(tmp_path, registry.host, password)
        with pytest.raises(StoreDenied, match="UNAUTHORIZED") as caught:
            push(store, manifest, registry)
        assert f"docker login {registry.host}" in str(caught.value)
        assert not any(each in str(caught.value) for each in (TOKEN, "a-wrong-password"))
    log_in(tmp_path, registry.host)
    push(store, manifest, registry)
    assert registry.pull("one").keys() == {*FILES, MARKER}
    assert not any(each in "".join(capfd.readouterr()) for each in (TOKEN, PASSWORD))


@pytest.mark.parametrize("registry", ["bearer"], indirect=True)
def test_helpers_and_identity_tokens_log_in_too(
    store: LocalStore, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = model(store)
    auth_file = tmp_path / "auth.json"
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(auth_file))
    auth_file.write_text(json.dumps({"auths": {registry.host: {"identitytoken": PASSWORD}}}))
    push(store, manifest, registry)
    helper = tmp_path / "docker-credential-here"
    told = json.dumps({"Username": USER, "Secret": PASSWORD})
    helper.write_text(f"#!/bin/sh\ngrep -q '^{registry.host}$' && echo '{told}'\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for config in ({"credsStore": "here"}, {"credHelpers": {registry.host: "here"}}):
        auth_file.write_text(json.dumps(config))
        push(store, manifest, registry)
    auth_file.write_text(json.dumps({"credsStore": "absent"}))
    with pytest.raises(StoreDenied, match="docker-credential-absent: FileNotFoundError"):
        push(store, manifest, registry)
    auth_file.write_text('{"auths": {"x": "a-secret-password"')
    with pytest.raises(ConfigurationError, match="cannot be read as docker's") as caught:
        push(store, manifest, registry)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("registry", ["bearer"], indirect=True)
def test_a_token_that_runs_out_during_an_upload_is_asked_for_again(
    store: LocalStore, registry: Registry, tmp_path: Path
) -> None:
    manifest = model(store)
    log_in(tmp_path, registry.host)
    registry.forget = 1
    push(store, manifest, registry)
    assert registry.pull("one").keys() == {*FILES, MARKER}


def test_a_helper_that_answers_with_something_else_is_told_without_what_it_says(
    store: LocalStore, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "docker-credential-here"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "config.json").write_text('{"credsStore": "here"}')
    for told in ("{}", f"{PASSWORD}", f'["{PASSWORD}"]'):
        helper.write_text(f"#!/bin/sh\necho '{told}'\n")
        helper.chmod(0o755)
        with pytest.raises(StoreDenied, match="here: does not answer with Username") as caught:
            push(store, model(store), registry)
        assert PASSWORD not in str(caught.value)


def _http(head: str, body: bytes = b"{}", status: str = "200 OK") -> bytes:
    lines = (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", head)
    return "\r\n".join(filter(None, lines)).encode("latin-1") + b"\r\n\r\n" + body


DEEP = b"[" * 100_000
ASKS = 'WWW-Authenticate: Bearer realm="http://{host}/token"'
HOSTILE: dict[str, tuple[type[Exception], dict[str, bytes]]] = {
    # by what is asked for (the beginning of the request line), else "": the answer
    "an endless manifest": (StoreUnavailable, {"": _http("", b" " * (5 << 20))}),
    "an endless refusal": (StoreUnavailable, {"": _http("", b" " * (5 << 20), "404 Not Found")}),
    "packed": (ConfigurationError, {"": _http("Content-Encoding: gzip", b"no gzip")}),
    "a circle": (StoreUnavailable, {"": _http("Location: /v2/", b"", "302 Found")}),
    "annotations": (ConfigurationError, {"": _http("", b'{"annotations": [1]}')}),
    "no annotations": (ConfigurationError, {"": _http("", b'{"annotations": null}')}),
    "a deep refusal": (ConfigurationError, {"": _http("", DEEP, "400 Bad Request")}),
    "no challenge": (StoreDenied, {"": _http("WWW-Authenticate: Basic a=", b"", "401 No")}),
    "no token": (StoreDenied, {"GET /token": _http(""), "": _http(ASKS, b"", "401 No")}),
    "a deep token": (StoreDenied, {"GET /token": _http("", DEEP), "": _http(ASKS, b"", "401 No")}),
    "a token of two lines": (
        StoreDenied,
        {"GET /token": _http("", b'{"token": "a\\nbc"}'), "": _http(ASKS, b"", "401 No")},
    ),
    **{
        name: (
            StoreUnavailable,
            {"POST": _http(head, b"", "202 Accepted"), "": _http("", b"", "404 Not Found")},
        )
        for name, head in {
            "a place with a control character": "Location: http://a\x01b/",
            "a place that is no address": "Location: http://[b/",
            "a cookie that is no ASCII": "Location: /u\r\nSet-Cookie: \xff=\xff; Path=/",
        }.items()
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_a_registry_answers_it_is_an_error_that_names_it(
    store: LocalStore, name: str
) -> None:
    error, answers = HOSTILE[name]

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            asked = self.rfile.readline().decode()
            while self.rfile.readline().strip():
                pass
            found = next(answers[each] for each in answers if asked.startswith(each))
            self.wfile.write(found.replace(b"{host}", host.encode()))

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        host = f"127.0.0.1:{server.server_address[1]}"
        with answering(server), pytest.raises(error, match=f"oci://{host}/m"):
            export(store, model(store), "merged", f"oci://{host}/m:one")


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (403, "DENIED", StoreDenied),
        (405, "UNSUPPORTED", ConfigurationError),
        (507, "FULL", StorageFull),
        (503, "UNAVAILABLE", None),
    ],
)
def test_what_a_registry_refuses_says_whether_to_try_again(
    store: LocalStore, registry: Registry, status: int, code: str, error: type[Exception] | None
) -> None:
    manifest = model(store)
    if error is None:
        registry.answers = [(status, code)]
        push(store, manifest, registry)
        return
    registry.answers = [(status, code)] * 9  # however often it asks
    with pytest.raises(error, match=f"HTTP {status} {code}") as caught:
        push(store, manifest, registry)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    "place",
    ["oci://host", "oci://host/Team/model", "oci://u:a-secret@host/m", "oci://host/m@sha256:00"],
)
def test_what_is_no_reference_is_refused_without_its_password(
    store: LocalStore, place: str
) -> None:
    with pytest.raises(ConfigurationError, match="expected oci://REGISTRY/REPOSITORY:TAG") as found:
        export(store, model(store), "merged", place)
    assert "a-secret" not in str(found.value)


def test_a_registry_elsewhere_is_never_asked_without_encryption() -> None:
    with client.Repository("registry.example", "m") as repository:
        assert repository._base == "https://registry.example/v2/m/"
    with client.Repository("docker.io", "m") as repository:
        assert repository._base == "https://registry-1.docker.io/v2/library/m/"


@pytest.fixture
def real(tmp_path: Path) -> Iterator[str]:
    """The address of the reference implementation."""
    program = shutil.which("docker-registry") or shutil.which("registry")
    if program is None:
        pytest.skip("no docker-registry on PATH")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{bound.getsockname()[1]}"
    config = tmp_path / "registry.yml"
    blobs = {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}
    quiet = {"accesslog": {"disabled": True}, "level": "error"}
    settings = {"version": 0.1, "log": quiet, "storage": blobs, "http": {"addr": host}}
    config.write_text(json.dumps(settings))  # YAML too
    with subprocess.Popen([program, "serve", str(config)], stdout=2) as process:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://{host}/v2/", timeout=5).close()
                break
            except urllib.error.URLError:
                time.sleep(0.05)
        yield host
        process.terminate()


def test_the_reference_implementation_takes_it(store: LocalStore, real: str) -> None:
    manifest = model(store)
    materialise(store, manifest, {"README.md": b"scores"})
    place = f"oci://{real}/team/model"
    served, reference = export(store, manifest, "merged", place)
    assert export(store, manifest, "merged", place) == (served, reference)
    assert read_served(store, manifest.digest) == served
    with client.Repository(real, "team/model") as repository:
        found = repository.read_manifest(manifest.digest[:12])
        assert found is not None
        titles = {
            each["annotations"]["org.cncf.model.filepath"] for each in json.loads(found)["layers"]
        }
        assert titles == {*FILES, "README.md", MARKER}
        assert all(repository.has_blob(file.sha256) for file in served.files)
