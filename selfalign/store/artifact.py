"""Artifacts in a store: parts committed as work is done, the manifest published last and once.

Layout under `artifacts/<artifact>/<key>/`:

    parts/<i>-of-<n>/<part>-<sha>.jsonl.zst   records
    parts/<i>-of-<n>/<part>.json              commit mark of the part: written after it, if absent
    shards/<i>-of-<n>.json                    commit mark of the shard: written after its parts
    files/<name>-<sha>                        models, summaries
    manifest.json                             the artifact exists: written last, if absent

Two workers may do the same part at once: the first commit mark wins, the other's records are
discarded, so a reader never sees a mixture. The same holds for files: whose manifest is first
decides, and no object of one worker ever takes the place of another's.
"""

from __future__ import annotations

import hashlib
import heapq
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any, TypeVar

import zstandard
from pydantic import BaseModel

from selfalign.errors import DataError, TemporaryError
from selfalign.records import Json, Record
from selfalign.store.base import NotFound, Store
from selfalign.store.documents import (
    decode_json,
    first_problem,
    parse_document,
    read_document,
    write_once,
)
from selfalign.store.files import COPY_BYTES, file_sha256, local_target
from selfalign.store.manifest import (
    Counts,
    FileEntry,
    Manifest,
    Parent,
    Part,
    Provenance,
    QuarantinedRow,
    Shard,
    content_digest,
    content_sum,
)

_ZSTD_LEVEL = 6  # fixed: the compressed bytes are part of what a resumed run must reproduce
MAX_RECORD_BYTES = 4 << 20
MAX_PART_BYTES = 256 << 20  # decompressed; a reader holds one part of each shard in memory
_AnyRecord = TypeVar("_AnyRecord", bound=Record)
_Parsed = TypeVar("_Parsed")
_AnyModel = TypeVar("_AnyModel", bound=BaseModel)


def _compress(lines: list[str]) -> bytes:
    """Lines of JSON, zstd-compressed, the same bytes for the same lines."""
    text = "".join(line + "\n" for line in lines).encode()
    if len(text) > _max_bytes(len(lines)):
        raise DataError(
            f"a part of {len(lines)} records has {len(text)} bytes, expected at most "
            f"{_max_bytes(len(lines))}",
            remedy="lower the stage's records_per_part",
        )
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(text)


def _decompress(data: bytes, num_records: int | None) -> list[str]:
    """The lines of a part. Raises ValueError or ZstdError for anything else."""
    limit = _max_bytes(num_records)
    text = bytearray()
    with zstandard.ZstdDecompressor().stream_reader(data) as stream:
        while block := stream.read(COPY_BYTES):
            text += block
            if len(text) > limit:
                raise ValueError(f"decompresses to more than {limit} bytes")
    # split on newlines alone: str.splitlines also breaks at U+2028, which JSON leaves as it is
    lines = [line for line in text.decode().split("\n") if line]
    if num_records not in (None, len(lines)):
        raise ValueError(f"{len(lines)} records, expected {num_records}")
    return lines


def _max_bytes(num_records: int | None) -> int:
    if num_records is None:
        return MAX_PART_BYTES
    return min(num_records * MAX_RECORD_BYTES, MAX_PART_BYTES)


def artifact_prefix(artifact: str, key: str) -> str:
    """Where the objects of an artifact live, with a trailing slash."""
    return f"artifacts/{artifact}/{key}/"


