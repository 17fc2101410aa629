"""The openai engine against a real server through a proxy that fails where a test says.

tests/engines/served.py stands for the server. vLLM's own is held to the contract suite, and killed
in tests/stages/test_engine_death.py, both without a proxy.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from email.utils import formatdate
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from selfalign.config import EngineConfig
from selfalign.engines.base import Completion, Engine, Quarantined, ScoreRequest
from selfalign.engines.open import open_engine
from selfalign.errors import ConfigurationError, EngineError
from tests.engines.conftest import MAX_LENGTH, Ask
from tests.engines.served import ModelServer, serving
from tests.engines.server_process import vllm_serving
from tests.store.proxy import Fault, Proxy, running_proxy

KEY = "sk-not-to-be-seen-0123456789"


@pytest.fixture(scope="module")
def upstream(llama: Path) -> Iterator[ModelServer]:
    with serving(llama, MAX_LENGTH) as server:
        yield server


@pytest.fixture
def server(upstream: ModelServer) -> Iterator[ModelServer]:
    """As it was made, whatever the test before changed."""
    rows, upstream.rows = upstream.rows, [dict(row) for row in upstream.rows]
    yield upstream
    upstream.rows, upstream.key, upstream.echo, upstream.tokenize = rows, None, True, True
    upstream.bodies.clear()


@pytest.fixture
def proxy(server: ModelServer) -> Iterator[Proxy]:
    with running_proxy(server.url) as found:
        yield found


@pytest.fixture
def connect(llama: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Opens engines behind the proxy; they are closed with the test."""
    monkeypatch.setattr("selfalign.engines.openai.client.FIRST_WAIT_SECONDS", 0.05)
    opened: list[Engine] = []

    def connected(model: Path | str = llama, **changes: Any) -> Engine:
        names = ("key_variable", "concurrency", "timeout_seconds", "give_up_after_seconds")
        settings = {name: changes.pop(name) for name in names if name in changes}
        config = {
            "kind": "openai",
            "server": {"url": f"{proxy.url}/v1", "give_up_after_seconds": 3, **settings},
            **changes,
        }
        opened.append(open_engine(EngineConfig.model_validate(config), model))
        return opened[-1]

    yield connected
    for engine in opened:
        engine.__exit__()


def completions(engine: Engine, requests: list[Any]) -> dict[str, Completion]:
    return {each.id: each for each in engine.generate(requests) if isinstance(each, Completion)}


PASSING = {
    "500": Fault("POST", "answer", status=500),
    "502": Fault("POST", "answer", status=502),
    "429 with seconds": Fault("POST", "answer", status=429, headers={"Retry-After": "1"}),
    "503 with a date": Fault("POST", "answer", status=503),
    "hang up": Fault("POST", "hang_up"),
    "lost answer": Fault("POST", "lose"),
    "cut in the body": Fault("POST", "cut"),
    "stall": Fault("POST", "stall"),
}


def failing_twice(name: str) -> Fault:
    fault = PASSING[name]
    fault.times = 2
    if name == "503 with a date":
        fault.headers["Retry-After"] = formatdate(time.time() + 2, usegmt=True)
    return fault


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_tried_again_and_changes_nothing(
    name: str, connect: Any, proxy: Proxy, ask: Ask
) -> None:
    engine = connect(timeout_seconds=1.0, give_up_after_seconds=8)
    requests = [ask(n, seed=n, max_new_tokens=3) for n in range(6)]
    undisturbed = completions(engine, requests)
    fault = failing_twice(name)
    proxy.faults = [fault]
    began = time.monotonic()
    assert completions(engine, requests) == undisturbed
    assert fault.times == 0
    assert len(undisturbed) == 6
    if name == "429 with seconds":
        assert time.monotonic() - began >= 1.0


@pytest.mark.filterwarnings("default")  # vllm and what it imports warn of their own deprecations
@pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed here")
def test_what_passes_changes_nothing_before_vllms_own_server(
    llama: Path, tmp_path: Path, ask: Ask
) -> None:
    requests = [ask(n, seed=n, max_new_tokens=6) for n in range(8)]
    with ExitStack() as stack:
        url, _ = stack.enter_context(vllm_serving(llama, MAX_LENGTH, tmp_path / "log"))
        proxy = stack.enter_context(running_proxy(url.removesuffix("/v1")))
        server = {"url": f"{proxy.url}/v1", "timeout_seconds": 5.0, "give_up_after_seconds": 20}
        config = EngineConfig.model_validate({"kind": "openai", "server": server})
        engine = stack.enter_context(open_engine(config, llama))
        undisturbed = completions(engine, requests)
        assert len(undisturbed) == 8
        for name in PASSING:
            proxy.faults = [failing_twice(name)]
            assert completions(engine, requests) == undisturbed, name
            assert proxy.faults[0].times == 0, name


