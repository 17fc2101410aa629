"""`selfalign serving`: fetch a promoted model, serve it, and ask whether it is the right one."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import click

from selfalign.cli.options import (
    FiniteRange,
    Place,
    json_option,
    print_json,
    store_options,
    verify_option,
)
from selfalign.errors import ConfigurationError, DataError, SelfAlignError
from selfalign.serving.alias import CURRENT, DIRECTORY, SERVED_NAME
from selfalign.serving.chat_server import ChatServer
from selfalign.serving.directory import MARKER, directory_of, read_served
from selfalign.serving.export import export
from selfalign.serving.probe import check, read_model_directory
from selfalign.stages.adapters import STARTUP, Follower, prepare, read_startup
from selfalign.stages.adapters import vllm_arguments as adapter_arguments
from selfalign.stages.models import current_model
from selfalign.stages.serving import answering, engine_config, vllm_arguments
from selfalign.store.artifact import read_manifest
from selfalign.store.base import Store
from selfalign.store.manifest import Manifest
from selfalign.telemetry import log

_PATIENCE = 4  # intervals before an adapter that failed is tried again
_DIGEST = re.compile(r"[0-9a-f]{64}")
_verify = verify_option("fetch")
_directory = click.argument("directory", type=click.Path(path_type=Path, file_okay=False))


@click.group("serving")
def serving_group() -> None:
    """Serve the promoted model.

    \b
    selfalign serving fetch --to model         what `current` names, verified
    selfalign serving start model --port 8000  /v1/chat/completions
    selfalign serving probe model --url http://127.0.0.1:8000

    \b
    As adapters in one vLLM server, beside each other while one takes another's place:
    selfalign serving fetch --form adapter --to model
    selfalign serving start model --port 8000
    selfalign serving follow model --url http://127.0.0.1:8000
    """


@serving_group.command("fetch")
@click.option(
    "--to",
    "target",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory; made where it does not exist.",
)
@click.option(
    "--digest",
    envvar="SELFALIGN_MODEL_DIGEST",
    show_envvar=True,
    help="Content digest of a promoted model.  [default: the current one]",
)
@click.option(
    "--form",
    type=click.Choice(["merged", "adapter"]),
    default="merged",
    help="merged is the whole model; adapter is the base model, and beside it what fine-tuning "
    "added: for a vLLM server that takes later adapters while it runs (LoRA methods).",
)
@_verify
@store_options
@json_option
def fetch_command(
    target: Path,
    form: Literal["merged", "adapter"],
    digest: str | None,
    public_key: Path | None,
    where: Place,
    as_json: bool,
) -> None:
    """Copy a promoted model from the store into a directory, every file verified.

    Stopped, it continues where it was; run again, it copies nothing.
    """
    store = where.open().store
    model = _promoted(store, digest) if digest else current_model(store)
    if form == "adapter":
        prepare(store, model, target, public_key)
        done, _ = read_model_directory(target / CURRENT)
    else:
        done, _ = export(store, model, form, str(target), public_key=public_key)
    if as_json:
        print_json({"to": str(target), "digest": done.digest, "files": len(done.files)})
    else:
        click.echo(f"model {done.digest[:12]}: {len(done.files)} files, verified, in {target}")


@serving_group.command("start")
@_directory
@click.option("--port", type=click.IntRange(0, 65535), default=8000)
@click.option(
    "--host",
    default="127.0.0.1",
    help="Address to listen at; 0.0.0.0 is every one. There is no authentication.",
)
@click.option(
    "--shutdown-seconds",
    type=click.IntRange(min=1),
    default=60,
    help="How long after SIGTERM vLLM goes on with the requests that it has accepted. The small "
    "server answers all of them.",
)
@click.argument("vllm", nargs=-1, type=click.UNPROCESSED)
def start_command(
    directory: Path, port: int, host: str, shutdown_seconds: int, vllm: tuple[str, ...]
) -> None:
    """Serve the model in DIRECTORY over OpenAI's API until SIGTERM, as `selfalign` and under its
    digest.

    With vLLM installed this process becomes vLLM's server; arguments after -- are passed to it.
    Without it, a small server answers one request at a time: for machines without a GPU.
    A directory of `fetch --form adapter` needs vLLM.
    """
    adapters = (directory / STARTUP).is_file()
    served, _ = read_model_directory(directory / CURRENT if adapters else directory)
    if find_spec("vllm") is not None:
        log.info("server.starting", server="vllm", model=served.digest)
        given: dict[str, Any] = {
            "host": host, "port": port, "shutdown_seconds": shutdown_seconds, "more": vllm
        }  # fmt: skip
        environment = {"VLLM_NO_USAGE_STATS": "1", **os.environ}
        if adapters:
            command = adapter_arguments(directory.resolve(), **given)
            loading = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", DIRECTORY: str(directory.resolve())}
            os.execve(command[0], command, environment | loading)
        command = vllm_arguments(directory, served.digest, **given)
        os.execve(command[0], command, environment)
    if adapters:
        raise ConfigurationError(
            f"{directory}: holds adapters, and vllm is not installed here",
            remedy="install vllm, or fetch --form merged into another directory",
        )
    if vllm:
        raise click.UsageError(f"{vllm[0]} is for vLLM, which is not installed here")
    from selfalign.engines.open import open_engine

    with open_engine(engine_config(directory), directory) as engine:
        answer = answering(directory, engine)
        with ChatServer([SERVED_NAME, served.digest], answer, host, port) as server:
            log.info("server.started", port=server.server_port, model=served.digest)
            with _until_stopped(server):
                server.serve_forever()
    log.info("server.stopped")


@serving_group.command("probe")
@_directory
@click.option("--url", required=True, metavar="URL", help="Of the server, without /v1.")
@json_option
def probe_command(directory: Path, url: str, as_json: bool) -> None:
    """Ask the server at URL what `evaluate` asked the model in DIRECTORY, and compare.

    \b
    0   it serves this model, and three quarters of the answers are alike
    3   it serves another one, or answers otherwise; says what differed
    75  it cannot be reached (yet)
    """
    served, probe = read_model_directory(directory)
    outcome = check(url.rstrip("/"), served.digest, probe)
    alike = outcome.asked - len(outcome.differences)
    told = f"{url}: model {served.digest[:12]}: {alike} of {outcome.asked} answers as evaluated"
    if not outcome.passed:
        raise DataError(
            f"{told}; " + "; ".join(map(str, outcome.differences[:2])),
            remedy="do not serve it; look at the server's version, precision and chat template",
        )
    if as_json:
        print_json({"url": url, "digest": served.digest, "asked": outcome.asked, "alike": alike})
    elif probe is None:
        click.echo(f"{told} (the model has no probe.json: its name is all that was checked)")
    else:
        click.echo(told)


@serving_group.command("follow")
@_directory
@click.option("--url", required=True, metavar="URL", help="Of the server, without /v1.")
@click.option(
    "--interval-seconds",
    type=FiniteRange(min=0.1),
    default=15.0,
    help="Between two looks at current.json; four times that after a failure.",
)
@_verify
@store_options
def follow_command(
    directory: Path, url: str, interval_seconds: float, public_key: Path | None, where: Place
) -> None:
    """Keep the server at URL, started from DIRECTORY (`fetch --form adapter`), at the promoted
    model, until SIGTERM.

    Each adapter is fetched, verified, loaded under its digest and asked its probe; then `selfalign`
    moves to it, and the one before is unloaded when its requests are answered. One that fails
    leaves the one before; GET URL/selfalign/status tells why.
    """
    read_startup(directory)  # a directory of another kind is refused at once
    store = where.open().store
    follower = Follower(store, directory.resolve(), url.rstrip("/"), public_key)
    while True:
        pause = interval_seconds
        try:
            pause *= 1 if follower.step().reason == "Served" else _PATIENCE
        except SelfAlignError as error:
            log.warning("follow.failed", error=error.message, remedy=error.remedy)
        time.sleep(pause)


def _promoted(store: Store, digest: str) -> Manifest:
    """The manifest of a model that has a complete directory."""
    if not _DIGEST.fullmatch(digest):
        raise ConfigurationError(
            f"digest {digest[:80]!r}: expected 64 hexadecimal digits",
            remedy="give model.digest of current.json",
        )
    served = read_served(store, digest)
    manifest = None if served is None else read_manifest(store, served.artifact, served.key)
    if manifest is None or manifest.digest != digest:
        raise DataError(
            f"{store.url}/{directory_of(digest)}/{MARKER}: there is no such promoted model",
            remedy="give a digest that `selfalign status` or current.json names, or restore it",
        )
    return manifest


@contextlib.contextmanager
def _until_stopped(server: ChatServer) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the server after the requests that it has accepted."""

    def stop(_number: int, _frame: object) -> None:
        # shutdown waits for the loop that this very thread runs
        threading.Thread(target=server.shutdown).start()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
