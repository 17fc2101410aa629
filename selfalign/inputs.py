"""Inputs that pass through the store: seeds, evaluation files, a base model, content-addressed.

`store:inputs/<kind>/<digest>` may stand wherever a configuration takes a path, so that workers on
other machines find what the configuration was written with. Layout:

    inputs/<kind>/<digest>/files/...        the file, or the directory's files
    inputs/<kind>/<digest>/manifest.json    written last, if absent
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from selfalign.config import BaseModelConfig, RunConfig, SeedsConfig
from selfalign.errors import ConfigurationError, DataError
from selfalign.identity import (
    DATA_FIELDS,
    data_of,
    is_default,
    names_sha256,
    replaced,
    visible_files,
)
from selfalign.records import digest
from selfalign.seeds import SEED_FILES
from selfalign.store.artifact import copy_files
from selfalign.store.base import NotFound, PreconditionFailed, Store
from selfalign.store.claims import claim
from selfalign.store.documents import StoredModel, StoredName, read_document
from selfalign.store.files import file_sha256
from selfalign.store.keys import check_key
from selfalign.store.manifest import FileEntry
from selfalign.store.open import open_store

SCHEME = "store:"


class InputManifest(StoredModel):
    """What an input is made of. `single` is the name of the file where it is one, not a folder."""

    kind: StoredName
    digest: StoredName
    single: StoredName | None
    files: list[FileEntry]

    def expected_digest(self) -> str | None:
        """The digest that follows from the files; None where there is no such input."""
        if self.single is None:
            return names_sha256((f.name.removeprefix("files/"), f.sha256) for f in self.files)
        names = [entry.name for entry in self.files]
        return self.files[0].sha256 if names == [f"files/{self.single}"] else None


def cache_directory() -> Path:
    """Where verified copies of models and inputs are kept.

    `$SELFALIGN_CACHE_DIR`, or `selfalign` in the user's cache directory.
    """
    configured = os.environ.get("SELFALIGN_CACHE_DIR")
    if configured:
        return Path(configured)
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".cache") / "selfalign"
    except RuntimeError:
        raise ConfigurationError(
            "there is no directory for copies of models: this user has no home directory",
            remedy="set SELFALIGN_CACHE_DIR to a directory that this user may write",
        ) from None


def push(store: Store, kind: str, path: Path, *, only: Sequence[str] | None = None) -> str:
    """Upload a file or directory unless the store has it; return its `store:` name.

    Args:
        only: of a directory, the files that count, by their relative names; None is all.
    """
    if not path.exists():
        raise ConfigurationError(f"{path}: does not exist", remedy="correct the path")
    root = path.parent if path.is_file() else path
    found = [path] if path.is_file() else visible_files(path)
    files = {str(file.relative_to(root)): file for file in found}
    if only is not None:
        files = {name: file for name, file in files.items() if name in only}
    for name in files:
        check_key(f"files/{name}")  # all of them before the first upload
    shas = {name: file_sha256(file) for name, file in files.items()}
    digest = shas[path.name] if path.is_file() else names_sha256(shas.items())
    prefix = f"inputs/{kind}/{digest}/"
    claim(store, prefix.rstrip("/"), {})  # so that gc keeps it until a run names it
    if store.exists(prefix + "manifest.json"):
        return SCHEME + prefix.rstrip("/")
    entries = []
    for name, file in files.items():
        store.upload(file, f"{prefix}files/{name}")
        size = file.stat().st_size
        entries.append(FileEntry(name=f"files/{name}", sha256=shas[name], bytes=size))
    manifest = InputManifest(
        kind=kind, digest=digest, single=path.name if path.is_file() else None, files=entries
    )
    with contextlib.suppress(PreconditionFailed):
        store.write(prefix + "manifest.json", manifest.to_bytes(), if_absent=True)
    return SCHEME + prefix.rstrip("/")


def fetch(store: Store, name: str, without: tuple[str, ...] = ()) -> Path:
    """A verified local copy of the input called `name`; kept for the next caller.

    Names that end as `without` says are left in the store.
    """
    manifest = read_input(store, name)
    directory = cache_directory() / "inputs" / manifest.kind / manifest.digest[:32]
    files = [entry for entry in manifest.files if not entry.name.endswith(without)]
    copy_files(store, _prefix(name), files, "files/", directory)
    return directory / manifest.single if manifest.single else directory


def read_input(store: Store, name: str) -> InputManifest:
    """The manifest of the input called `name`.

    Raises DataError when the store holds none, or one whose content has another digest.
    """
    prefix = _prefix(name)
    manifest = read_document(store, prefix + "manifest.json", InputManifest)
    if manifest is None:
        raise DataError(
            f"{name}: {store.url} holds no such input",
            remedy="upload it with `selfalign inputs push --config FILE`",
        )
    found = manifest.expected_digest()
    if prefix != f"inputs/{manifest.kind}/{found}/" or found != manifest.digest:
        raise DataError(
            f"{store.url}/{prefix}manifest.json: its files are not those of this name (their "
            f"digest is {found})",
            remedy=f"delete {prefix} and upload it again: `selfalign inputs push --config FILE`",
        )
    return manifest


def _prefix(name: str) -> str:
    return name.removeprefix(SCHEME).rstrip("/") + "/"


def is_stored(path: str | Path) -> bool:
    """Whether a configuration's path names an input in the store."""
    return str(path).startswith(SCHEME)