def test_a_request_that_only_this_server_refuses_is_set_aside(
    connect: Any, proxy: Proxy, ask: Ask
) -> None:
    engine = connect()
    proxy.faults = [Fault("POST", "answer", 10, 422, message="not this one", holding=b'"seed":77')]
    answers = {each.id: each for each in engine.generate([ask("x", seed=77), ask("y", seed=1)])}
    assert isinstance(answers["y"], Completion)
    bad = answers["x"]
    assert isinstance(bad, Quarantined)
    assert bad.reason == "refused"
    assert "422" in bad.explanation
    assert "not this one" in bad.explanation


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault("POST", "answer", 99, 500, holding=b'"seed":77'), "aborted"),
        (Fault("POST", "hang_up", 99, holding=b'"seed":77'), "aborted"),
        (Fault("POST", "stall", 99, holding=b'"seed":77'), "never_ending"),
    ],
    ids=["500", "hang up", "stall"],
)
def test_a_request_that_never_succeeds_on_a_healthy_server_is_set_aside(
    fault: Fault, reason: str, connect: Any, proxy: Proxy, ask: Ask
) -> None:
    engine = connect(timeout_seconds=0.5, give_up_after_seconds=1.0)
    proxy.faults = [fault]
    answers = {each.id: each for each in engine.generate([ask("x", seed=77), ask("y", seed=1)])}
    assert isinstance(answers["y"], Completion)
    bad = answers["x"]
    assert isinstance(bad, Quarantined)
    assert bad.reason == reason
    assert "the server answers others" in bad.explanation


@pytest.mark.parametrize(
    "fault",
    [
        Fault("*", "answer", 999, 500),
        Fault("*", "answer", 999, 503),
        Fault("*", "answer", 999, 429, headers={"Retry-After": "60"}),
        Fault("*", "hang_up", 999),
        Fault("*", "stall", 999),
    ],
    ids=["500", "503", "429", "hang up", "stall"],
)
def test_a_server_that_answers_nobody_is_a_temporary_error(
    fault: Fault, connect: Any, proxy: Proxy, ask: Ask
) -> None:
    engine = connect(timeout_seconds=0.3, give_up_after_seconds=0.7)
    proxy.faults = [fault]
    began = time.monotonic()
    with pytest.raises(EngineError) as caught:
        list(engine.generate([ask("x"), ask("y")]))
    assert caught.value.exit_code == 70
    assert proxy.url in caught.value.message
    assert caught.value.remedy is not None
    assert time.monotonic() - began < 30


def test_overload_never_sets_a_row_aside(connect: Any, proxy: Proxy, ask: Ask) -> None:
    engine = connect(give_up_after_seconds=1)
    proxy.faults = [Fault("POST", "answer", 99, 429, holding=b'"seed":77')]
    with pytest.raises(EngineError, match="429"):
        list(engine.generate([ask("x", seed=77)]))


