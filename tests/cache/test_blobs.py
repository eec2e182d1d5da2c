"""The files of the layer cache: what is used stays, what nobody needs goes, the oldest first."""

from __future__ import annotations

import math
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shiftergw.cache import blobs
from shiftergw.cache.blobs import BlobPaths
from shiftergw.errors import PullError
from shiftergw.image import Digest
from shiftergw.plumbing.locks import unlock
from tests.parts import need, small_disk

NOW = 1_000_000.0
OLD = NOW - 1000
CONTENT = b"blob"


def blob(root: Path, name: str, used: float = OLD, content: bytes = CONTENT) -> BlobPaths:
    """Make a whole blob that was last used at some time."""
    paths = BlobPaths.of(root, Digest.of(name.encode()))
    paths.whole.parent.mkdir(parents=True, exist_ok=True)
    return BlobPaths(aged(paths.whole, used, content))


def aged(path: Path, used: float = OLD, content: bytes = CONTENT) -> Path:
    """Make a file that was last touched at some time."""
    path.write_bytes(content)
    os.utime(path, (used, used))
    return path


def held(paths: BlobPaths) -> int:
    """Hold a blob that is there."""
    descriptor = blobs.hold(paths.whole, len(CONTENT))
    assert descriptor is not None
    return descriptor


def test_the_sweep_removes_what_is_old(tmp_path: Path) -> None:
    """Blobs and parts that were not used since then go, everybody's and private ones."""
    gone = [blob(tmp_path, "a"), blob(tmp_path / blobs.PRIVATE / ("0" * 32), "b")]
    part = aged(blob(tmp_path, "part").whole).rename(BlobPaths(gone[0].whole).partial)
    fresh = blob(tmp_path, "fresh", NOW)
    left = aged(BlobPaths.of(tmp_path, Digest.of(b"left")).partial)
    foreign = aged(fresh.whole.with_name("notes.txt"))
    assert blobs.sweep(tmp_path, NOW) == 3
    assert not any(path.exists() for path in (*(one.whole for one in gone), part, left))
    assert sorted(fresh.whole.parent.iterdir()) == sorted([fresh.whole, foreign])


def test_a_discard_sees_what_another_pull_removes_just_then(
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
    assert blobs.sweep(tmp_path / "cache", NOW) == 0


def test_a_part_that_grows_keeps_what_was_there(tmp_path: Path) -> None:
    """A blob is as young as the youngest of its files: a download may be resumed from it."""
    paths = blob(tmp_path, "a")
    aged(paths.partial, NOW)
    assert blobs.sweep(tmp_path, NOW) == 0
    assert paths.partial.exists()


def test_what_is_held_stays(tmp_path: Path) -> None:
    """A blob in use is not removed, however old; and to use one makes it young."""
    used, again = blob(tmp_path, "used"), blob(tmp_path, "again")
    descriptor = held(used)
    os.close(held(again))
    os.utime(used.whole, (OLD, OLD))
    assert blobs.sweep(tmp_path, NOW) == 0
    os.close(descriptor)
    assert blobs.sweep(tmp_path, NOW) == 1
    assert again.whole.exists()


def test_what_is_downloaded_stays(tmp_path: Path) -> None:
    """Nobody takes a part away from a download that waits for its registry."""
    paths = blob(tmp_path, "a")
    part = paths.whole.rename(paths.partial)
    os.utime(part, (OLD, OLD))
    locked = blobs.lock(paths)
    assert locked is not None
    os.utime(paths.lock, (OLD, OLD))
    assert blobs.sweep(tmp_path, NOW) == 0
    unlock(paths.lock, locked)
    assert blobs.sweep(tmp_path, NOW) == 1
    assert list(part.parent.iterdir()) == []


def test_the_lock_of_a_dead_process_goes(tmp_path: Path) -> None:
    """A lock that nobody holds, and no blob belongs to, is removed."""
    paths = blob(tmp_path, "a")
    aged(paths.whole.rename(paths.lock))
    assert blobs.sweep(tmp_path, NOW) == 0
    assert not paths.lock.exists()


def test_a_blob_of_another_size_is_not_held(tmp_path: Path) -> None:
    """Neither is one that is not there, nor a link to one."""
    paths = blob(tmp_path, "a")
    assert blobs.hold(paths.whole, 5) is None
    link = paths.whole.with_name("b" * 64)
    link.symlink_to(paths.whole)
    assert blobs.hold(link, len(CONTENT)) is None
    paths.whole.unlink()
    assert blobs.hold(paths.whole, len(CONTENT)) is None


def test_a_sweep_does_not_take_what_somebody_holds_just_then(tmp_path: Path) -> None:
    """However the two meet: who holds a blob has one that lies there."""
    paths = blob(tmp_path, "a")
    stop = threading.Event()
    faults: list[str] = []

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
    removed = 0
    try:
        for _ in range(500):
            if blobs.sweep(tmp_path, math.inf):
                removed += 1
                blob(tmp_path, "a")
    finally:
        stop.set()
        for holder in holders:
            holder.join()
    assert removed > 0
    assert faults == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Give a file system of 1 MiB."""
    with small_disk(tmp_path / "disk", "size=1m"):
        yield tmp_path / "disk"


def test_room_is_made_by_the_oldest(disk: Path) -> None:
    """As many go as need be, the one unused for longest first; what is named, or held, stays."""
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
    blobs.make_room(disk, 500_000, {ages[2].whole})
    os.close(descriptor)
    assert [one.whole.exists() for one in ages] == [False, True, True, False, True]


def test_a_blob_that_cannot_be_touched_is_not_left_open(disk: Path) -> None:
    """On a file system that became read-only, say after a fault, each try closes what it opened."""
    paths = blob(disk, "a")
    subprocess.run([need("mount"), "-o", "remount,ro", str(disk)], check=True)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(PullError, match="cannot read or write its cache"):
        blobs.hold(paths.whole, len(CONTENT))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("needed", [500_000, 1 << 60])
def test_nothing_goes_for_nothing(disk: Path, needed: int) -> None:
    """All stays where there is room already, and where there would not be enough without it."""
    paths = blob(disk, "a")
    blobs.make_room(disk, needed, set())
    assert paths.whole.exists()


def test_a_part_that_cannot_be_removed(tmp_path: Path) -> None:
    """The reason is told, and nobody waits for the blob's lock from then on."""
    paths = blob(tmp_path, "a")
    paths.partial.mkdir()
    with pytest.raises(PullError, match="cannot read or write its cache"):
        blobs.give_up(paths)
    locked = blobs.lock(paths)
    assert locked is not None
    unlock(paths.lock, locked)


def test_a_cache_that_cannot_be_read(tmp_path: Path) -> None:
    """The reason is told."""
    blob(tmp_path, "a").lock.mkdir()
    with pytest.raises(PullError, match="cannot read or write its cache"):
        blobs.sweep(tmp_path, NOW)
