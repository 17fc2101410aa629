"""Adapters in one vLLM server (form adapter): fetched, started with, followed.

Reads the store; writes the directory that `serving.alias` describes. The first adapter comes with
its base model before the server starts. The server takes every later one while it runs, as long
as `Startup` is the same: loaded under its digest, asked its probe, and only then `current` moves.
A name is never loaded twice for other weights, so no prefix in vLLM's cache is another model's.
"""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selfalign.errors import ConfigurationError, DataError, SelfAlignError
from selfalign.identity import identity_key
from selfalign.inputs import SCHEME, read_input
from selfalign.serving import alias
from selfalign.serving.defaults import GENERATION_CONFIG
from selfalign.serving.directory import directory_of, read_served, served_files
from selfalign.serving.export import export
from selfalign.serving.probe import (
    PROBE_NAME,
    call,
    check,
    read_model_directory,
    request,
    served_names,
)
from selfalign.serving.template import TEMPLATE_NAME
from selfalign.stages.serving import model_dtype, read_json
from selfalign.store.artifact import copy_files
from selfalign.store.base import Store
from selfalign.store.documents import StoredModel, parse_document
from selfalign.store.files import file_sha256, write_whole
from selfalign.store.manifest import Manifest
from selfalign.store.pointer import PromotedModel, promoted_manifest, read_pointer
from selfalign.telemetry import log

STARTUP = "startup.json"
_BASE_NAME = "base"  # what vLLM calls the bare base model; nobody may ask it
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes (vllm/config/lora.py)
_ADAPTERS_AT_ONCE = 2  # the one that is served, and the one before or after it


class Startup(StoredModel):
    """What a server is given when it starts, and keeps: adapters that need another are not for it.

    Attributes:
        base: the base model in the store, as `sha256:<digest>`.
        template, defaults: SHA-256 of chat_template.jinja and generation_config.json.
        max_rank: the largest rank of an adapter.
    """

    base: str
    template: str
    defaults: str
    max_rank: int

    def differences(self, other: Startup) -> list[str]:
        """The names of the fields in which the two differ."""
        mine, its = self.model_dump(), other.model_dump()
        return [name for name in mine if mine[name] != its[name]]


class Status(StoredModel):
    """What following found last.

    Attributes:
        wanted: digest of the model that `current.json` names.
        reason: Served; Failed: it could not be fetched, loaded or probed, what was served before
            goes on; OtherServer: it needs a server that was started otherwise.
        message: cause and remedy; empty where it is served.
    """

    wanted: str
    reason: Literal["Served", "Failed", "OtherServer"]
    message: str


def prepare(store: Store, model: Manifest, directory: Path, public_key: Path | None) -> Startup:
    """Fetch an adapter and its base model into the directory of a server that is to start.

    Raises as `fetch_adapter`, and DataError for a base model that the store does not hold.
    """
    startup = fetch_adapter(store, model, directory, public_key)
    base = read_input(store, f"{SCHEME}{_base_prefix(startup.base)}")
    copy_files(store, _base_prefix(startup.base), base.files, "files/", directory / _BASE_NAME)
    for name in (TEMPLATE_NAME, GENERATION_CONFIG):  # where vLLM looks for them
        shutil.copyfile(
            directory / alias.ADAPTERS / model.digest / name, directory / _BASE_NAME / name
        )
    (directory / alias.STATUS).unlink(missing_ok=True)
    if not (directory / alias.TOKEN).is_file():  # a server that runs has read it
        write_whole(directory / alias.TOKEN, secrets.token_urlsafe(32).encode(), mode=0o600)
    write_whole(directory / STARTUP, startup.to_bytes())
    _point(directory, model.digest)
    return startup


