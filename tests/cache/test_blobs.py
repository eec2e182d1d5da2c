"""The files of the layer cache: used blobs stay, unused ones are removed, the oldest first."""

from __future__ import annotations

import math
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shiftergw.cache import blobs
from shiftergw.cache.blobs import BlobPaths, CachedBlobs
from shiftergw.errors import PullError
from shiftergw.model.images import Digest
from shiftergw.plumbing.disk_budget import DiskBudget
from shiftergw.plumbing.locks import try_lock, unlock
from tests.parts import need, small_disk
from tests.plumbing.bad_inodes import bad_inode
from tests.tracing import without_tracing

NOW = 1_000_000.0
OLD = NOW - 1000
CONTENT = b"blob"


def blob(root: Path, name: str, use_time: float = OLD, content: bytes = CONTENT) -> BlobPaths:
    """Make a whole blob that was last used at some time."""
    paths = BlobPaths.of(root, Digest.of(name.encode()))
    paths.whole.parent.mkdir(parents=True, exist_ok=True)
    return BlobPaths(write_file(paths.whole, use_time, content))


def write_file(path: Path, use_time: float = OLD, content: bytes = CONTENT) -> Path:
    """Make a file that was last touched at some time."""
    path.write_bytes(content)
    os.utime(path, (use_time, use_time))
    return path


def hold_blob(paths: BlobPaths) -> int:
    """Hold a blob; return the descriptor."""
    descriptor = blobs.hold(paths.whole, len(CONTENT))
    assert descriptor is not None
    return descriptor


def test_the_sweep_removes_old_files(tmp_path: Path) -> None:
    """Public and private blobs and parts that have not been used since a time are removed."""
    unused_blobs = [blob(tmp_path, "a"), blob(tmp_path / blobs.PRIVATE / ("0" * 32), "b")]
    part = write_file(blob(tmp_path, "part").whole).rename(BlobPaths(unused_blobs[0].whole).partial)
    fresh = blob(tmp_path, "fresh", NOW)
    partial = write_file(BlobPaths.of(tmp_path, Digest.of(b"left")).partial)
    foreign = write_file(fresh.whole.with_name("notes.txt"))
    assert CachedBlobs(tmp_path).sweep(NOW) == 3
    assert not any(
        path.exists() for path in (*(paths.whole for paths in unused_blobs), part, partial)
    )
    assert sorted(fresh.whole.parent.iterdir()) == sorted([fresh.whole, foreign])


