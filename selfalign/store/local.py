"""The store in a local directory: the embedded default.

Objects are plain files under the root. `<root>/.selfalign` holds temporary files and locks:

- Content goes to a temporary file, is synced, and only then gets its name, by `link` (which
  fails when the name exists) or `rename` (which replaces it in one step).
- Every change of a name happens under a file lock chosen by the key, so that a comparison of
  versions and the rename that follows are one step for all other writers. Readers take no lock
  and need no permission to write.
- A writer holds a lock on its temporary file while it lives; the kernel drops it when the
  writer dies. The first write through a store removes the temporary files nobody holds.

The version of an object is the SHA-256 of its content. So a version that was left and is back
(the same bytes again) satisfies `if_version`, as an ETag does in S3.

Unlike in S3, a key cannot be the folder of another key ("a" beside "a/b"): ConfigurationError.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from selfalign.errors import ConfigurationError, StoreUnavailable
from selfalign.store.base import MAX_READ_BYTES, Entry, NotFound, PreconditionFailed, too_large
from selfalign.store.files import (
    COPY_BYTES,
    make_directory,
    os_errors,
    replacing,
    sync_directory,
    sync_file,
)
from selfalign.store.keys import RESERVED_SEGMENT, check_key, check_prefix, is_key

NUM_LOCKS = 64  # bounds the lock files; keys that share one only wait for each other's rename
COMMIT_ATTEMPTS = 100  # a concurrent delete may prune our folder between mkdir and rename
# The name is taken, its folder was pruned meanwhile, or the file system has no link to give.
_NO_LINK = {errno.EEXIST, errno.ENOENT, errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP}


class LocalStore:
    """Objects as files under `root`, which is made by the first write.

    Safe for many threads and processes of one machine, and of several over NFSv4.
    """

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.abspath(root.expanduser()))  # noqa: PTH100  resolve() follows links
        self._temporary_folder = self._root / RESERVED_SEGMENT / "temporary"
        self._locks_folder = self._root / RESERVED_SEGMENT / "locks"
        self._swept = False
        with os_errors(f"store {self._root}", "open"):
            if self._root.exists() and not self._root.is_dir():
                raise ConfigurationError(
                    f"store {self._root}: expected a directory, found a file",
                    remedy="name another directory, or move the file away",
                )

    @property
    def url(self) -> str:
        """The root's absolute path."""
        return str(self._root)

    def read(self, key: str) -> bytes:
        with self._open(key) as file, os_errors(self._where(key), "read"):
            data = file.read(MAX_READ_BYTES + 1)
        if len(data) > MAX_READ_BYTES:
            raise too_large(self._where(key))
        return data

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        """The object and the SHA-256 of its content. Raises NotFound."""
        data = self.read(key)
        return data, hashlib.sha256(data).hexdigest()

    def write(
        self, key: str, data: bytes, *, if_absent: bool = False, if_version: str | None = None
    ) -> str:
        """Write atomically, return the SHA-256 of `data`. Raises PreconditionFailed."""
        check_key(key)
        if if_absent and if_version is not None:
            raise ValueError("if_absent and if_version exclude each other")
        with (
            os_errors(self._where(key), "write"),
            self._committing(key, if_absent=if_absent, if_version=if_version) as file,
        ):
            file.write(data)
        return hashlib.sha256(data).hexdigest()

    def upload(self, source: Path, key: str) -> None:
        """Copy a local file to `key`. Raises DataError when there is no such file."""
        check_key(key)
        with (
            os_errors(self._where(key), f"upload {source}"),
            source.open("rb") as content,
            self._committing(key) as file,
        ):
            shutil.copyfileobj(content, file, COPY_BYTES)

    def download(self, key: str, target: Path) -> None:
        with (
            self._open(key) as content,
            os_errors(self._where(key), f"download to {target}"),
            replacing(target) as file,
        ):
            shutil.copyfileobj(content, file, COPY_BYTES)

    def copy(self, source: str, key: str) -> None:
        """Give the object a second name, or copy its bytes where that cannot be.

        No object is ever changed in place, so two keys may share one file. Raises NotFound.
        """
        check_key(key)
        if not self.exists(source):
            raise NotFound(source)
        with os_errors(self._where(key), f"copy {source}"):
            if self._link(source, key):
                return
            with self._open(source) as content, self._committing(key) as file:
                shutil.copyfileobj(content, file, COPY_BYTES)

    def exists(self, key: str) -> bool:
        check_key(key)
        with os_errors(self._where(key), "look up"):
            return self._is_object(self._path(key))

    def list(self, prefix: str) -> Iterator[str]:
        check_prefix(prefix)
        folder, slash, _ = prefix.rpartition("/")
        return self._walk(folder + slash, prefix)

    def entries(self, prefix: str) -> Iterator[Entry]:
        """As `list`, with the size and age of each object; one that vanishes meanwhile is none."""
        for key in self.list(prefix):
            with os_errors(self._where(key), "look up"), contextlib.suppress(FileNotFoundError):
                found = self._path(key).stat()
                yield Entry(key, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))

    def delete(self, key: str) -> None:
        """Remove the object and the folders it leaves empty; no error when it is absent."""
        if not self.exists(key):
            return
        path = self._path(key)
        with os_errors(self._where(key), "delete"), self._locked(key):
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the first folder in use ends it
                sync_directory(path.parent)
                for folder in path.parents[: len(key.split("/")) - 1]:
                    folder.rmdir()

    def _where(self, key: str) -> str:
        return f"store {self._root}, key {key}"

    def _path(self, key: str) -> Path:
        return self._root / key

    def _open(self, key: str) -> BinaryIO:
        check_key(key)
        with os_errors(self._where(key), "read"):
            try:
                return self._path(key).open("rb")
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
                raise NotFound(key) from error

    def _walk(self, folder: str, prefix: str) -> Iterator[str]:
        """Keys under `folder` ("" or ending in "/") that start with `prefix`, in order."""
        with os_errors(f"store {self._root}, prefix {prefix}", "list"):
            try:
                with os.scandir(self._path(folder)) as entries:
                    # "a-b/c" sorts before "a/b": a folder compares with its slash.
                    names = sorted(e.name + "/" if e.is_dir() else e.name for e in entries)
            except (FileNotFoundError, NotADirectoryError):
                return
        for name in names:
            key = folder + name
            if key == RESERVED_SEGMENT + "/" or not key.startswith(prefix):
                continue
            if name.endswith("/"):
                yield from self._walk(key, prefix)
            elif is_key(key):
                yield key

    @contextlib.contextmanager
    def _committing(
        self, key: str, *, if_absent: bool = False, if_version: str | None = None
    ) -> Iterator[BinaryIO]:
        """Yield a file that gets the name of `key` when the block ends well."""
        with self._temporary() as (path, file):
            yield file
            sync_file(file)
            with self._locked(key):
                self._commit(path, key, if_absent=if_absent, if_version=if_version)

    def _commit(
        self, temporary: Path, key: str, *, if_absent: bool, if_version: str | None
    ) -> None:
        """Give the temporary file its name. The key's lock is held."""
        target = self._path(key)
        if if_version is not None and self._version(target) != if_version:
            raise PreconditionFailed(key)
        for _ in range(COMMIT_ATTEMPTS):
            try:
                make_directory(target.parent)
                if if_absent:
                    os.link(temporary, target)
                else:
                    temporary.replace(target)
            except FileNotFoundError:
                continue
            except FileExistsError as error:
                if if_absent and self._is_object(target):
                    raise PreconditionFailed(key) from error
                raise
            sync_directory(target.parent)
            return
        raise StoreUnavailable(
            f"{self._where(key)}: its folder vanished {COMMIT_ATTEMPTS} times while writing",
            remedy="stop what deletes it, then try again",
        )

    def _link(self, source: str, key: str) -> bool:
        """Whether `key`, which was free, is now a hard link to `source`."""
        target = self._path(key)
        with self._locked(key):
            make_directory(target.parent)
            try:
                os.link(self._path(source), target)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                return False
            sync_directory(target.parent)
        return True

    @staticmethod
    def _is_object(path: Path) -> bool:
        # Not Path.is_file: since Python 3.13 it says False for a path it may not look at.
        try:
            return stat.S_ISREG(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    @staticmethod
    def _version(path: Path) -> str | None:
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Hold the lock that guards the names of `key`; waits for it."""
        make_directory(self._locks_folder)
        number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % NUM_LOCKS
        path = self._locks_folder / f"{number:02d}"
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[Path, BinaryIO]]:
        """A locked temporary file, removed at the end unless it was renamed."""
        make_directory(self._temporary_folder)
        if not self._swept:
            self._sweep()
            self._swept = True
        path, file = self._create_temporary()
        try:
            with file:
                yield path, file
                path.unlink(missing_ok=True)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _create_temporary(self) -> tuple[Path, BinaryIO]:
        while True:
            path = self._temporary_folder / uuid.uuid4().hex
            # 0o666: the umask decides who may read the object, as for any other file.
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
            file = os.fdopen(descriptor, "wb")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return path, file
            file.close()  # swept by another writer between creation and lock

    def _sweep(self) -> None:
        """Remove the temporary files whose writers are dead: those nobody has locked."""
        for path in self._temporary_folder.iterdir():
            with contextlib.suppress(FileNotFoundError, BlockingIOError, PermissionError):
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(descriptor)