def fetch_adapter(
    store: Store, model: Manifest, directory: Path, public_key: Path | None
) -> Startup:
    """Copy a promoted model's adapter, template, defaults and probe into `adapters/<digest>`.

    Returns what a server must have been started with to take it.

    Raises ConfigurationError for a model without an adapter or with one that no server can take,
    DataError for one that is not promoted, not signed by the key, missing or damaged.
    """
    served = read_served(store, model.digest)
    where = f"{model.artifact} {model.key}"
    if served is None:
        raise DataError(f"{where}: is not promoted", remedy="promote it, or serve another")
    if not served_files(model, "adapter"):
        raise ConfigurationError(
            f"{where}: has no adapter; it was trained by {model.details.get('method')}",
            remedy="set form: merged in charts/serving, or train with engrave.method and "
            "clone.method lora or qlora",
        )
    target = directory / alias.ADAPTERS / model.digest
    beside = [f for f in served.files if f.name in (TEMPLATE_NAME, GENERATION_CONFIG, PROBE_NAME)]
    copy_files(store, f"{directory_of(model.digest)}/", beside, "", target)
    export(store, model, "adapter", str(target), public_key=public_key)
    return Startup(
        base=_base_of(model),
        template=file_sha256(target / TEMPLATE_NAME),
        defaults=file_sha256(target / GENERATION_CONFIG),
        max_rank=_max_rank(target / "adapter_config.json"),
    )


def vllm_arguments(
    directory: Path, *, host: str, port: int, shutdown_seconds: int, more: Sequence[str] = ()
) -> list[str]:
    """The command of vLLM's server for a directory that `prepare` made; see serving.vllm_arguments.

    The environment must name the directory (`alias.DIRECTORY`).
    """
    startup = read_startup(directory)
    digest, base = alias.current_digest(directory), directory / _BASE_NAME
    adapter = directory / alias.ADAPTERS / digest
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(base), "--served-model-name", _BASE_NAME, "--dtype", model_dtype(base)),
        *("--chat-template", str(base / TEMPLATE_NAME)),
        *("--enable-lora", "--max-lora-rank", str(startup.max_rank)),
        *("--max-loras", str(_ADAPTERS_AT_ONCE), "--max-cpu-loras", str(_ADAPTERS_AT_ONCE)),
        *("--lora-modules", f"{digest}={adapter}"),
        *("--middleware", f"{alias.__name__}.{alias.Alias.__name__}"),
        *("--host", host, "--port", str(port), "--shutdown-timeout", str(shutdown_seconds), *more),
    ]


def read_startup(directory: Path) -> Startup:
    """What the server in this directory is started with. Raises DataError."""
    path = directory / STARTUP
    try:
        return parse_document(str(path), path.read_bytes(), Startup)
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}, so {directory} was not made for adapters",
            remedy=f"selfalign serving fetch --form adapter --to {directory}",
        ) from error


