"""A place that sends a blob slowly holds up its own pulls, and those of no other place."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.cache import blob_cache
from shiftergw.cache.blob_cache import BlobCaches
from shiftergw.cache.blobs import BlobPaths, CachedBlobs
from shiftergw.cache.download_locks import mark_of
from shiftergw.errors import RetryLater
from shiftergw.model.images import Descriptor, Digest, ResolvedImage
from shiftergw.plumbing.disk_budget import DiskBudget
from shiftergw.plumbing.locks import try_lock, unlock
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause, shield
from shiftergw.ports import BlobSink
from tests.installed_reactor import reactor

CONTENT = os.urandom(200_000)
HALF = len(CONTENT) // 2
BLOB = Descriptor(Digest.of(CONTENT), len(CONTENT))


class SlowSource:
    """A source that sends half of the blob, and the rest when the test says so."""

    def __init__(self) -> None:
        """Send nothing yet."""
        self.half_sent: Deferred[None] = Deferred()
        self.may_end: Deferred[None] = Deferred()

    async def __call__(self, offset: int, sink: BlobSink) -> None:
        """Send the blob."""
        sink.begin(0)
        sink.write(CONTENT[:HALF])
        self.half_sent.callback(None)
        await shield(self.may_end)
        sink.write(CONTENT[HALF:])


class FastSource:
    """A source that sends what it is asked for at once, unless `size` bytes are all it has."""

    def __init__(self, size: int = len(CONTENT)) -> None:
        """Send nothing yet; `offsets` are those that it was asked for."""
        self.offsets: list[int] = []
        self._size = size

    async def __call__(self, offset: int, sink: BlobSink) -> None:
        """Send the blob from `offset` on."""
        self.offsets.append(offset)
        sink.begin(offset)
        sink.write(CONTENT[offset : self._size])


class Site:
    """The caches of two processes, one of which downloads from a slow registry."""

    def __init__(self, directory: Path, threads: Threads) -> None:
        """Keep the blobs below `directory`."""
        self.directory = directory
        self.slow = SlowSource()
        self._caches = [BlobCaches(directory, threads, reactor) for _ in range(2)]
        self._download: Deferred[bytes] | None = None
        self.paths = BlobPaths.of(directory, BLOB.digest)

    async def begin_slow_download(self) -> None:
        """Return once the slow registry has sent half of the blob."""
        self._download = Deferred.fromCoroutine(self._fetch(0, "slow.example", self.slow))
        await self.slow.half_sent
        await pause(0, reactor)  # out of the call of the source, which could not be canceled

    async def end_slow_download(self) -> bytes:
        """Return the blob that the slow registry has sent at last."""
        self.slow.may_end.callback(None)
        assert self._download is not None
        return await self._download

    async def cancel_slow_download(self) -> None:
        """Have the pull from the slow registry end."""
        assert self._download is not None
        self._download.cancel()
        with pytest.raises(CancelledError):
            await self._download

    async def fetch(self, source: Any, location: str = "fast.example") -> bytes:
        """Return the blob from the other process, which downloads it from a location."""
        return await self._fetch(1, location, source)

    async def _fetch(self, process: int, location: str, source: Any) -> bytes:
        image = ResolvedImage(BLOB.digest, BLOB.digest, BLOB, (BLOB,), location, "team/app")
        cache = self._caches[process].of(image)
        async with cache.get(BLOB, source, lambda _: None, lambda _: None) as path:
            return path.read_bytes()

    def files(self) -> list[str]:
        """Return what follows the digest in the names of all files."""
        directory = self.paths.whole.parent
        return sorted(path.name.removeprefix(BLOB.digest.hex) for path in directory.iterdir())


@pytest.fixture
def site(tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Return a site whose pulls wait for each other for a moment only."""
    monkeypatch.setattr(blob_cache, "PATIENCE", 0.2)
    return Site(tmp_path / "cache", threads)