@dataclass(frozen=True, slots=True)
class ArtifactWriter:
    """Writes one artifact. Every method may be repeated; nothing committed is ever changed."""

    store: Store
    _: KW_ONLY
    artifact: str
    stage: str
    key: str
    identity: dict[str, Any]
    parents: dict[str, Parent]

    @property
    def prefix(self) -> str:
        """Where its objects live, with a trailing slash."""
        return artifact_prefix(self.artifact, self.key)

    @property
    def published(self) -> bool:
        """Whether the manifest is there."""
        return self.store.exists(self.prefix + "manifest.json")

    def shard(self, index: int, num_shards: int) -> ShardWriter:
        """The writer of one shard."""
        return ShardWriter(self, index, num_shards)

    def add_file(self, source: Path, name: str) -> FileEntry:
        """Upload a file; it becomes part of the artifact when the manifest names it."""
        entry = _file_entry(name, file_sha256(source), source.stat().st_size)
        self.store.upload(source, self.prefix + entry.location)
        return entry

    def add_bytes(self, data: bytes, name: str) -> FileEntry:
        """Write a small file; it becomes part of the artifact when the manifest names it."""
        entry = _file_entry(name, hashlib.sha256(data).hexdigest(), len(data))
        self.store.write(self.prefix + entry.location, data)
        return entry

    def publish(
        self,
        *,
        shards: list[Shard],
        files: list[FileEntry],
        counts: Counts,
        details: dict[str, Any],
        provenance: Provenance,
    ) -> Manifest:
        """Publish the manifest, or return the one that another worker published first.

        Files that the published manifest does not name are removed: they come from workers that
        lost or died. Raises TemporaryError where an object or a parent was deleted meanwhile.
        """
        if not self.published:  # else what a worker that lost has uploaded may be swept already
            self._require_all([part.file for shard in shards for part in shard.parts] + files)
        manifest = Manifest(
            artifact=self.artifact,
            stage=self.stage,
            key=self.key,
            identity=self.identity,
            parents=self.parents,
            shards=shards,
            files=files,
            counts=counts,
            details=details,
            provenance=provenance,
            digest=content_digest(shards, files),
        )
        published = write_once(self.store, self.prefix + "manifest.json", manifest)
        _check_manifest(self.store, self.artifact, self.key, published)
        self._sweep(published)
        return published

    def _require_all(self, entries: list[FileEntry]) -> None:
        """Raise TemporaryError unless what the manifest is going to name is there."""
        named = {self.prefix + entry.location for entry in entries}
        named -= set(self.store.list(self.prefix))
        parents = (artifact_prefix(name, parent.key) for name, parent in self.parents.items())
        manifests = (prefix + "manifest.json" for prefix in parents)
        named |= {name for name in manifests if not self.store.exists(name)}
        if named:
            raise TemporaryError(
                f"{self.store.url}/{min(named)}: was deleted while {self.stage} was at work",
                remedy="the next attempt makes it anew; let selfalign gc alone delete objects",
            )

    def _sweep(self, published: Manifest) -> None:
        named = {self.prefix + entry.location for entry in published.files}
        for key in list(self.store.list(f"{self.prefix}files/")):
            if key not in named:
                self.store.delete(key)

    def publish_when_complete(
        self,
        num_shards: int,
        details: dict[str, Any] | None = None,
        check: Callable[[Iterable[Part]], None] | None = None,
    ) -> Manifest | None:
        """Publish if every shard is finished; None while some are not.

        Args:
            check: called with all parts; what it raises is raised, and nothing is published.
        """
        shards = []
        for index in range(num_shards):
            name = f"{self.prefix}shards/{index:05d}-of-{num_shards:05d}.json"
            found = read_document(self.store, name, Shard)
            if found is None:
                return None
            _require_place(self.store, name, (found.index, found.num_shards), (index, num_shards))
            shards.append(found)
        parts = [part for shard in shards for part in shard.parts]
        if check is not None:
            check(parts)
        counts = reduce(Counts.plus, (part.counts for part in parts), Counts())
        rates = [rate for s in shards if (rate := s.provenance.tokens_per_second) is not None]
        provenance = Provenance(
            started_at=min(shard.provenance.started_at for shard in shards),
            finished_at=max(shard.provenance.finished_at for shard in shards),
            tokens_per_second=sum(rates) / len(rates) if rates else None,
            hardware=shards[0].provenance.hardware,
            engine=shards[0].provenance.engine,
        )
        return self.publish(
            shards=shards, files=[], counts=counts, details=details or {}, provenance=provenance
        )