@dataclass(frozen=True, slots=True)
class Follower:
    """Keeps a running server at the model that `current.json` names.

    Level-triggered: each step compares the pointer, the link and what the server lists, so either
    process may be killed at any moment.

    Attributes:
        directory: made by `prepare`.
        url: of the server, without /v1.
    """

    store: Store
    directory: Path
    url: str
    public_key: Path | None

    def step(self) -> Status:
        """Take the current model where it is another one; unload what nobody asks any more.

        Raises SelfAlignError where the server does not listen yet or the pointer cannot be read.
        """
        loaded = served_names(self.url)
        pointer, here = read_pointer(self.store), alias.current_digest(self.directory)
        if here not in loaded:
            self._load(here)
        wanted = here if pointer is None else pointer.pointer.model.digest
        status = Status(wanted=wanted, reason="Served", message="")
        if pointer is not None and wanted != here:
            status = self._take(pointer.pointer.model, wanted in loaded)
        write_whole(self.directory / alias.STATUS, status.to_bytes())
        self._drop(wanted)
        return status

    def _take(self, model: PromotedModel, is_loaded: bool) -> Status:
        digest, short = model.digest, f"model {model.digest[:12]}"
        try:
            manifest = promoted_manifest(self.store, model)
            needed = fetch_adapter(self.store, manifest, self.directory, self.public_key)
            if others := read_startup(self.directory).differences(needed):
                told = f"{short}: other {', '.join(others)} than this server was started with"
                return Status(wanted=digest, reason="OtherServer", message=told)
            if not is_loaded:
                self._load(digest)
            _, probe = read_model_directory(self._adapter(digest))
            outcome = check(self.url, digest, probe)
        except SelfAlignError as error:
            log.warning("adapter.failed", model=digest, error=error.message, remedy=error.remedy)
            return Status(wanted=digest, reason="Failed", message=f"{short}: {error.message}")
        alike = outcome.asked - len(outcome.differences)
        told = f"{short}: {alike} of {outcome.asked} answers as evaluated"
        if not outcome.passed:
            differences = [str(difference) for difference in outcome.differences[:2]]
            log.warning("adapter.failed", model=digest, error=told, differences=differences)
            return Status(wanted=digest, reason="Failed", message=told)
        _point(self.directory, digest)
        log.info("adapter.served", model=digest, alike=alike, asked=outcome.asked)
        return Status(wanted=digest, reason="Served", message="")

    def _drop(self, wanted: str) -> None:
        """Unload every other adapter once its requests are answered, and delete what is unloaded.

        One that failed is unloaded too; its files stay as long as it is wanted.
        """
        here = alias.current_digest(self.directory)
        running = call(f"{self.url}{alias.STATUS_PATH}").get("running") or {}
        for adapter in (self.directory / alias.ADAPTERS).iterdir():
            digest = adapter.name
            if digest == here or digest in running:
                continue
            if digest in served_names(self.url):
                self._post(alias.UNLOAD_PATH, {"lora_name": digest})
                log.info("adapter.unloaded", model=digest)
            if digest != wanted:
                shutil.rmtree(adapter)

    def _load(self, digest: str) -> None:
        path = str(self._adapter(digest))
        self._post(alias.LOAD_PATH, {"lora_name": digest, "lora_path": path})

    def _post(self, path: str, body: dict[str, object]) -> None:
        token = (self.directory / alias.TOKEN).read_text()
        request(f"{self.url}{path}", body, {alias.TOKEN_HEADER: token})

    def _adapter(self, digest: str) -> Path:
        return self.directory / alias.ADAPTERS / digest


def _base_of(model: Manifest) -> str:
    """The base model's digest; the model's key, which a signature holds for, depends on it."""
    where = f"artifacts/{model.artifact}/{model.key}/manifest.json"
    if identity_key(model.identity) != model.key:
        raise DataError(
            f"{where}: its identity is not that of its key",
            remedy="the manifest was edited: do not serve it; promote another model",
        )
    base = str(model.identity.get("base_model"))
    facts = model.details.get("base_model") or {}
    if not base.startswith("sha256:") or (isinstance(facts, dict) and facts.get("multimodal")):
        why = "takes more than text" if base.startswith("sha256:") else "is not in the store"
        raise ConfigurationError(
            f"{where}: its base model {base[:80]} {why}, so its adapter cannot be served",
            remedy="set form: merged in charts/serving, or train on a text model in a directory, "
            "which `selfalign inputs push` copies to the store",
        )
    return base


def _base_prefix(base: str) -> str:
    return f"inputs/base_model/{base.removeprefix('sha256:')}/"


def _max_rank(path: Path) -> int:
    """The smallest rank that vLLM takes and the adapter's is within. Raises ConfigurationError."""
    rank = read_json(path).get("r")
    fitting = [each for each in _RANKS if isinstance(rank, int) and each >= rank]
    if not fitting:
        raise ConfigurationError(
            f"{path}: the adapter's rank is {rank}, and vLLM takes at most {_RANKS[-1]}",
            remedy="set form: merged in charts/serving, or train with a smaller lora.r",
        )
    return fitting[0]


def _point(directory: Path, digest: str) -> None:
    """Move the alias, in one step: `current` names the old adapter or the new one, always."""
    link = directory / f".{alias.CURRENT}"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(alias.ADAPTERS) / digest)
    link.replace(directory / alias.CURRENT)
