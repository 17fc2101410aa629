"""A promoted model is fetched, served and probed: the server answers as evaluation and chat do."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from selfalign.cli import serving as command
from selfalign.cli.main import cli
from selfalign.engines.open import open_engine
from selfalign.errors import ConfigurationError, DataError, TemporaryError
from selfalign.load import load_config
from selfalign.serving.chat_server import ChatRequest, ChatServer, Reply
from selfalign.serving.probe import Outcome, Question, check, compare, new_probe
from selfalign.serving.probe import read_model_directory as read_directory
from selfalign.stages.serving import answering, engine_config, vllm_arguments
from selfalign.store.local import LocalStore
from selfalign.store.pointer import read_pointer
from tests import loopback
from tests.pipeline_world import forget_after, run_stages, write_world

REAL = 'evaluate.engine={"kind":"transformers"}'
TOO_LARGE = b"a body of which the server reads nothing"
OTHER_PRECISION = "evaluation.other_precision"
SHORT = "evaluate.sampling={temperature: 0, max_new_tokens: 24}"


@pytest.fixture(scope="module")
def promoted(
    tmp_path_factory: pytest.TempPathFactory, tiny_base_model: Path, finished_store: Path
) -> Path:
    """The configuration of a world in which a model is promoted that was really evaluated."""
    path = write_world(tmp_path_factory.mktemp("world"), tiny_base_model)
    shutil.copytree(finished_store, path.parent / "store")
    config = load_config(path, (REAL, SHORT)).config
    forget_after(config, "clone")
    with capture_logs() as logged:
        run_stages(config)
    assert OTHER_PRECISION not in [each["event"] for each in logged]
    return path


@pytest.fixture(scope="module")
def directory(promoted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as `serving fetch` brings it."""
    target = tmp_path_factory.mktemp("fetched") / "model"
    fetched = invoke("fetch", "--config", str(promoted), "--to", str(target))
    assert "files, verified, in" in fetched
    return target


@pytest.fixture(scope="module")
def url(directory: Path) -> Iterator[str]:
    """The small server on that directory."""
    served, _ = read_directory(directory)
    with open_engine(engine_config(directory), directory) as engine:
        names = ["selfalign", served.digest]
        with serving(ChatServer(names, answering(directory, engine), "127.0.0.1", 0)) as found:
            yield found