def test_the_key_goes_to_the_server_and_nowhere_else(
    connect: Any, server: ModelServer, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    server.key = KEY
    monkeypatch.setenv("MY_KEY", KEY)
    engine = connect(key_variable="MY_KEY")
    assert completions(engine, [ask("x")])
    assert server.headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(engine.info)
    server.key = "another"
    with pytest.raises(ConfigurationError) as caught:
        list(engine.generate([ask("x")]))
    assert "wrong key: Bearer (key)" in str(caught.value)
    assert KEY not in str(caught.value)
    assert "MY_KEY" in str(caught.value.remedy)


@pytest.mark.parametrize("value", [None, "", "  ", "caf\u00e9", "two\nlines"])
def test_a_key_that_is_not_there_or_cannot_be_one_is_named_by_its_variable(
    value: str | None, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(ConfigurationError, match="MY_KEY"):
        connect(key_variable="MY_KEY")


@pytest.mark.parametrize(
    "url",
    ["ftp://host/v1", "host:8000", "http://", "http://me:secret@host/v1", "http://host/v1?key=x"],
)
def test_an_address_without_host_or_with_secrets_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        EngineConfig.model_validate({"kind": "openai", "server": {"url": url}})


def test_server_and_kind_belong_together() -> None:
    for wrong in (
        {"kind": "openai"},
        {"kind": "fake", "server": {"url": "http://host/v1"}},
        {"kind": "fake", "served_model": "x"},
    ):
        with pytest.raises(ValueError, match="engine"):
            EngineConfig.model_validate(wrong)


def test_another_model_behind_the_address_is_refused(
    connect: Any, server: ModelServer, llama: Path
) -> None:
    server.rows[0] |= {"id": "other", "root": "/elsewhere/other"}
    with pytest.raises(ConfigurationError, match=r"serves other \(from /elsewhere/other\)") as e:
        connect()
    assert str(llama) in e.value.message
    assert connect(served_model="other").info.details["root"] == "/elsewhere/other"
    # the same directory elsewhere on the server's machine
    server.rows[0] |= {"id": "x", "root": f"/models/{llama.name}"}
    assert connect().info.details["served_model"] == "x"


def test_a_hub_model_of_another_name_is_refused_under_an_alias_too(
    server: ModelServer, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "selfalign.engines.model_directory._from_hub", lambda *args, **kwargs: llama
    )
    server.rows[0] |= {"id": "alias", "root": "maker/other-model"}
    config = EngineConfig.model_validate(
        {"kind": "openai", "served_model": "alias", "server": {"url": server.url}}
    )
    with pytest.raises(ConfigurationError, match=r"maker/other-model.*maker/model"):
        open_engine(config, "maker/model", revision="0" * 40)
    server.rows[0]["root"] = "maker/model"
    open_engine(config, "maker/model", revision="0" * 40).__exit__()


def test_another_tokenizer_behind_the_name_is_refused(
    connect: Any, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfalign.engines.openai.server._PROBE", "\u2028 \ufffd")
    connect()
    changed = "selfalign.engines.openai.engine.load_tokenizer"

    def lower_case(directory: Path) -> Any:
        from tokenizers import normalizers
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(directory)
        tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u2028", "x")
        return tokenizer

    monkeypatch.setattr(changed, lower_case)
    with pytest.raises(ConfigurationError, match="it is another model"):
        connect()
    for nothing_known in (False, "content"):
        server.tokenize = nothing_known
        connect()


def test_the_context_is_the_servers_unless_a_shorter_one_is_asked(
    connect: Any, server: ModelServer
) -> None:
    assert connect().max_length == MAX_LENGTH
    assert connect(max_length=100).max_length == 100
    with pytest.raises(ConfigurationError, match=r"max_length is 300.*240 tokens"):
        connect(max_length=300)
    del server.rows[0]["max_model_len"]
    with pytest.raises(ConfigurationError, match="does not say how many tokens"):
        connect()
    assert connect(max_length=100).max_length == 100


def test_a_server_that_cannot_score_says_so_before_anything_is_scored(
    connect: Any, server: ModelServer, ask: Ask
) -> None:
    server.echo = False
    engine = connect()
    assert completions(engine, [ask("x")])
    drawn: list[int] = []
    requests = (drawn.append(1) or ScoreRequest("x", "a", "b") for _ in range(1))  # type: ignore[func-returns-value]
    with pytest.raises(ConfigurationError, match=r"cannot score.*echo is not supported"):
        list(engine.score(requests))
    assert not drawn


def test_a_request_leaves_nothing_to_the_servers_defaults(
    connect: Any, server: ModelServer, ask: Ask
) -> None:
    engine = connect(options={"priority": 3})
    server.bodies.clear()
    completions(engine, [ask("x", seed=2**62 + 1, top_p=0.9, stop=("\nUser:",))])
    (body,) = server.bodies
    assert body | {"prompt": []} == {
        "model": server.rows[0]["id"],
        "prompt": [],
        "temperature": 1.0,
        "top_p": 0.9,
        "max_tokens": 12,
        "stop": ["\nUser:"],
        "seed": 2**62 + 1,
        "repetition_penalty": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "top_k": -1,
        "min_p": 0.0,
        "priority": 3,
    }


@pytest.mark.parametrize("field", ["temperature", "stream", "model", "prompt", "n"])
def test_fields_that_the_sampling_decides_are_no_options(field: str, connect: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"engine\.options\.{field}"):
        connect(options={field: 1})


def test_a_penalty_that_the_server_may_not_know_is_refused(
    connect: Any, server: ModelServer, ask: Ask
) -> None:
    server.rows[0]["owned_by"] = "somebody"
    engine = connect()
    server.bodies.clear()
    assert completions(engine, [ask("x")])
    assert not {"top_k", "repetition_penalty"} & server.bodies[0].keys()
    with pytest.raises(ConfigurationError, match=r"repetition_penalty is 1.1.*'somebody'"):
        list(engine.generate([ask("x", repetition_penalty=1.1)]))


def test_no_more_requests_fly_than_allowed(connect: Any, ask: Ask) -> None:
    engine = connect(concurrency=3)
    drawn = 0

    def endless() -> Iterator[Any]:
        nonlocal drawn
        while True:
            drawn += 1
            yield ask(drawn, max_new_tokens=1)

    stream = iter(engine.generate(endless()))
    for _ in range(5):
        next(stream)
    assert drawn <= 5 + 3 + 16
    stream.close()  # type: ignore[attr-defined]
    assert completions(engine, [ask("after")])


def test_closing_while_a_request_stalls_takes_no_time(connect: Any, proxy: Proxy, ask: Ask) -> None:
    engine = connect()
    proxy.faults = [Fault("POST", "stall", 9, holding=b'"seed":77')]
    stream = iter(engine.generate([ask("x", seed=1), ask("y", seed=77)]))
    assert next(stream).id == "x"
    began = time.monotonic()
    stream.close()  # type: ignore[attr-defined]
    engine.__exit__()
    assert time.monotonic() - began < 10
