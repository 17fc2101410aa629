"""A promoted model under its files' real names: `models/<digest>/`, for servers to load.

    models/<digest>/config.json, model*.safetensors, tokenizer.json, chat_template.jinja, ...
    models/<digest>/selfalign.json     names every file with its SHA-256; written last, once

`<digest>` is the content digest of the model artifact. The files are copied inside the store, so
a promotion downloads nothing; a copy that was begun is continued. A directory without
`selfalign.json` is not complete and must not be served.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

from selfalign.errors import DataError
from selfalign.serving.bom import BOM_NAME
from selfalign.serving.card import CARD_NAME
from selfalign.serving.defaults import GENERATION_CONFIG
from selfalign.serving.form import FORM_NAME
from selfalign.store.artifact import artifact_prefix
from selfalign.store.base import NotFound, PreconditionFailed, Store
from selfalign.store.documents import StoredModel, StoredName, read_document, write_once
from selfalign.store.manifest import FileEntry, Manifest, Sha256
from selfalign.telemetry import log

MARKER = "selfalign.json"
# by promote, with sampling and scores; it adds probe.json, which the artifact has not
WRITTEN_ANEW = (GENERATION_CONFIG, CARD_NAME, BOM_NAME)
Form = Literal["merged", "adapter"]


class ServedModel(StoredModel):
    """What `selfalign.json` holds: the proof that the directory is complete.

    Attributes:
        artifact, key: the model artifact that the weights are from.
        digest: the artifact's content digest, which names the directory.
        form: the whole model, or an exported adapter.
        files: every other file of the directory, by its name in it.
    """

    schema_version: Literal[1] = 1
    artifact: StoredName
    key: StoredName
    digest: Sha256
    form: Form = "merged"
    files: list[FileEntry]


def directory_of(digest: str) -> str:
    """Where the model with this content digest lies, without a trailing slash."""
    return f"models/{digest}"


def is_servable(manifest: Manifest) -> bool:
    """Whether a model artifact holds the chat form that it was trained on (0.5.0 and later)."""
    return any(entry.name == FORM_NAME for entry in served_files(manifest))


def served_files(manifest: Manifest, form: Form = "merged") -> list[FileEntry]:
    """The files of a form of the model, by the names that they have in its directory."""
    start = f"files/{form}/"
    return [
        entry.model_copy(update={"name": entry.name.removeprefix(start), "key": entry.location})
        for entry in manifest.files
        if entry.name.startswith(start)
    ]


def read_served(store: Store, digest: str) -> ServedModel | None:
    """The marker of a complete directory, or None. Raises DataError for one of another model."""
    served = read_document(store, f"{directory_of(digest)}/{MARKER}", ServedModel)
    return None if served is None else _of_model(store, digest, served)


def _of_model(store: Store, digest: str, served: ServedModel) -> ServedModel:
    if served.digest != digest:
        raise DataError(
            f"{store.url}/{directory_of(digest)}/{MARKER}: is that of model {served.digest[:12]}",
            remedy="the directory was copied or edited; delete it and promote the model again",
        )
    return served


def require_files_of(store: Store, served: ServedModel, model: Manifest) -> None:
    """Raise DataError unless a directory holds the files of its model, except `WRITTEN_ANEW`."""
    held = {file.name: file.sha256 for file in served.files}
    for file in served_files(model):
        if file.name not in WRITTEN_ANEW and held.get(file.name) != file.sha256:
            raise DataError(
                f"{store.url}/{directory_of(served.digest)}/{MARKER}: {file.name} is not that of "
                f"{model.artifact} {model.key}",
                remedy="the directory was edited; delete it and promote the model again",
            )


def materialise(store: Store, model: Manifest, written: Mapping[str, bytes]) -> ServedModel:
    """Complete the directory of a model artifact, or find it complete.

    Args:
        written: files that are not copied but written, by name, such as the model card. Whose
            marker is first decides; those of an earlier attempt stay.

    Raises DataError where an object of the artifact is missing.
    """
    if (found := read_served(store, model.digest)) is not None:
        return found
    prefix = f"{directory_of(model.digest)}/"
    files = []
    for file in served_files(model):
        if file.name not in written:
            _copy(store, artifact_prefix(model.artifact, model.key) + file.location, prefix, file)
            files.append(file.model_copy(update={"key": None}))
    files += [_write(store, prefix, name, data) for name, data in written.items()]
    files.sort(key=lambda file: file.name)
    served = ServedModel(artifact=model.artifact, key=model.key, digest=model.digest, files=files)
    served = _of_model(store, model.digest, write_once(store, prefix + MARKER, served))
    log.info("model.materialised", directory=prefix, files=len(files))
    return served


def _copy(store: Store, source: str, prefix: str, file: FileEntry) -> None:
    """Copy what is not there yet: the digest in the directory's name decides the content."""
    if store.exists(prefix + file.name):
        return
    try:
        store.copy(source, prefix + file.name)
    except NotFound as error:
        raise DataError(
            f"{store.url}/{source}: the manifest names it but it is missing (deleted, or expired "
            "by a lifecycle rule of the bucket)",
            remedy="restore the object, or train the model again",
        ) from error


def _write(store: Store, prefix: str, name: str, data: bytes) -> FileEntry:
    try:
        store.write(prefix + name, data, if_absent=True)
    except PreconditionFailed:
        data = store.read(prefix + name)  # another attempt's, which may be named already
    return FileEntry(name=name, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