@pytest_twisted.ensureDeferred
async def test_a_pull_from_another_place(site: Site) -> None:
    """The pull downloads the blob itself; the slow download goes on, and both leave one file."""
    await site.begin_slow_download()
    source = FastSource()
    assert await site.fetch(source) == CONTENT
    assert source.offsets == [0]
    assert await site.end_slow_download() == CONTENT
    assert site.files() == [""]


@pytest_twisted.ensureDeferred
async def test_a_pull_from_the_same_place(site: Site) -> None:
    """The pull tries again later: a second download would make the registry slower still."""
    await site.begin_slow_download()
    source = FastSource()
    with pytest.raises(RetryLater, match="Another pull that downloads the same layer"):
        await site.fetch(source, "slow.example")
    assert source.offsets == []
    await site.end_slow_download()


@pytest_twisted.ensureDeferred
async def test_a_blob_that_arrives_from_another_place(site: Site) -> None:
    """Pulls that wait for the slow download use it at once."""
    await site.begin_slow_download()
    await site.fetch(FastSource())
    source = FastSource()
    assert await site.fetch(source, "slow.example") == CONTENT
    assert source.offsets == []
    await site.end_slow_download()


@pytest_twisted.ensureDeferred
async def test_a_second_download_is_resumed(site: Site) -> None:
    """Its bytes stay for the next pull from the same place, and mix with no other bytes."""
    await site.begin_slow_download()
    with pytest.raises(Exception, match="ended early"):
        await site.fetch(FastSource(1000))
    second = f".{mark_of('fast.example')}.partial"
    assert site.files() == sorted([".lock", ".partial", second])
    source = FastSource()
    assert await site.fetch(source) == CONTENT
    assert source.offsets == [1000]
    await site.end_slow_download()
    assert site.files() == [""]


@pytest_twisted.ensureDeferred
async def test_after_the_slow_download(site: Site) -> None:
    """What it has left serves a pull from any place, since only one downloads now."""
    await site.begin_slow_download()
    await site.cancel_slow_download()
    source = FastSource()
    assert await site.fetch(source) == CONTENT
    assert source.offsets == [HALF]


def leave_files(directory: Path, *marks: str) -> list[BlobPaths]:
    """Leave the bytes of downloads with these marks, and their locks; return their paths."""
    whole = BlobPaths.of(directory, BLOB.digest).whole
    whole.parent.mkdir(parents=True)
    downloads = [BlobPaths(whole, mark) for mark in marks]
    for download in downloads:
        download.partial.write_bytes(CONTENT[:HALF])
        download.lock.write_text("")
    return downloads


def test_second_downloads_make_way(tmp_path: Path) -> None:
    """Second downloads count towards the cache; the sweep also removes the locks of ended ones."""
    first, second = leave_files(tmp_path, "", mark_of("a"))
    assert [files.size for files in CachedBlobs(tmp_path).list_removable()] == [2 * HALF]
    assert CachedBlobs(tmp_path).sweep(time.time() - 60) == 0
    assert first.partial.exists()
    assert CachedBlobs(tmp_path).sweep(time.time() + 60) == 1
    assert os.listdir(second.whole.parent) == []  # noqa: PTH208
    second.lock.write_text("")
    assert CachedBlobs(tmp_path).sweep(time.time() + 60) == 0
    assert not second.lock.exists()


def test_a_second_download_that_runs_stays(tmp_path: Path) -> None:
    """What cannot be removed is not counted as room: a full disk ends a download."""
    (second,) = leave_files(tmp_path, mark_of("a"))
    descriptor = try_lock(second.lock)
    assert DiskBudget((CachedBlobs(tmp_path),)).make_room(tmp_path, 1, set(), is_full=True) is False
    assert second.partial.exists()
    unlock(second.lock, descriptor)
    assert DiskBudget((CachedBlobs(tmp_path),)).make_room(tmp_path, 1, set(), is_full=True) is True
    assert not second.partial.exists()
