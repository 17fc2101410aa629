"""A model as an artifact of an OCI registry, as CNCF ModelPack lays one out.

One layer for each file, unarchived, named by its title, so that `oras pull` gives the directory
back, and ModelPack's types, so that what mounts or serves such artifacts takes it. The manifest is
the same whenever it is made; it is put up last, under the tag.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfalign.errors import ConfigurationError, needing
from selfalign.serving.bom import BOM_NAME
from selfalign.serving.card import CARD_NAME
from selfalign.serving.directory import ServedModel
from selfalign.store.artifact import download_file
from selfalign.store.base import Store
from selfalign.store.documents import decode_json
from selfalign.telemetry import Progress

OCI = "oci://"
# https://github.com/modelpack/model-spec, v0.0.7
_ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
_WEIGHTS = "application/vnd.cncf.model.weight.v1.raw"
_WEIGHTS_CONFIG = "application/vnd.cncf.model.weight.config.v1.raw"
_PAPERS = "application/vnd.cncf.model.doc.v1.raw"
_TITLE, _FILEPATH = "org.opencontainers.image.title", "org.cncf.model.filepath"
_TAG_DIGITS = 12


def push(
    store: Store, prefix: str, exported: ServedModel, written: Mapping[str, bytes], to: str
) -> str:
    """Push a model's files; those that the repository holds are neither read nor sent again.

    Args:
        prefix: below which the store has the files of `exported`.
        written: further files, by name, such as `selfalign.json`.
        to: oci://registry/repository:tag; without a tag the model's digest gives one.

    Returns the reference, with the manifest's digest.

    Raises ConfigurationError where the tag names something else, and the registry's errors.
    """
    with needing(f"{OCI} needs httpx2", "oci"):
        from selfalign.store.registry import Repository, parse_reference
    named = parse_reference(to)
    tag = named.tag or _own_tag(exported)
    place = replace(named, tag=tag)
    layers = [_layer(entry.name, entry.sha256, entry.bytes) for entry in exported.files]
    layers += [_layer(name, _sha256(data), len(data)) for name, data in written.items()]
    config = _config(exported, layers)
    manifest = _manifest(exported, layers, config)
    progress = Progress("files", len(exported.files))
    with Repository(place.host, place.name) as target, tempfile.TemporaryDirectory() as scratch:
        _require_same(target.read_manifest(tag), exported, str(place))
        copy = Path(scratch) / "object"
        for entry in exported.files:
            if not target.has_blob(entry.sha256):
                download_file(store, prefix, entry, copy)
                target.upload_blob(copy, entry.sha256, entry.name)
                copy.unlink()
            progress.advance()
        for name, data in {**written, "the artifact's configuration": config}.items():
            if not target.has_blob(_sha256(data)):
                copy.write_bytes(data)
                target.upload_blob(copy, _sha256(data), name)
        target.write_manifest(tag, manifest)
    return f"{place}@sha256:{_sha256(manifest)}"


def _require_same(found: bytes | None, exported: ServedModel, told: str) -> None:
    """Raise ConfigurationError where a tag names anything but this model in this form."""
    if found is None:
        return
    try:
        named = dict(decode_json(found)["annotations"])
    except (ValueError, KeyError, TypeError):
        named = {}
    if named | _annotations(exported) != named:
        raise ConfigurationError(
            f"{told}: names something else than the {exported.form} form of "
            f"{exported.artifact} {exported.key}",
            remedy="choose another tag, or leave it out: each model has one of its own",
        )


def _own_tag(exported: ServedModel) -> str:
    form = "" if exported.form == "merged" else f"-{exported.form}"
    return exported.digest[:_TAG_DIGITS] + form


def _config(exported: ServedModel, layers: list[dict[str, Any]]) -> bytes:
    """ModelPack's configuration; a layer that is no archive is its own difference."""
    return _json(
        {
            "descriptor": {"name": exported.artifact, "version": exported.digest},
            "config": {"format": "safetensors"},
            "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in layers]},
        }
    )


def _manifest(exported: ServedModel, layers: list[dict[str, Any]], config: bytes) -> bytes:
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": _ARTIFACT_TYPE,
            "config": _descriptor(_CONFIG_TYPE, _sha256(config), len(config)),
            "layers": layers,
            "annotations": _annotations(exported),
        }
    )


def _annotations(exported: ServedModel) -> dict[str, str]:
    return {"io.selfalign.model.digest": exported.digest, "io.selfalign.model.form": exported.form}


def _layer(name: str, sha256: str, size: int) -> dict[str, Any]:
    kind = _PAPERS if name in (CARD_NAME, BOM_NAME) else _WEIGHTS_CONFIG
    kind = _WEIGHTS if name.endswith(".safetensors") else kind
    return _descriptor(kind, sha256, size) | {"annotations": {_TITLE: name, _FILEPATH: name}}


def _descriptor(kind: str, sha256: str, size: int) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{sha256}", "size": size}


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
