"""Training checkpoints in the store, so that a killed pod's successor resumes on any node.

`checkpoints/<step>/<name>-<sha>` holds the files. `checkpoints/saved.json` is written after them
and names the whole checkpoints, the one that was saved last first. All are removed when the model
that they lead to is published, also those of a second worker that still trains then.
"""

from __future__ import annotations

from pathlib import Path

from selfalign.errors import DataError
from selfalign.store.artifact import ArtifactWriter, copy_files
from selfalign.store.documents import StoredModel, read_document
from selfalign.store.files import file_sha256
from selfalign.store.manifest import FileEntry
from selfalign.telemetry import log

_REHEARSAL = 0  # a step that no checkpoint has
KEPT_CHECKPOINTS = 2  # a second worker may have removed files of the newest


class SavedCheckpoint(StoredModel):
    """A whole checkpoint: its step and its files, by their names in the checkpoint's directory."""

    step: int
    files: list[FileEntry]


class SavedCheckpoints(StoredModel):
    """The whole checkpoints, the one that was saved last first."""

    signed = True

    saved: list[SavedCheckpoint]


class StoreCheckpoints:
    """Keeps the checkpoints of one training under its artifact's prefix.

    A checkpoint exists when `publish` has returned; a worker that dies before leaves nothing that
    `latest` returns.
    """

    def __init__(self, writer: ArtifactWriter) -> None:
        self._writer = writer
        self._store = writer.store
        self._prefix = f"{writer.prefix}checkpoints/"
        self._index = f"{self._prefix}saved.json"

    def upload(self, step: int, directory: Path) -> list[FileEntry]:
        """Upload this node's files of a checkpoint. Called in one process of every node."""
        entries = []
        for path in sorted(p for p in directory.rglob("*") if p.is_file()):
            name, sha = path.relative_to(directory).as_posix(), file_sha256(path)
            key = f"{step:09d}/{name}-{sha[:12]}"
            self._store.upload(path, self._prefix + key)
            entries.append(FileEntry(name=name, key=key, sha256=sha, bytes=path.stat().st_size))
        return entries

    def publish(self, step: int, files: list[FileEntry]) -> None:
        """Name the files that all nodes uploaded, each once, as the newest checkpoint, and remove
        the oldest ones. Called in the main process.

        Removes every checkpoint when another worker has published the model.
        """
        saved = [SavedCheckpoint(step=step, files=files), *self._saved()]
        kept, dropped = saved[:KEPT_CHECKPOINTS], saved[KEPT_CHECKPOINTS:]
        # The index first: it must not name a checkpoint that is half removed.
        self._store.write(self._index, SavedCheckpoints(saved=kept).to_bytes(self._index))
        log.info("checkpoint.saved", step=step, files=len(files))
        named = {self._prefix + entry.location for checkpoint in kept for entry in checkpoint.files}
        for checkpoint in dropped:
            for key in list(self._store.list(f"{self._prefix}{checkpoint.step:09d}/")):
                if key not in named:
                    self._store.delete(key)
        # After the upload: a worker that publishes the model later than this removes them itself.
        if self._writer.published:
            log.warning("checkpoint.superseded", step=step)
            self.clear()

    def rehearse(self, directory: Path) -> None:
        """Upload files as those of a checkpoint, and remove them, also after a failure; no index
        ever names them. Called in the main process, which looks how long that takes."""
        try:
            self.upload(_REHEARSAL, directory)
        finally:
            for key in list(self._store.list(f"{self._prefix}{_REHEARSAL:09d}/")):
                self._store.delete(key)

    def latest(self, directory: Path) -> int | None:
        """Fetch the checkpoint that was saved last, whatever its step, into an empty directory.

        One that an upgrade made useless must not hide those written since. Called in one process of
        every node. Returns the step; None if there is none.
        """
        for checkpoint in self._saved():
            try:
                copy_files(self._store, self._prefix, checkpoint.files, "", directory)
            except DataError as error:
                log.warning("checkpoint.unusable", step=checkpoint.step, error=str(error))
                continue
            return checkpoint.step
        return None

    def clear(self) -> None:
        """Remove every checkpoint: the model they led to is published."""
        for key in list(self._store.list(self._prefix)):
            self._store.delete(key)

    def _saved(self) -> list[SavedCheckpoint]:
        try:
            index = read_document(self._store, self._index, SavedCheckpoints)
        except DataError as error:
            log.warning("checkpoint.index_unreadable", key=self._index, error=error.message)
            return []
        return [] if index is None else index.saved
