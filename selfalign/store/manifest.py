"""The manifest: what an artifact is made of and where it came from. Published last, once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from selfalign.records import digest

SCHEMA_VERSION = 1


class StoredModel(BaseModel):
    """Base of everything kept as JSON in the store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_bytes(self) -> bytes:
        """The JSON text that is stored, for people too."""
        return (self.model_dump_json(indent=2) + "\n").encode()


class FileEntry(StoredModel):
    """One object of the artifact.

    Attributes:
        name: what readers ask for.
        key: where the object lives, relative to the artifact's prefix; None: under its name.
    """

    name: str
    sha256: str
    bytes: int
    records: int | None = None
    key: str | None = None

    @property
    def location(self) -> str:
        """Where the object lives, relative to the artifact's prefix."""
        return self.name if self.key is None else self.key


class Counts(StoredModel):
    """What came in, what was kept, what each filter dropped. read = kept + sum(dropped) holds
    where a stage filters; a stage that only transforms drops nothing."""

    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)

    def plus(self, other: Counts) -> Counts:
        """The sum, filter by filter."""
        dropped = dict(self.dropped)
        for name, count in other.dropped.items():
            dropped[name] = dropped.get(name, 0) + count
        return Counts(
            read=self.read + other.read,
            kept=self.kept + other.kept,
            dropped=dict(sorted(dropped.items())),
        )


class Part(StoredModel):
    """A committed part of a shard: its file, its counts, and a few dropped texts per filter.

    `content` is the `content_sum` of its records; None in parts of 0.2.0 and before.
    """

    name: str
    file: FileEntry
    counts: Counts
    dropped_samples: dict[str, list[str]] = Field(default_factory=dict)
    content: str | None = None


class Provenance(StoredModel):
    """How and when something was made; never part of an identity."""

    started_at: str
    finished_at: str
    hardware: dict[str, str] = Field(default_factory=dict)
    engine: dict[str, str] = Field(default_factory=dict)


class Shard(StoredModel):
    """A finished shard."""

    index: int
    num_shards: int
    parts: list[Part]
    provenance: Provenance


class Parent(StoredModel):
    """An artifact this one was made from."""

    key: str
    digest: str


class Manifest(StoredModel):
    """The proof that an artifact is complete.

    `digest` speaks of the content alone, `checksum` of the whole manifest, counts and provenance
    too; None in manifests of 0.2.0 and before.
    """

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
    checksum: str | None = None

    def sealed(self) -> Manifest:
        """The same manifest with its checksum."""
        value = json.loads(self.model_dump_json(exclude={"checksum"}))
        return self.model_copy(update={"checksum": digest(value)})

    @property
    def entries(self) -> list[FileEntry]:
        """Every object of the artifact."""
        return [part.file for shard in self.shards for part in shard.parts] + self.files

    def expected_digest(self) -> str:
        """The digest that follows from the entries."""
        return content_digest(self.shards, self.files)

    def named(self, name: str) -> FileEntry:
        """The entry of this name. Raises KeyError."""
        for entry in self.files:
            if entry.name == name:
                return entry
        raise KeyError(name)


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