def unstored(config: RunConfig) -> dict[str, str]:
    """What the configuration names and pods cannot reach, by its key: neither a `store:` name nor a
    model with its revision, which stages mount or know from the Hub."""
    named = {"seeds.directory": str(config.seeds.directory)}
    for field in DATA_FIELDS:
        path = data_of(config.evaluate, field)
        if path is not None and not is_default(field, path):
            named[f"evaluate.{field}"] = str(path)
    for name, model in _models(config).items():
        if model.revision is None:
            named[f"{name}.path"] = model.path
    return {name: path for name, path in named.items() if not is_stored(path)}


def _models(config: RunConfig) -> dict[str, BaseModelConfig]:
    judge = config.evaluate.judge
    judging = {} if judge is None else {"evaluate.judge.model": judge.model}
    return {"base_model": config.base_model, **judging}


def is_remote(path: Path) -> bool:
    """Whether a configuration's path is an `s3://` URL; a Path holds it with one slash."""
    return str(path).startswith("s3:/")


def fetch_url(path: Path) -> Path:
    """A local copy of one file of a bucket, read anew each time since it may have changed.

    Raises ConfigurationError where there is no such file.
    """
    parent, _, name = str(path).removeprefix("s3:").strip("/").rpartition("/")
    url = f"s3://{parent}"
    target = cache_directory() / "downloads" / digest(f"{url}/{name}")[:32] / name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        open_store(url).download(name, target)
    except NotFound as error:
        raise ConfigurationError(
            f"{url}/{name}: no such object", remedy="give the URL of one file, not of a folder"
        ) from error
    return target


def revision_of(name: str) -> str:
    """The identity of a stored base model: the same as that of the directory it came from."""
    return f"sha256:{name.rstrip('/').rpartition('/')[2]}"


def push_inputs(config: RunConfig, store: Store) -> RunConfig:
    """Upload everything local that the configuration names; return it with `store:` names."""
    models = {"base_model.path": "base_model", "evaluate.judge.model.path": "judge"}
    names: dict[str, str | Path] = {}
    for name, text in unstored(config).items():
        path = Path(text)
        if name in models:
            names[name] = push(store, models[name], path)
        elif name == "seeds.directory":
            names[name] = Path(push(store, "seeds", path, only=SEED_FILES))
        else:
            local = fetch_url(path) if is_remote(path) else path
            names[name] = Path(push(store, name.removeprefix("evaluate."), local))
    return replaced(config, names)


def local_seeds(seeds: SeedsConfig, store: Store) -> SeedsConfig:
    """The seeds with a local copy of stored ones; nothing else is read."""
    if not is_stored(seeds.directory):
        return seeds
    return seeds.model_copy(update={"directory": fetch(store, str(seeds.directory))})


def localise(config: RunConfig, store: Store) -> RunConfig:
    """The configuration with local copies of stored seeds and evaluation files.

    Models stay where they are, since many stages never open them; their revisions are set.
    """
    local: dict[str, str | Path] = {
        f"evaluate.{field}": fetch(store, str(path)) if is_stored(path) else fetch_url(path)
        for field in DATA_FIELDS
        if (path := data_of(config.evaluate, field)) is not None
        and (is_stored(path) or is_remote(path))
    }
    local["seeds.directory"] = local_seeds(config.seeds, store).directory
    for name, model in _models(config).items():
        if is_stored(model.path) and model.revision is None:
            local[f"{name}.revision"] = revision_of(model.path)
    return replaced(config, local)