class ShardWriter:
    """Commits the parts of one shard, then the shard."""

    def __init__(self, artifact: ArtifactWriter, index: int, num_shards: int) -> None:
        self._artifact = artifact
        self._store = artifact.store
        self.index = index
        self.num_shards = num_shards
        self._name = f"{index:05d}-of-{num_shards:05d}"
        self._parts = f"{artifact.prefix}parts/{self._name}/"
        self._mark = f"{artifact.prefix}shards/{self._name}.json"

    @property
    def finished(self) -> bool:
        """Whether the shard's commit mark is there."""
        return self._store.exists(self._mark)

    def committed(self) -> dict[str, Part]:
        """Parts that are done, by name."""
        parts = {}
        for key in self._store.list(self._parts):
            if key.endswith(".json"):
                part = read_document(self._store, key, Part)
                if part is not None:
                    _require_place(self._store, key, f"{self._parts}{part.name}.json", key)
                    parts[part.name] = part
        return parts

    def commit(
        self,
        name: str,
        records: Iterable[Record],
        counts: Counts,
        dropped_samples: dict[str, list[str]] | None = None,
        quarantined: Sequence[QuarantinedRow] = (),
    ) -> Part:
        """Commit a part; when another worker was first, its part stands and is returned."""
        lines = [record.model_dump_json() for record in records]
        data = _compress(lines)
        sha = hashlib.sha256(data).hexdigest()
        relative = f"parts/{self._name}/{name}-{sha[:12]}.jsonl.zst"
        part = Part(
            name=name,
            file=FileEntry(name=relative, sha256=sha, bytes=len(data), records=len(lines)),
            counts=counts,
            dropped_samples=dropped_samples or {},
            quarantined=list(quarantined),
            content=content_sum(lines),
        )
        self._store.write(self._artifact.prefix + relative, data)
        winner = write_once(self._store, f"{self._parts}{name}.json", part)
        if winner.file.name != relative:
            self._store.delete(self._artifact.prefix + relative)
        return winner

    def read_part(self, part: Part, record_type: type[_AnyRecord]) -> Iterator[_AnyRecord]:
        """The records of a committed part."""
        parse = partial(_parse_record, record_type)
        yield from _read_part(self._store, self._artifact.prefix, part, parse)

    def finish(self, parts: Iterable[Part], provenance: Provenance) -> None:
        """Commit the shard: all its parts, which are committed, in their order."""
        shard = Shard(
            index=self.index, num_shards=self.num_shards, parts=list(parts), provenance=provenance
        )
        write_once(self._store, self._mark, shard)  # another worker's has the same parts


def artifact_keys(store: Store, artifact: str) -> list[str]:
    """Keys of all published artifacts of this name."""
    prefix = f"artifacts/{artifact}/"
    suffix = "/manifest.json"
    return [
        name.removeprefix(prefix).removesuffix(suffix)
        for name in store.list(prefix)
        if name.endswith(suffix)
    ]


def read_manifest(store: Store, artifact: str, key: str) -> Manifest | None:
    """The manifest, or None when the artifact is not published.

    Raises DataError when the manifest is corrupt.
    """
    manifest = read_document(store, artifact_prefix(artifact, key) + "manifest.json", Manifest)
    if manifest is not None:
        _check_manifest(store, artifact, key, manifest)
    return manifest


def _check_manifest(store: Store, artifact: str, key: str, manifest: Manifest) -> None:
    """Raise DataError for a manifest of another artifact, or whose digest is wrong."""
    prefix = artifact_prefix(artifact, key)
    name = prefix + "manifest.json"
    _require_place(store, name, (manifest.artifact, manifest.key), (artifact, key))
    if manifest.digest != (found := content_digest(manifest.shards, manifest.files)):
        raise DataError(
            f"{store.url}/{name}: the manifest's digest {manifest.digest[:12]} does not match its "
            f"content ({found[:12]})",
            remedy=f"the manifest was edited or damaged; delete {prefix} and run the stage again",
        )