def test_a_discard_during_the_removal_by_another_pull(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blob in use is no longer in the cache: the pull that uses it fetches it once more."""
    paths = blob(tmp_path, "damaged")
    inode = paths.whole.stat().st_ino
    lstat = Path.lstat

    def look_and_remove(path: Path) -> os.stat_result:
        status = lstat(path)
        path.unlink()
        return status

    monkeypatch.setattr(Path, "lstat", look_and_remove)
    digest = Digest.of(b"sound")
    assert blobs.discard(paths, digest, threading.Event(), {inode}) is True


def test_there_may_be_no_cache_yet(tmp_path: Path) -> None:
    """Before the first download there is nothing to remove."""
    assert CachedBlobs(tmp_path / "cache").sweep(NOW) == 0


def test_a_growing_part_keeps_its_blob(tmp_path: Path) -> None:
    """A blob is as young as the youngest of its files: a download may be resumed from it."""
    paths = blob(tmp_path, "a")
    write_file(paths.partial, NOW)
    assert CachedBlobs(tmp_path).sweep(NOW) == 0
    assert paths.partial.exists()


def test_a_held_blob_stays(tmp_path: Path) -> None:
    """A blob in use is not removed, however old; each use makes a blob young."""
    first, second = blob(tmp_path, "used"), blob(tmp_path, "again")
    descriptor = hold_blob(first)
    os.close(hold_blob(second))
    os.utime(first.whole, (OLD, OLD))
    assert CachedBlobs(tmp_path).sweep(NOW) == 0
    os.close(descriptor)
    assert CachedBlobs(tmp_path).sweep(NOW) == 1
    assert second.whole.exists()


def test_the_part_of_a_waiting_download_stays(tmp_path: Path) -> None:
    """The part of a download that waits for its registry is not removed."""
    paths = blob(tmp_path, "a")
    part = paths.whole.rename(paths.partial)
    os.utime(part, (OLD, OLD))
    descriptor = try_lock(paths.lock)
    assert descriptor is not None
    os.utime(paths.lock, (OLD, OLD))
    assert CachedBlobs(tmp_path).sweep(NOW) == 0
    unlock(paths.lock, descriptor)
    assert CachedBlobs(tmp_path).sweep(NOW) == 1
    assert list(part.parent.iterdir()) == []


def test_the_lock_of_a_dead_process_goes(tmp_path: Path) -> None:
    """A lock without a holder and without a blob is removed."""
    paths = blob(tmp_path, "a")
    write_file(paths.whole.rename(paths.lock))
    assert CachedBlobs(tmp_path).sweep(NOW) == 0
    assert not paths.lock.exists()


def test_a_blob_of_another_size_is_not_held(tmp_path: Path) -> None:
    """A blob of another size, a link to a blob, and an absent blob cannot be held."""
    paths = blob(tmp_path, "a")
    assert blobs.hold(paths.whole, 5) is None
    link = paths.whole.with_name("b" * 64)
    link.symlink_to(paths.whole)
    assert blobs.hold(link, len(CONTENT)) is None
    paths.whole.unlink()
    assert blobs.hold(paths.whole, len(CONTENT)) is None


@without_tracing
def test_a_hold_and_a_sweep_at_the_same_moment(tmp_path: Path) -> None:
    """A held blob exists, however a hold and a sweep coincide."""
    paths = blob(tmp_path, "a")
    stop = threading.Event()
    faults: list[str] = []

    @without_tracing
    def hold() -> None:
        while not stop.is_set():
            descriptor = blobs.hold(paths.whole, len(CONTENT))
            if descriptor is not None:
                if not paths.whole.exists():
                    faults.append("it went")
                os.close(descriptor)

    holders = [threading.Thread(target=hold) for _ in range(2)]
    for holder in holders:
        holder.start()
    removals = 0
    try:
        for _ in range(500):
            if CachedBlobs(tmp_path).sweep(math.inf):
                removals += 1
                blob(tmp_path, "a")
    finally:
        stop.set()
        for holder in holders:
            holder.join()
    assert removals > 0
    assert faults == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Give a file system of 1 MiB."""
    with small_disk(tmp_path / "disk", "size=1m"):
        yield tmp_path / "disk"


def test_room_is_made_by_the_oldest(disk: Path) -> None:
    """The least recently used blobs make room; named blobs and blobs in use stay."""
    piece = bytes(150_000)
    ages = [
        blob(disk / blobs.PRIVATE / ("0" * 32), "private", NOW - 5, piece),
        blob(disk, "held", NOW - 4, piece),
        blob(disk, "named", NOW - 3, piece),
        blob(disk, "old", NOW - 2, piece),
        blob(disk, "young", NOW - 1, piece),
    ]
    descriptor = blobs.hold(ages[1].whole, len(piece))
    assert descriptor is not None
    os.utime(ages[1].whole, (NOW - 4, NOW - 4))
    DiskBudget((CachedBlobs(disk),)).make_room(disk, 500_000, {ages[2].whole})
    os.close(descriptor)
    assert [paths.whole.exists() for paths in ages] == [False, True, True, False, True]


def test_a_blob_that_cannot_be_touched_is_not_left_open(disk: Path) -> None:
    """On a file system that became read-only, each attempt closes the file that it opened."""
    paths = blob(disk, "a")
    subprocess.run([need("mount"), "-o", "remount,ro", str(disk)], check=True)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(PullError, match="cannot read or write its cache"):
        blobs.hold(paths.whole, len(CONTENT))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("size", [500_000, 1 << 60])
def test_no_blob_is_evicted_in_vain(disk: Path, size: int) -> None:
    """No blob is removed if there is room, or if the removal of all would not make enough."""
    paths = blob(disk, "a")
    DiskBudget((CachedBlobs(disk),)).make_room(disk, size, set())
    assert paths.whole.exists()


def test_a_part_that_cannot_be_removed(tmp_path: Path) -> None:
    """The error gives the reason, and the blob's lock is free afterwards."""
    paths = blob(tmp_path, "a")
    paths.partial.mkdir()
    with pytest.raises(PullError, match="cannot read or write its cache"):
        blobs.give_up(paths)
    descriptor = try_lock(paths.lock)
    assert descriptor is not None
    unlock(paths.lock, descriptor)


def test_a_cache_that_cannot_be_read(tmp_path: Path) -> None:
    """The error gives the reason."""
    blob(tmp_path, "a").lock.mkdir()
    with pytest.raises(PullError, match="cannot read or write its cache"):
        CachedBlobs(tmp_path).sweep(NOW)


@pytest.mark.parametrize("suffix", ["whole", "partial", "lock"])
def test_a_damaged_inode_spoils_no_other_blob(tmp_path: Path, suffix: str) -> None:
    """Room is made by the other blobs, and the sweep goes on."""
    bad_blob, unused_blob, old_blob = (
        blob(tmp_path, name) for name in ("damaged", "unused", "old")
    )
    path = write_file(getattr(bad_blob, suffix))
    kind = CachedBlobs(tmp_path)
    with bad_inode(path):
        removable = {files.main: files for files in kind.list_removable()}
        assert removable[unused_blob.whole].remove()
        if suffix != "whole":
            assert removable[bad_blob.whole].size >= len(CONTENT)
            assert not removable[bad_blob.whole].remove()
        assert kind.sweep(NOW) == 1
    assert [old_blob.whole.exists(), bad_blob.whole.exists()] == [False, True]
