"""Training checkpoints in the store, so that a killed pod's successor resumes on any node.

`checkpoints/<step>/...` holds the files, `checkpoints/<step>.json` is written after them and
names them with their digests: a checkpoint without it is torn and never resumed from. None
outlives the publication of the model they lead to, not even those of a second worker that is
still training then.
"""

from __future__ import annotations

from pathlib import Path

from selfalign.errors import DataError
from selfalign.store.artifact import ArtifactWriter, copy_files
from selfalign.store.documents import StoredModel, read_document
from selfalign.store.files import file_sha256
from selfalign.store.manifest import FileEntry
from selfalign.telemetry import log

KEPT_CHECKPOINTS = 2  # the newest may be torn by a second worker; the one before it is whole


class CheckpointMark(StoredModel):
    """Says that a checkpoint is whole."""

    step: int
    files: list[FileEntry]


class StoreCheckpoints:
    """Keeps checkpoints of one training under its artifact's prefix."""

    def __init__(self, writer: ArtifactWriter) -> None:
        self._writer = writer
        self._store = writer.store
        self._prefix = f"{writer.prefix}checkpoints/"

    def save(self, step: int, directory: Path) -> None:
        """Upload a complete checkpoint directory, mark it, and drop the oldest ones.

        Once another worker has published the model, nothing is kept.
        """
        name = f"{step:09d}"
        entries = []
        for path in sorted(p for p in directory.rglob("*") if p.is_file()):
            relative = f"{name}/{path.relative_to(directory)}"
            self._store.upload(path, self._prefix + relative)
            entries.append(
                FileEntry(name=relative, sha256=file_sha256(path), bytes=path.stat().st_size)
            )
        mark = CheckpointMark(step=step, files=entries)
        self._store.write(f"{self._prefix}{name}.json", mark.to_bytes())
        log.info("checkpoint.saved", step=step, files=len(entries))
        for old in self._steps()[:-KEPT_CHECKPOINTS]:
            self._remove(old)
        # after the upload: whoever publishes later than this look clears after it, too
        if self._writer.published:
            log.warning("checkpoint.superseded", step=step)
            self.clear()

    def latest(self, directory: Path) -> int | None:
        """Fetch the newest whole checkpoint into `directory`; None if there is none."""
        for step in reversed(self._steps()):
            try:
                name = f"{self._prefix}{step:09d}.json"
                mark = read_document(self._store, name, CheckpointMark)
                if mark is None:  # another worker removed it
                    continue
                copy_files(self._store, self._prefix, mark.files, f"{step:09d}/", directory)
            except DataError as error:
                log.warning("checkpoint.unusable", step=step, error=str(error))
                continue
            return step
        return None

    def clear(self) -> None:
        """Remove every checkpoint: the model they led to is published."""
        for key in list(self._store.list(self._prefix)):
            self._store.delete(key)

    def _steps(self) -> list[int]:
        marks = (key.removeprefix(self._prefix) for key in self._store.list(self._prefix))
        return sorted(int(name[:-5]) for name in marks if "/" not in name and name[-5:] == ".json")

    def _remove(self, step: int) -> None:
        # the mark first: a checkpoint half removed must not look whole
        self._store.delete(f"{self._prefix}{step:09d}.json")
        for key in list(self._store.list(f"{self._prefix}{step:09d}/")):
            self._store.delete(key)
