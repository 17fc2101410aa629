"""A model out of the store: into a directory, another bucket or an OCI registry, verified.

Every file's SHA-256 is that of the store's manifest. A file that is there already with that digest
stays; `selfalign.json` (in a registry the manifest, which names it) is written last. A place that
holds another model is refused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from selfalign.errors import ConfigurationError
from selfalign.serving.directory import (
    MARKER,
    Form,
    ServedModel,
    directory_of,
    read_served,
    require_files_of,
    served_files,
)
from selfalign.serving.oci import OCI, push
from selfalign.serving.signing import SIGNATURE, read_signature, verify
from selfalign.store.artifact import artifact_prefix, copy_files, download_file
from selfalign.store.base import NotFound, Store
from selfalign.store.documents import parse_document, read_document
from selfalign.store.files import file_sha256, os_errors, write_whole
from selfalign.store.manifest import FileEntry, Manifest
from selfalign.store.open import open_store
from selfalign.telemetry import Progress


def export(
    store: Store, model: Manifest, form: Form, to: str, *, public_key: Path | None = None
) -> tuple[ServedModel, str]:
    """Copy a model artifact to `to`: a directory, s3://bucket/prefix or oci://registry/repository.

    The merged form of a promoted model comes with its scores, and its signature where it has one.
    The signature of a promoted model holds for its adapter too: it holds for the model's digest.
    Returns what is there now, and where: for a registry with the tag and the manifest's digest.

    Args:
        public_key: where given, nothing is copied of a model that this key did not sign.

    Raises ConfigurationError where `to` is of another form, is a file or holds another model, or
    the model has no adapter, DataError for an object that is missing or damaged.
    """
    target = None if to.startswith(OCI) else open_store(to)
    asked = form == "merged" or public_key is not None
    served = read_served(store, model.digest) if asked else None
    if served is not None:
        require_files_of(store, served, model)
    if public_key is not None:
        verify(store, served, public_key)
    if form == "adapter":
        served = None  # what was signed names the adapter's files by the model's digest alone
    prefix, exported = _source(store, model, form, served)
    signature = None if served is None else read_signature(store, served)
    if target is None:
        written = {MARKER: _standalone(exported).to_bytes()}
        written |= {SIGNATURE: signature} if signature else {}
        return exported, push(store, prefix, exported, written, to)
    if to.startswith("s3://"):
        _into_bucket(store, prefix, exported, target, signature)
    else:
        with os_errors(target.url, "write"):
            _into_directory(store, prefix, exported, Path(target.url), signature)
    return exported, to


def _source(
    store: Store, model: Manifest, form: Form, served: ServedModel | None
) -> tuple[str, ServedModel]:
    """Where the files are, and the document that names them; `key` of each is relative to it."""
    if served is not None:
        return f"{directory_of(model.digest)}/", served
    files = served_files(model, form)
    if not files:
        raise ConfigurationError(
            f"{model.artifact} {model.key}: has no {form} form; it was trained by "
            f"{model.details.get('method')}",
            remedy="export it with --form merged",
        )
    exported = ServedModel(
        artifact=model.artifact, key=model.key, digest=model.digest, form=form, files=files
    )
    return artifact_prefix(model.artifact, model.key), exported


def _into_directory(
    store: Store, prefix: str, exported: ServedModel, directory: Path, signature: bytes | None
) -> None:
    marker = directory / MARKER
    if marker.is_file():
        _require_same(
            parse_document(str(marker), marker.read_bytes(), ServedModel), exported, marker
        )
    else:
        _refuse_foreign(
            directory,
            [entry for entry in exported.files if (directory / entry.name).is_file()],
            lambda entry: file_sha256(directory / entry.name) == entry.sha256,
        )
    progress = Progress("files", len(exported.files))
    for entry in exported.files:
        copy_files(store, prefix, [entry], "", directory)
        progress.advance()
    if signature is not None:
        write_whole(directory / SIGNATURE, signature)
    write_whole(marker, _standalone(exported).to_bytes())


def _into_bucket(
    store: Store, prefix: str, exported: ServedModel, target: Store, signature: bytes | None
) -> None:
    found = read_document(target, MARKER, ServedModel)
    if found is not None:
        _require_same(found, exported, f"{target.url}/{MARKER}")
    progress = Progress("files", len(exported.files))
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "object"
        if found is None:
            names = set(target.list(""))
            there = [entry for entry in exported.files if entry.name in names]
            _refuse_foreign(target.url, there, lambda entry: _holds(target, entry, copy))
        for entry in exported.files:
            if not _holds(target, entry, copy):
                download_file(store, prefix, entry, copy)
                target.upload(copy, entry.name)
            copy.unlink(missing_ok=True)
            progress.advance()
    if signature is not None:
        target.write(SIGNATURE, signature)
    target.write(MARKER, _standalone(exported).to_bytes())


def _holds(target: Store, entry: FileEntry, copy: Path) -> bool:
    """Whether the target has this very file; it is read, since names say nothing of content."""
    try:
        target.download(entry.name, copy)
    except NotFound:
        return False
    return file_sha256(copy) == entry.sha256


def _standalone(exported: ServedModel) -> ServedModel:
    files = [entry.model_copy(update={"key": None}) for entry in exported.files]
    return exported.model_copy(update={"files": files})


def _refuse_foreign(
    place: object, there: list[FileEntry], is_the_model_s: Callable[[FileEntry], bool]
) -> None:
    """Refuse a place whose files have the model's names and are none of the model's: a project
    with a README.md, not a copy that was stopped."""
    if there and not any(map(is_the_model_s, there)):
        raise ConfigurationError(
            f"{place}/{there[0].name}: is not the model's, which would take its place",
            remedy="choose an empty place, one for each model",
        )


def _require_same(found: ServedModel, wanted: ServedModel, where: object) -> None:
    if (found.digest, found.form) != (wanted.digest, wanted.form):
        raise ConfigurationError(
            f"{where}: holds the {found.form} form of {found.artifact} {found.key}, not the "
            f"{wanted.form} form of {wanted.artifact} {wanted.key}",
            remedy="choose an empty place, one for each model",
        )
