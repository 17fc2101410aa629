"""The local store when the disk, the permissions, the machine or other processes fail it."""

from __future__ import annotations

import errno
import gc
import os
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from selfalign.errors import (
    ConfigurationError,
    SelfAlignError,
    StorageFull,
    StoreDenied,
    StoreUnavailable,
)
from selfalign.store.base import NotFound, Store
from selfalign.store.files import os_errors, replacing
from selfalign.store.local import LocalStore

from .racing import Racers, race, racers

MIB = 1 << 20


@contextmanager
def mounted(folder: Path) -> Iterator[bool]:
    """A disk of 2 MiB at `folder`; False where this user may not mount."""
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        success = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        success = False
    try:
        yield success
    finally:
        if success:
            subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    """3 MiB. Ask for it before `tiny_disk`."""
    path = tmp_path / "large"
    path.write_bytes(bytes(3 * MIB))
    return path


@pytest.fixture
def store_with_large(store: Store, large_file: Path) -> Store:
    """A store of either kind that holds 3 MiB under `large`. Ask for it before `tiny_disk`."""
    store.upload(large_file, "large")
    return store


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory where no file can exceed 2 MiB: a small disk, or else a limit on files."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(disk) as success:
        if success:
            yield disk
            return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, hard))
    try:
        yield disk
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def temporaries(store: LocalStore) -> list[str]:
    """Names of temporary files, live or left."""
    folder = Path(store.url, ".selfalign", "temporary")
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def test_a_full_disk_is_storage_full_and_keeps_what_was_there(tiny_disk: Path) -> None:
    store = LocalStore(tiny_disk / "store")
    store.write("object", b"old")
    with pytest.raises(StorageFull, match="key object: cannot write: "):
        store.write("object", bytes(3 * MIB))
    assert store.read("object") == b"old"
    assert list(store.list("")) == ["object"]
    assert temporaries(store) == []
    store.write("object", bytes(MIB))  # the failed write takes up no space


def test_an_upload_to_a_full_disk_leaves_no_object(large_file: Path, tiny_disk: Path) -> None:
    store = LocalStore(tiny_disk / "store")
    with pytest.raises(StorageFull, match=r"key weights: cannot upload .*large: "):
        store.upload(large_file, "weights")
    assert list(store.list("")) == []
    assert temporaries(store) == []


def test_a_link_stays_and_what_it_leads_to_is_written_whole_or_not_at_all(tiny_disk: Path) -> None:
    real, link = tiny_disk / "real", tiny_disk / "link"
    real.write_bytes(b"old")
    link.symlink_to("real")
    with pytest.raises(OSError, match="No space left"), replacing(link) as file:
        file.write(bytes(3 * MIB))
    assert real.read_bytes() == b"old"
    with replacing(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert sorted(path.name for path in tiny_disk.iterdir()) == ["link", "real"]


# s3transfer leaves the response open when writing it to disk fails.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_a_download_to_a_full_disk_leaves_the_old_file(
    store_with_large: Store, tiny_disk: Path
) -> None:
    target = tiny_disk / "target"
    target.write_bytes(b"old")
    with pytest.raises(StorageFull, match="key large: cannot download to "):
        store_with_large.download("large", target)
    assert target.read_bytes() == b"old"
    assert list(tiny_disk.iterdir()) == [target]
    gc.collect()


def test_a_disk_that_turned_read_only_can_be_read_and_not_written(tmp_path: Path) -> None:
    with mounted(tmp_path) as success:
        if not success:
            pytest.skip("needs the permission to mount")
        store = LocalStore(tmp_path)
        store.write("object", b"old")
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        with pytest.raises(StoreDenied, match="read-only"):
            store.write("object", b"new")
        with pytest.raises(StoreDenied, match="read-only"):
            store.delete("object")
        again = LocalStore(tmp_path)
        assert again.read("object") == b"old"
        assert list(again.list("")) == ["object"]
        store.delete("never/written")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        *((code, StorageFull) for code in (errno.EDQUOT, errno.EIO)),
        (errno.EPERM, StoreDenied),
        (errno.EROFS, StoreDenied),
        (errno.ESTALE, StoreUnavailable),
        (errno.EOPNOTSUPP, ConfigurationError),
    ],
)
def test_what_the_kernel_says_decides_whether_to_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[SelfAlignError]
) -> None:
    store = LocalStore(tmp_path)
    store.write("object", b"old")

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(expected, match=f"store {tmp_path}, key object: cannot write") as caught:
            store.write("object", b"new")
    assert caught.value.remedy
    assert store.read("object") == b"old"
    assert temporaries(store) == []


def test_no_room_for_temporary_files_is_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)  # none of them can be written
    with pytest.raises(StorageFull, match="No usable temporary dir"), os_errors("export", "go on"):
        tempfile.gettempdir()


