"""Readers of blobs that are still being downloaded."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.cache.blob_cache import BlobFiles
from shiftergw.errors import BlobCorrupt
from shiftergw.model.images import Opening
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import BlobSink
from tests.cache.downloads import BLOB, CONTENT, Source, fetch_blob, ignore, leave_partial, refuse
from tests.installed_reactor import reactor


class Follower:
    """Reads a blob during its download, in a thread."""

    def __init__(self, threads: Threads) -> None:
        """Have read nothing yet."""
        self.openings: list[Opening] = []
        self.read = b""
        self._threads = threads

    def begin(self) -> Deferred[None]:
        """Read to the end."""
        return self._threads.begin(self._read)

    def _read(self) -> None:
        with self.openings[-1](threading.Event()) as reader:
            while piece := reader.read(1 << 20):
                self.read += piece

    async def has(self, size: int) -> None:
        """Wait until this number of bytes has been read."""
        while len(self.read) < size:
            await pause(0.01, reactor)


@pytest_twisted.ensureDeferred
async def test_a_blob_is_read_on_its_way(
    tmp_path: Path, threads: Threads, cache: BlobFiles
) -> None:
    """Readers start at the first byte, also if a download resumes; cached blobs have none."""
    leave_partial(tmp_path, CONTENT[:100_000])
    follower = Follower(threads)

    async def waits(offset: int, sink: BlobSink) -> None:
        following.append(follower.begin())
        await follower.has(100_000)
        await Source()(offset, sink)

    following: list[Deferred[None]] = []
    await fetch_blob(cache, BLOB, waits, ignore, follower.openings.append)
    await following[0]
    assert follower.read == CONTENT
    await fetch_blob(cache, BLOB, refuse, ignore, follower.openings.append)
    assert len(follower.openings) == 1


@pytest_twisted.ensureDeferred
async def test_readers_of_wrong_bytes_get_an_error(threads: Threads, cache: BlobFiles) -> None:
    """A reader of wrong bytes gets an error, however many bytes have arrived."""
    follower = Follower(threads)

    async def wrong(offset: int, sink: BlobSink) -> None:
        await Source(CONTENT[::-1])(offset, sink)
        following.append(follower.begin())
        await follower.has(len(following) * len(CONTENT))

    following: list[Deferred[None]] = []
    with pytest.raises(BlobCorrupt, match="other bytes than its digest"):
        await fetch_blob(cache, BLOB, wrong, ignore, follower.openings.append)
    assert len(following) == 2
    for reading in following:
        with pytest.raises(BlobCorrupt, match="came to nothing"):
            await reading


@pytest_twisted.ensureDeferred
async def test_readers_of_bytes_that_are_sent_again(
    tmp_path: Path, threads: Threads, cache: BlobFiles
) -> None:
    """A layer is read to its end while a source repeats its beginning: nothing begins anew."""
    leave_partial(tmp_path, CONTENT[:100_000])
    follower = Follower(threads)
    following: list[Deferred[None]] = []

    async def starts_at_0(_: int, sink: BlobSink) -> None:
        following.append(follower.begin())
        await follower.has(100_000)
        await Source(resumes=False)(0, sink)

    await fetch_blob(cache, BLOB, starts_at_0, ignore, follower.openings.append)
    await following[0]
    assert follower.read == CONTENT