def _require_place(store: Store, name: str, found: object, expected: object) -> None:
    """Raise DataError for a document that belongs elsewhere in the store."""
    if found != expected:
        raise DataError(
            f"{store.url}/{name}: belongs to {found}, expected {expected}",
            remedy="the object was copied or edited; delete it and run the stage again",
        )


def read_rows(store: Store, manifest: Manifest) -> Iterator[Json]:
    """Every record of the artifact as JSON, each part verified before its first row.

    The order is the same however the work was shared: a stage deals its work out to shards in the
    order of ids, so merging the shards by id gives the order in which one alone would have written.
    """
    yield from _merged(store, manifest, _parse_row, lambda row: str(row["id"]))


def read_records(
    store: Store, manifest: Manifest, record_type: type[_AnyRecord]
) -> Iterator[_AnyRecord]:
    """Every record of the artifact, in the order of `read_rows`, verified."""
    parse = partial(_parse_record, record_type)
    yield from _merged(store, manifest, parse, lambda record: record.id)


def _merged(
    store: Store,
    manifest: Manifest,
    parse: Callable[[Any], _Parsed],
    id_of: Callable[[_Parsed], str],
) -> Iterator[_Parsed]:
    prefix = artifact_prefix(manifest.artifact, manifest.key)

    def rows(shard: Shard) -> Iterator[_Parsed]:
        for part in shard.parts:
            yield from _read_part(store, prefix, part, parse)

    yield from heapq.merge(*map(rows, manifest.shards), key=lambda row: _place(id_of(row)))


def _place(record_id: str) -> tuple[str, int, str]:
    """Where a record stands among others: by its id, a number at the end counting by value."""
    head, _, number = record_id.rpartition("-")
    return head, len(number), number


def _parse_row(value: Any) -> Json:
    if not isinstance(value, dict) or not isinstance(value.get("id"), str):
        raise ValueError("a record without an id")
    return value


def _parse_record(record_type: type[_AnyRecord], value: Any) -> _AnyRecord:
    return record_type.model_validate(value)


def _read_part(
    store: Store, prefix: str, part: Part, parse: Callable[[Any], _Parsed]
) -> list[_Parsed]:
    """The records of a part, if they are those that its mark and the manifest's digest speak of."""
    data = _read_verified(store, prefix, part.file)
    try:
        lines = _decompress(data, part.file.records)
        if part.content not in (None, content_sum(lines)):
            raise ValueError("its records are not those that the artifact's digest speaks of")
        return [parse(decode_json(line)) for line in lines]
    except (ValueError, zstandard.ZstdError) as error:
        raise DataError(
            f"{store.url}/{prefix}{part.file.location}: corrupt: {first_problem(error)}",
            remedy=_restore(store, prefix),
        ) from error


def read_file(store: Store, manifest: Manifest, name: str) -> bytes:
    """A small file of the artifact, verified."""
    prefix = artifact_prefix(manifest.artifact, manifest.key)
    for entry in manifest.files:
        if entry.name == f"files/{name}":
            return _read_verified(store, prefix, entry)
    raise _unnamed(store, prefix, f"files/{name}")


def read_file_as(store: Store, manifest: Manifest, name: str, model: type[_AnyModel]) -> _AnyModel:
    """A JSON file of an artifact. Raises DataError, naming it, where it holds no such model."""
    where = f"{store.url}/{artifact_prefix(manifest.artifact, manifest.key)}files/{name}"
    return parse_document(where, read_file(store, manifest, name), model)


