"""Where a model comes from: base model, seeds, data and code, by digest, along its ancestors."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from selfalign.pipeline import PRODUCER
from selfalign.store.artifact import ArtifactWriter, read_manifest
from selfalign.store.base import Store
from selfalign.store.documents import StoredModel
from selfalign.store.manifest import Manifest

_LONGEST_CARD = 1 << 20
_LONGEST_NAME = 100


class Base(StoredModel):
    """The base model.

    Attributes:
        name: its hub id; None where it came from a directory.
        version: its commit, or the digest of its files.
        license: as its own model card states it; None where that says nothing.
        dtype: precision of its weights, which the model keeps.
        multimodal: its `model_type` where it takes more than text and its language model alone was
            trained; None for a text model.
    """

    name: str | None
    version: str
    license: str | None
    dtype: str | None = None
    multimodal: str | None = None


@dataclass(frozen=True, slots=True)
class Ancestor:
    """An artifact that the model was made from; `records` is None where its manifest is gone."""

    artifact: str
    key: str
    digest: str
    records: int | None


@dataclass(frozen=True, slots=True)
class Origin:
    """What a model card and a bill of materials tell of.

    Attributes:
        artifact, key: the model artifact.
        code_version: of selfalign.
        method: of fine-tuning: full, lora or qlora.
        seeds: SHA-256 of each file that people wrote and that reached the model, by name.
        ancestors: the artifacts, nearest first.
    """

    artifact: str
    key: str
    code_version: str
    method: str
    base: Base
    seeds: dict[str, str] = field(default_factory=dict)
    ancestors: list[Ancestor] = field(default_factory=list)


def origin(store: Store, model: Manifest | ArtifactWriter, base: Base) -> Origin:
    """Follow the parents' manifests to the seeds. Raises DataError for a corrupt one."""
    seeds = {**model.identity.get("seeds", {})}
    ancestors: dict[str, Ancestor] = {}
    left = list(model.parents.items())
    while left:
        name, parent = left.pop(0)
        if name in ancestors or name not in PRODUCER:
            continue
        manifest = read_manifest(store, name, parent.key)
        records = None if manifest is None else manifest.counts.kept
        ancestors[name] = Ancestor(name, parent.key, parent.digest, records)
        if manifest is not None:
            seeds |= manifest.identity.get("seeds", {})
            left += manifest.parents.items()
    return Origin(
        artifact=model.artifact,
        key=model.key,
        code_version=str(model.identity.get("code_version")),
        method=str(model.identity.get("config", {}).get("method")),
        base=base,
        seeds={str(name): str(sha) for name, sha in sorted(seeds.items())},
        ancestors=list(ancestors.values()),
    )


def stated_license(model: Path) -> str | None:
    """The license in the front matter of a model directory's README.md, if there is any."""
    card = model / "README.md"
    if not card.is_file() or card.stat().st_size > _LONGEST_CARD:
        return None
    start, _, rest = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
    text, end, _ = rest.partition("\n---")
    if start.strip() or not end:
        return None
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    stated = value.get("license") if isinstance(value, dict) else None
    return stated[:_LONGEST_NAME] if isinstance(stated, str) else None
