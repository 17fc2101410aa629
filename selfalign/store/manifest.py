"""The manifest: what an artifact is made of and where it came from. Published last, once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, field_validator

from selfalign.errors import DataError
from selfalign.records import digest
from selfalign.store.documents import StoredCount, StoredModel, StoredName

SCHEMA_VERSION = 1


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileEntry(StoredModel):
    """One object of the artifact.

    Attributes:
        name: what readers ask for.
        key: where the object lives, relative to the artifact's prefix; None: under its name.
    """

    name: StoredName
    sha256: str
    bytes: StoredCount
    records: StoredCount | None = None
    key: StoredName | None = None

    @property
    def location(self) -> str:
        """Where the object lives, relative to the artifact's prefix."""
        return self.name if self.key is None else self.key


class Counts(StoredModel):
    """What came in, what was kept, what each filter dropped, what no engine could be asked.
    read = kept + sum(dropped) + sum(quarantined) holds where a stage filters; a stage that only
    transforms drops nothing."""

    read: StoredCount = 0
    kept: StoredCount = 0
    dropped: dict[str, StoredCount] = Field(default_factory=dict)
    quarantined: dict[str, StoredCount] = Field(default_factory=dict)

    def plus(self, other: Counts) -> Counts:
        """The sum, filter by filter and reason by reason."""
        return Counts.model_construct(  # what is added up is valid, and the sum may be more
            read=self.read + other.read,
            kept=self.kept + other.kept,
            dropped=_sum(self.dropped, other.dropped),
            quarantined=_sum(self.quarantined, other.quarantined),
        )


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in sorted({*one, *other})}


class QuarantinedRow(StoredModel):
    """A row that could not be put to the model, or its answer not be kept as text."""

    id: str
    reason: str
    explanation: str


class Part(StoredModel):
    """A committed part of a shard: its file, its counts, a few dropped texts per filter, and every
    quarantined row.

    `content` is the `content_sum` of its records; None in parts of 0.2.0 and before.
    """

    signed = True

    name: StoredName
    file: FileEntry
    counts: Counts
    dropped_samples: dict[str, list[str]] = Field(default_factory=dict)
    quarantined: list[QuarantinedRow] = Field(default_factory=list)
    content: Sha256 | None = None


class Provenance(StoredModel):
    """How and when something was made; never part of an identity.

    Attributes:
        tokens_per_second: of one worker of a stage that generates, new tokens (of an artifact, the
            workers' mean); of a training, all its processes' tokens. None where it is not known.
    """

    started_at: str
    finished_at: str
    tokens_per_second: float | None = None
    hardware: dict[str, str] = Field(default_factory=dict)
    engine: dict[str, str] = Field(default_factory=dict)


class Shard(StoredModel):
    """A finished shard."""

    signed = True

    index: StoredCount
    num_shards: StoredCount
    parts: list[Part]
    provenance: Provenance


class Parent(StoredModel):
    """An artifact this one was made from."""

    key: str
    digest: str


class Manifest(StoredModel):
    """The proof that an artifact is complete. `digest` is that of its content alone."""

    signed = True

    schema_version: int = SCHEMA_VERSION
    artifact: str
    stage: str
    key: str
    identity: dict[str, Any]
    parents: dict[str, Parent]
    shards: list[Shard] = Field(default_factory=list)
    files: list[FileEntry] = Field(default_factory=list)
    counts: Counts = Counts()
    details: dict[str, Any] = Field(default_factory=dict)
    provenance: Provenance
    digest: str

    @field_validator("identity")
    @classmethod
    def _has_the_form_of_one(cls, identity: dict[str, Any]) -> dict[str, Any]:
        """Whoever reads an identity takes these parts for what `identity.py` makes of them."""
        for name in ("config", "data", "judge", "seeds"):
            part = identity.get(name, {})
            if not isinstance(part, dict):
                raise ValueError(f"{name} is no mapping")
            digests = part.values() if name in ("data", "seeds") else ()
            if not all(isinstance(each, str) for each in digests):
                raise ValueError(f"{name} holds what is no digest")
        if not isinstance(identity.get("promoted"), str | None):
            raise ValueError("promoted is no digest")
        return identity

    @property
    def entries(self) -> list[FileEntry]:
        """Every object of the artifact."""
        return [part.file for shard in self.shards for part in shard.parts] + self.files

    @property
    def quarantined(self) -> list[QuarantinedRow]:
        """Every quarantined row."""
        return [row for shard in self.shards for part in shard.parts for row in part.quarantined]

    def dropped_samples(self, most: int) -> dict[str, list[str]]:
        """Filter -> the first few texts that it dropped."""
        found: dict[str, list[str]] = {}
        for part in (part for shard in self.shards for part in shard.parts):
            for name, texts in part.dropped_samples.items():
                shown = found.setdefault(name, [])
                shown += texts[: most - len(shown)]
        return found

    def parent_digest(self, artifact: str) -> str:
        """The content digest of a parent. Raises DataError where the manifest names none."""
        if artifact not in self.parents:
            raise DataError(
                f"artifacts/{self.artifact}/{self.key}/manifest.json: names no {artifact}",
                remedy="it was edited: delete the artifact and run its stage again",
            )
        return self.parents[artifact].digest


def content_sum(records: Iterable[str]) -> str:
    """The sum of the SHA-256 of records, modulo 2^256: sums of parts add up to that of all."""
    hashes = (hashlib.sha256(record.encode()).digest() for record in records)
    return _hex(sum(int.from_bytes(value, "big") for value in hashes))


def content_digest(shards: list[Shard], files: list[FileEntry]) -> str:
    """SHA-256 over what the artifact holds: its records, and its files by name.

    How records are cut into parts and shards does not enter, nor do the names of objects, so
    the digest speaks of content alone.
    """
    parts = [part for shard in shards for part in shard.parts]
    sums = [part.content for part in parts if part.content is not None]
    named = sorted([entry.name, entry.sha256] for entry in files)
    if parts and len(sums) == len(parts):
        records = _hex(sum(int(value, 16) for value in sums))
        return digest({"records": records, "files": named})
    return digest({"parts": [[part.name, part.file.sha256] for part in parts], "files": named})


def _hex(total: int) -> str:
    return f"{total % 2**256:064x}"