@contextmanager
def serving(server: ChatServer) -> Iterator[str]:
    """A server that answers while the block runs."""
    with loopback.answering(server):
        yield f"http://127.0.0.1:{server.server_port}"


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["serving", *arguments])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def post(url: str, body: Any) -> dict[str, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    length = {"Content-Length": "2000000"} if body == TOO_LARGE else {}
    request = urllib.request.Request(f"{url}/v1/chat/completions", data, length)
    with urllib.request.urlopen(request, timeout=60) as response:
        found: dict[str, Any] = json.loads(response.read())
        return found


def test_the_promoted_model_answers_its_probe(directory: Path, url: str) -> None:
    served, probe = read_directory(directory)
    assert [question.prompt for question in probe.questions] == [
        f"How do I vacuum the {word}?" for word in ("sofa", "carpet", "curtain", "rug")
    ]
    assert "probe.json" in {file.name for file in served.files}
    told = invoke("probe", str(directory), "--url", url)
    assert told == f"{url}: model {served.digest[:12]}: 4 of 4 answers as evaluated\n"


def test_the_server_answers_as_chat_does(promoted: Path, url: str) -> None:
    questions = ["How do I clean the sofa?", "Who is User: the person", " take\n\nUser: soap </s>"]
    arguments = ["chat", "--config", str(promoted), "--set", REAL, "--max-new-tokens", "12"]
    asked: list[str] = []
    for question in questions:
        done = CliRunner().invoke(cli, [*arguments, "--json", "--", question])
        assert done.exit_code == 0, done.output
        asked.append(json.loads(done.stdout.splitlines()[-1])["answer"])
    assert len(set(asked)) > 1
    for question, expected in zip(questions, asked, strict=True):
        messages = [{"role": "user", "content": question}]
        body = {"model": "selfalign", "messages": messages, "max_tokens": 12, "temperature": 0}
        reply = post(url, body)
        assert reply["choices"][0]["message"]["content"] == expected
        assert reply["choices"][0]["finish_reason"] in ("stop", "length")
        assert reply["usage"]["completion_tokens"] <= 12


def test_another_model_or_other_answers_fail_the_probe_and_are_told(
    directory: Path, url: str, tmp_path: Path
) -> None:
    served, probe = read_directory(directory)
    assert probe is not None
    with pytest.raises(DataError, match=f"serves selfalign, {served.digest}, not the model 000"):
        check(url, "0" * 64, probe)
    for nowhere in ("http://[::1", "http://a:99999", "http://a b", "nowhere"):
        with pytest.raises(DataError, match="not the address of a server"):
            check(nowhere, served.digest, probe)
    for name in ("selfalign.json", "probe.json"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    wrong = [question.model_copy(update={"answer": "Never."}) for question in probe.questions]
    for number, passes in ((1, True), (2, False)):
        mixed = probe.model_copy(update={"questions": wrong[:number] + probe.questions[number:]})
        (tmp_path / "probe.json").write_bytes(mixed.to_bytes())
        if passes:
            assert "3 of 4" in invoke("probe", str(tmp_path), "--url", url)
        else:
            with pytest.raises(DataError, match=r"2 of 4 answers.*expected 'Never.', got"):
                invoke("probe", str(tmp_path), "--url", url)
    (tmp_path / "probe.json").unlink()
    assert "its name is all that was checked" in invoke("probe", str(tmp_path), "--url", url)


def test_a_server_that_is_not_there_yet_is_no_wrong_one(directory: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # taken, and nobody listens
        with pytest.raises(TemporaryError, match="refused"):
            invoke("probe", str(directory), "--url", f"http://127.0.0.1:{bound.getsockname()[1]}")


@pytest.mark.parametrize(
    ("expected", "found", "whole", "alike"),
    [
        ("Take soap and water.", "Take soap and water.", True, True),
        ("Take soap and water, then rest.", "Take soap and", False, True),
        ("Take soap and water, then rest.", "Take soap and", True, False),
        ("Take soap and water.", "", False, False),
        ("Take soap and water.", "", True, False),
        ("Take soap and water for the carpet.", "Take soap and water for a carpet.", True, True),
        ("Take soap.", "I cannot help with that.", False, False),
    ],
)
def test_answers_are_alike(expected: str, found: str, whole: bool, alike: bool) -> None:
    difference = compare(Question(prompt="p", answer=expected), found, whole=whole)
    assert (difference is None) == alike


def test_a_probe_is_spread_over_the_answered_prompts_and_three_quarters_are_needed() -> None:
    prompts = {f"i{number:02}": f"p{number}" for number in range(33)}
    answers = dict.fromkeys(prompts, "a") | {"i00": ""}
    probe = new_probe(answers, prompts, 512)
    assert [question.prompt for question in probe.questions] == [f"p{n}" for n in range(1, 33, 4)]
    assert probe.max_new_tokens == 32
    assert new_probe({"i00": ""}, prompts, 512) is None
    difference: list[Any] = ["one"]
    assert Outcome(8, difference * 2).passed
    assert not Outcome(8, difference * 3).passed


def refused(url: str, body: Any) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(url, body)
    with caught.value:
        return caught.value.code, json.loads(caught.value.read())["error"]["message"]


def test_wrong_requests_are_refused_with_the_reason(url: str) -> None:
    message = {"role": "user", "content": "How?"}
    body: dict[str, Any] = {"model": "selfalign", "messages": [message]}
    assert refused(url, b"{")[0] == 400
    assert refused(url, {**body, "model": "x"})[0] == 404
    assert refused(url, {**body, "stream": True}) == (400, "stream: Input should be False")
    code, told = refused(url, {**body, "messages": [message, message]})
    assert code == 400
    assert "in turn" in told
    assert refused(url, TOO_LARGE)[0] == 413


def test_a_server_that_stops_answers_what_it_has_accepted() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(asked: ChatRequest) -> Reply:
        begun.set()
        assert go_on.wait(60)
        return Reply(f"{asked.messages[-1].content}!", "stop", 1, 1)

    server = ChatServer(["m"], slow, "127.0.0.1", 0)
    got: list[str] = []
    with serving(server) as address:

        def ask() -> None:
            reply = post(address, {"model": "m", "messages": [{"role": "user", "content": "a"}]})
            got.append(reply["choices"][0]["message"]["content"])

        client = threading.Thread(target=ask)
        client.start()
        assert begun.wait(60)
        server.shutdown()
        go_on.set()
    client.join(60)
    assert got == ["a!"]


def test_a_digest_names_one_promoted_model(promoted: Path, tmp_path: Path) -> None:
    current = read_pointer(LocalStore(Path(load_config(promoted).config.store)))
    assert current is not None
    where = ["--config", str(promoted), "--to", str(tmp_path / "m")]
    told = invoke("fetch", *where, "--digest", current.pointer.model.digest, "--json")
    assert json.loads(told)["digest"] == current.pointer.model.digest
    with pytest.raises(DataError, match="there is no such promoted model"):
        invoke("fetch", *where, "--digest", "0" * 64)
    with pytest.raises(ConfigurationError, match="expected 64 hexadecimal digits"):
        invoke("fetch", *where, "--digest", "../../x")


def test_vllm_gets_the_models_own_precision_and_both_names(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = read_directory(directory)[0].digest
    more = ["--max-num-seqs", "8"]
    arguments = vllm_arguments(directory, digest, host="::", port=1, shutdown_seconds=9, more=more)
    assert arguments[1:] == [
        *("-m", "vllm.entrypoints.openai.api_server", "--model", str(directory)),
        *("--served-model-name", "selfalign", digest, "--dtype", "float32"),
        *("--host", "::", "--port", "1", "--shutdown-timeout", "9", "--max-num-seqs", "8"),
    ]
    executed: list[tuple[list[str], str]] = []
    monkeypatch.setattr(command, "find_spec", lambda _name: object())

    def execute(_path: str, arguments: list[str], environment: dict[str, str]) -> None:
        executed.append((arguments, environment["VLLM_NO_USAGE_STATS"]))
        raise SystemExit(0)

    monkeypatch.setattr(command.os, "execve", execute)
    listening = ["--host", "::", "--port", "1", "--shutdown-seconds", "9"]
    invoke("start", str(directory), *listening, "--", *more)
    assert executed == [(arguments, "1")]


def test_a_directory_without_a_whole_model_is_not_served(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no complete model") as caught:
        invoke("start", str(tmp_path))
    assert "selfalign serving fetch --to" in str(caught.value.remedy)


def test_an_evaluation_in_another_precision_than_the_servers_is_told(
    promoted: Path, tmp_path: Path
) -> None:
    world = tmp_path / "world"
    shutil.copytree(promoted.parent, world)
    engine = "evaluate.engine={kind: transformers, dtype: bfloat16}"
    config = load_config(world / promoted.name, (engine, SHORT)).config
    forget_after(config, "clone")
    with capture_logs() as logged:
        run_stages(config, "evaluate")
    (warning,) = [each for each in logged if each["event"] == OTHER_PRECISION]
    assert (warning["evaluated"], warning["served"]) == ("bfloat16", "float32")