def verify(store: Store, manifest: Manifest) -> list[str]:
    """Check every object against the manifest; one sentence for each that is wrong."""
    problems = []
    prefix = artifact_prefix(manifest.artifact, manifest.key)
    for part in (part for shard in manifest.shards for part in shard.parts):
        try:
            _read_part(store, prefix, part, _parse_row)
        except DataError as error:
            problems.append(error.message)
    with tempfile.TemporaryDirectory() as scratch:
        for entry in manifest.files:
            target = Path(scratch) / "object"
            try:
                download_file(store, prefix, entry, target)
            except DataError as error:
                problems.append(error.message)
            target.unlink(missing_ok=True)
    return problems


def download_file(store: Store, prefix: str, entry: FileEntry, target: Path) -> None:
    """Copy one object of an artifact to `target`, verified; nothing is left when it is wrong."""
    try:
        store.download(prefix + entry.location, target)
    except NotFound as error:
        raise _missing(store, prefix, entry) from error
    found = file_sha256(target)
    if found != entry.sha256:
        size = target.stat().st_size
        target.unlink()
        raise _corrupt(store, prefix, entry, found, size)


def download_files(
    store: Store, manifest: Manifest, below: str, directory: Path, without: tuple[str, ...] = ()
) -> Path:
    """Copy the files under `files/<below>/` of an artifact into `directory`, verified.

    The caller names the directory by the artifact's digest. Names that end as `without` says stay.
    """
    prefix = artifact_prefix(manifest.artifact, manifest.key)
    start = f"files/{below}/"
    wanted = [entry for entry in manifest.files if entry.name.startswith(start)]
    if not wanted:
        raise _unnamed(store, prefix, start)
    needed = [entry for entry in wanted if not entry.name.endswith(without)]
    copy_files(store, prefix, needed, start, directory)
    return directory


def copy_files(
    store: Store, prefix: str, entries: Iterable[FileEntry], start: str, directory: Path
) -> None:
    """Copy objects whose names begin with `start` into `directory`, verified.

    Files already there with the right size and digest are kept, so a second call moves no bytes.
    """
    for entry in entries:
        target = local_target(directory, entry.name.removeprefix(start))
        if target.is_file() and target.stat().st_size == entry.bytes:
            if file_sha256(target) == entry.sha256:
                continue
            target.unlink()
        download_file(store, prefix, entry, target)


def _file_entry(name: str, sha256: str, size: int) -> FileEntry:
    """The entry of a file of which several workers may upload versions."""
    return FileEntry(
        name=f"files/{name}", key=f"files/{name}-{sha256[:12]}", sha256=sha256, bytes=size
    )


def _read_verified(store: Store, prefix: str, entry: FileEntry) -> bytes:
    try:
        data = store.read(prefix + entry.location)
    except NotFound as error:
        raise _missing(store, prefix, entry) from error
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        raise _corrupt(store, prefix, entry, found, len(data))
    return data


def _unnamed(store: Store, prefix: str, name: str) -> DataError:
    return DataError(
        f"{store.url}/{prefix}manifest.json: names no file {name}",
        remedy="the artifact is of another kind or version; run its stage again",
    )


def _missing(store: Store, prefix: str, entry: FileEntry) -> DataError:
    return DataError(
        f"{store.url}/{prefix}{entry.location}: the manifest names it but it is missing "
        "(deleted, or expired by a lifecycle rule of the bucket)",
        remedy=_restore(store, prefix),
    )


def _corrupt(store: Store, prefix: str, entry: FileEntry, found: str, size: int) -> DataError:
    return DataError(
        f"{store.url}/{prefix}{entry.location}: corrupt: expected SHA-256 {entry.sha256[:12]} "
        f"({entry.bytes} bytes), got {found[:12]} ({size} bytes)",
        remedy=_restore(store, prefix),
    )


def _restore(store: Store, prefix: str) -> str:
    return f"restore the object, or delete {store.url}/{prefix} and run the stage again"