@pytest.fixture
def public_root() -> Iterator[Path]:
    """A root that every user can reach; `tmp_path` is its owner's alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_stranger_is_denied_with_path_and_owner(public_root: Path) -> None:
    store = LocalStore(public_root)
    store.write("shared", b"yours")
    (public_root / "shared").chmod(0o600)
    places = {"write": ".selfalign/temporary/", "read": "shared"}
    told = race(*[("stranger", str(public_root), action, "shared") for action in places])
    for said, path in zip(told, places.values(), strict=True):
        assert said.startswith("StoreDenied: "), said
        for part in (f"{public_root}/{path}", "uid 65534", "belongs to uid 0", "remedy: run as"):
            assert part in said, said
    assert store.read("shared") == b"yours"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_reading_needs_no_permission_to_write(public_root: Path) -> None:
    LocalStore(public_root).write("shared", b"yours")
    assert race(("stranger", str(public_root), "read", "shared")) == ["done"]


def test_a_file_where_the_store_should_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="expected a directory, found a file"):
        LocalStore(tmp_path / "file")
    below = LocalStore(tmp_path / "file" / "store")
    with pytest.raises(ConfigurationError, match="a file stands where a directory is needed"):
        below.write("a", b"")


def test_a_key_cannot_be_the_folder_of_another(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.write("a", b"object")
    store.write("b/c", b"object")
    for key in ("a/below", "a/far/below", "b"):
        for if_absent in (False, True):
            with pytest.raises(ConfigurationError, match=f"key {key}: cannot write"):
                store.write(key, b"", if_absent=if_absent)
    assert list(store.list("")) == ["a", "b/c"]


def test_processes_that_delete_and_write_in_one_folder_do_not_disturb_each_other(
    tmp_path: Path,
) -> None:
    store = LocalStore(tmp_path)
    assert race(*[("churn", store.url, f"deep/folder/{n}", "50") for n in range(3)]) == ["done"] * 3
    assert list(store.list("")) == []
    assert [path.name for path in tmp_path.iterdir()] == [".selfalign"]


@pytest.mark.parametrize("if_absent", [False, True])
def test_a_folder_that_vanishes_before_the_name_is_given_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, if_absent: bool
) -> None:
    store = LocalStore(tmp_path)
    vanished: list[str | Path] = []

    def vanishing(change: Callable[..., None]) -> Callable[..., None]:
        def wrapped(source: object, target: str | Path) -> None:
            if len(vanished) < 3:
                Path(target).parent.rmdir()
                vanished.append(target)
            change(source, target)

        return wrapped

    monkeypatch.setattr(os, "link", vanishing(os.link))
    monkeypatch.setattr(os, "rename", vanishing(os.rename))
    monkeypatch.setattr(os, "replace", vanishing(os.replace))
    store.write("folder/object", b"data", if_absent=if_absent)
    assert len(vanished) == 3
    assert store.read("folder/object") == b"data"


# The calls of fsync in a write fall before, between and after the steps that change names.
# In a fresh store: three new folders, the content, the locks' folder, the object's folder, its
# name. In a used one: the content, its name.
FSYNCS = [
    *((None, nth, None) for nth in range(1, 7)),
    *((None, 7, b"new"), (b"old", 1, b"old"), (b"old", 2, b"new")),
]


def test_a_writer_killed_at_any_fsync_leaves_the_old_object_or_the_new(tmp_path: Path) -> None:
    stores = [LocalStore(tmp_path / str(number)) for number in range(len(FSYNCS))]
    deaths = []
    for store, (old, nth, _) in zip(stores, FSYNCS, strict=True):
        if old is not None:
            store.write("folder/object", old)
        deaths.append(("die", store.url, "folder/object", "new", str(nth)))
    assert race(*deaths) == [""] * len(deaths)
    for store, (old, nth, expected) in zip(stores, FSYNCS, strict=True):
        if expected is None:
            assert list(store.list("")) == [], (old, nth)
            with pytest.raises(NotFound):
                store.read("folder/object")
        else:
            assert list(store.list("")) == ["folder/object"], (old, nth)
            assert store.read("folder/object") == expected, (old, nth)
        LocalStore(Path(store.url)).write("folder/object", b"next")
        assert store.read("folder/object") == b"next"
        assert temporaries(store) == []


def test_a_writer_killed_in_the_middle_of_its_content_leaves_nothing_visible(
    tmp_path: Path,
) -> None:
    store = LocalStore(tmp_path / "store")
    store.write("weights", b"old")
    with half_uploaded(store, tmp_path / "pipe", "weights") as processes:
        processes.kill()
        processes.results()
    assert len(temporaries(store)) == 1
    assert list(store.list("")) == ["weights"]
    assert store.read("weights") == b"old"
    LocalStore(tmp_path / "store").write("other", b"")  # another process's first write
    assert temporaries(store) == []


def test_leftovers_are_swept_while_a_live_writer_keeps_its_file(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    with half_uploaded(store, tmp_path / "dead-pipe", "dead") as processes:
        processes.kill()
        processes.results()
    with half_uploaded(store, tmp_path / "pipe", "alive", b"second half") as processes:
        assert len(temporaries(store)) == 1  # the live one's first write swept the dead one's
        LocalStore(tmp_path / "store").write("other", b"")
        assert len(temporaries(store)) == 1
        assert list(store.list("")) == ["other"]
    assert store.read("alive") == b"first half" * MIB + b"second half"
    assert temporaries(store) == []


@contextmanager
def half_uploaded(store: LocalStore, pipe: Path, key: str, rest: bytes = b"") -> Iterator[Racers]:
    """A process that has written part of an object and waits for the rest, which ends it."""
    os.mkfifo(pipe)
    with racers(("upload", store.url, key, str(pipe))) as processes:
        processes.go()
        with pipe.open("wb", buffering=0) as content:
            content.write(b"first half" * MIB)  # returns when the pipe's buffer holds the last
            yield processes
            content.write(rest)
        processes.results()
