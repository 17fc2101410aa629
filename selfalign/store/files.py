"""Local files: written whole or not at all, hashed, kept inside their directory; and what an
OSError means for the scheduler."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from selfalign.errors import (
    ConfigurationError,
    DataError,
    SelfAlignError,
    StorageFull,
    StoreDenied,
    StoreUnavailable,
)
from selfalign.store.keys import is_key

COPY_BYTES = 1 << 20  # per read and write: large enough that system calls cost nothing

_FULL = {
    errno.ENOSPC: "no space is left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would exceed the largest size allowed",
    errno.EIO: "the disk fails",
}
_DENIED = {errno.EACCES, errno.EPERM}
_MISPLACED = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY}
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}


@contextlib.contextmanager
def os_errors(where: str, action: str) -> Iterator[None]:
    """Turn any OSError inside into the error class that says whether to try again.

    Args:
        where: what the message starts with: a store and key, or a path.
        action: the verb that failed, e.g. "write".
    """
    try:
        yield
    except OSError as error:
        raise translate_os_error(error, where, action) from error


def translate_os_error(error: OSError, where: str, action: str) -> SelfAlignError:
    """The SelfAlignError that an OSError stands for."""
    path = Path(os.fsdecode(error.filename)) if error.filename else None
    code = error.errno or 0
    reason = f"{where}: cannot {action}: {error.strerror or error}" + (f": {path}" if path else "")
    if code in _FULL or "No usable temporary directory" in reason:  # Python's word for full disks
        return StorageFull(
            f"{where}: cannot {action}: {_FULL.get(code, error.strerror)}"
            + (f": {path}" if path else ""),
            remedy="free space or raise the quota (TMPDIR and SELFALIGN_CACHE_DIR move scratch "
            "space and copies elsewhere), and look at the kernel's log for disk errors",
        )
    if code == errno.EROFS:
        return StoreDenied(
            reason,
            remedy="mount it writable, or use another place; ext4 and xfs turn read-only by "
            "themselves after disk errors, which the kernel's log tells",
        )
    if code in _DENIED:
        return StoreDenied(
            f"{reason}; {_permissions(path)}" if path else reason,
            remedy="run as the owner, or give this user the permission with chown, chmod or "
            "(in a pod) securityContext.fsGroup",
        )
    if code in _MISPLACED:
        return ConfigurationError(
            f"{reason}; a file stands where a directory is needed, or the reverse",
            remedy="move it out of the way, or use another path",
        )
    if code in _UNSUPPORTED:
        return ConfigurationError(
            f"{reason}; a store needs one file system with hard links and file locks",
            remedy="put the store on one local or NFSv4 file system, or use s3://",
        )
    if code == errno.ENAMETOOLONG:
        return ConfigurationError(reason, remedy="use a shorter path")
    if code == errno.ENOENT:
        return DataError(reason, remedy="check that the file was written and is still there")
    return StoreUnavailable(reason, remedy="try again; check the file system if it persists")


def explain_os_error(error: OSError, doing: str, place: Path | None = None) -> Exception:
    """What to raise for an error outside a store: a full disk or denied access told as such.

    Anything else is as likely a bug: the error itself, which keeps its traceback.

    Args:
        doing: what was under way, such as a stage.
        place: where it was at work, for an error that does not name a file.
    """
    told = translate_os_error(error, doing, "go on")
    if not isinstance(told, StorageFull | StoreDenied):
        return error
    where = error.filename or place or "this machine"
    return type(told)(f"{doing}: {where}: {error.strerror}", remedy=told.remedy)


def _permissions(path: Path) -> str:
    """Who we are, and who owns the nearest existing ancestor of `path`."""
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            info = place.stat()
            return (
                f"this process is uid {os.geteuid()} gid {os.getegid()}, {place} belongs to "
                f"uid {info.st_uid} gid {info.st_gid} with mode {info.st_mode & 0o7777:04o}"
            )
    return f"this process is uid {os.geteuid()} gid {os.getegid()}"


@contextlib.contextmanager
def replacing(target: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Yield a file that becomes `target` when the block ends well, and vanishes otherwise.

    Missing parents are made. The content is on disk before the name is. Raises OSError, and
    ConfigurationError where a pipe or a device has the name, such as /dev/null.

    Args:
        mode: of the file from its first moment on, less the umask.
    """
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise ConfigurationError(
            f"{target}: it is a pipe or a device, not a file", remedy="name a file"
        )
    if target.is_symlink():  # what it leads to is written; /dev/stdout stays what it is
        target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            sync_file(file)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def write_whole(target: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file as `replacing` does."""
    with replacing(target, mode) as file:
        file.write(data)


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes.

    Raises OSError, also for a pipe, which may never be written, and a device, which may never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it holds more than {limit} bytes", str(path))
    return content


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex, streamed."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def local_target(directory: Path, name: str) -> Path:
    """Where in `directory` the file that a store calls `name` goes; makes the folders.

    Raises DataError when it would be elsewhere: for a name with "..", or a symbolic link on the
    way.
    """
    if not is_key(name):
        raise DataError(
            f"{directory}: {name[:100]!r} is not the name of a file below it",
            remedy="the store's object that names it is damaged or forged; make it again",
        )
    target = directory / name
    for place in (target, *target.parents[: name.count("/") + 1]):
        if place.is_symlink():
            raise DataError(
                f"{place}: expected a file or a directory, found a symbolic link",
                remedy="remove it; copies from a store are kept in directories of their own",
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def sync_file(file: BinaryIO) -> None:
    """Put what was written on disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Put the names in a directory on disk: a rename is durable only then."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Make a directory and its parents, durably.

    Raises FileNotFoundError when a parent was removed meanwhile. When a file stands there,
    whoever uses the directory gets NotADirectoryError.
    """
    if directory.is_dir():
        return
    make_directory(directory.parent)
    with contextlib.suppress(FileExistsError):
        directory.mkdir()
    sync_directory(directory.parent)
