"""The blob cache: one download per blob, resumed, hashed in threads, never more than promised."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThread
from twisted.protocols.basic import FileSender

from shiftergw.cache import blob_cache as cache_module
from shiftergw.cache import partial as partial_module
from shiftergw.cache.blob_cache import BlobCaches, BlobFiles
from shiftergw.cache.blob_writer import MOST_WAITING, BlobWriter
from shiftergw.cache.download_locks import DOWNLOAD_WAIT
from shiftergw.cache.partial import PartialBlob
from shiftergw.errors import (
    BlobCorrupt,
    NoSpace,
    PullError,
    RegistryUnavailable,
    RetryLater,
    Unavailable,
)
from shiftergw.image import Descriptor, Digest, Opening, ResolvedImage
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.locks import try_lock, unlock
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import BlobCache, BlobSink, Download
from tests.installed_reactor import reactor
from tests.parts import small_disk
from tests.work.waiting import until

CONTENT = os.urandom(300_000)
BLOB = Descriptor(Digest.of(CONTENT), len(CONTENT))


@pytest.fixture
def threads() -> Iterator[Threads]:
    """Give a pool of threads that runs while the test does."""
    pool = Threads(reactor, 4, "test")
    pool.startService()
    yield pool
    pytest_twisted.blockon(pool.stopService())


@pytest.fixture
def cache(tmp_path: Path, threads: Threads) -> BlobFiles:
    """Give an empty cache."""
    return BlobFiles(tmp_path / "cache", threads, reactor)


def place(tmp_path: Path, suffix: str = "", blob: Descriptor = BLOB) -> Path:
    """Return the path of a blob in the cache, or of a file beside it."""
    return tmp_path / "cache" / blob.digest.algorithm / (blob.digest.hex + suffix)


def leave_partial(tmp_path: Path, content: bytes) -> None:
    """Leave a partial file, as an interrupted download does."""
    path = place(tmp_path, ".partial")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)


class Source:
    """A source of one blob that records the offsets of its requests, and may not resume."""

    def __init__(
        self, content: bytes = CONTENT, piece: int = 1000, *, resumes: bool = True
    ) -> None:
        """Send `content` in pieces; a source that does not resume begins at 0 always."""
        self.offsets: list[int] = []
        self._content = content
        self._piece = piece
        self._resumes = resumes

    async def __call__(self, offset: int, sink: BlobSink) -> None:
        """Send everything from `offset`, with a turn of the reactor now and then."""
        self.offsets.append(offset)
        begin = offset if self._resumes else 0
        sink.begin(begin)
        for start in range(begin, len(self._content), self._piece):
            sink.write(self._content[start : start + self._piece])
            if start % (16 * self._piece) == 0:
                await pause(0, reactor)


def refuse(offset: int, sink: BlobSink) -> Awaitable[None]:
    """Stand for a download that must not happen."""
    raise AssertionError("a download of a blob that is there")


def ignore(_: object) -> None:
    """Ignore a report."""


async def fetch_blob(
    cache: BlobCache,
    blob: Descriptor,
    download: Download,
    report: Callable[[int], None],
    on_opening: Callable[[Opening], None] = lambda _: None,
) -> Path:
    """Fetch a blob and return its path."""
    async with cache.get(blob, download, report, on_opening) as path:
        return path


def test_it_keeps_the_port(cache: BlobFiles) -> None:
    """The type checker sees that this is a `BlobCache`, and its sink a `BlobSink`."""
    port: BlobCache = cache
    sink: type[BlobSink] = BlobWriter
    assert port is cache
    assert sink is BlobWriter


@pytest_twisted.ensureDeferred
async def test_downloads_once(tmp_path: Path, cache: BlobFiles) -> None:
    """A blob is downloaded, kept 0600 in a private directory, and not requested again."""
    source, reports = Source(), list[int]()
    path = await fetch_blob(cache, BLOB, source, reports.append)
    assert path == place(tmp_path)
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert reports == sorted(reports)
    assert (reports[0], reports[-1]) == (0, len(CONTENT))
    assert os.listdir(path.parent) == [path.name]  # noqa: PTH208
    assert await fetch_blob(cache, BLOB, refuse, ignore) == path
    assert source.offsets == [0]


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
async def test_what_is_read_of_a_blob_that_is_another_has_no_end(
    threads: Threads, cache: BlobFiles
) -> None:
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


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("content", [b"", b"x", CONTENT])
@pytest_twisted.ensureDeferred
async def test_any_algorithm_and_size(
    tmp_path: Path, cache: BlobFiles, algorithm: str, content: bytes
) -> None:
    """Digests of every algorithm work, and so does a blob of no bytes."""
    digest = Digest(algorithm, hashlib.new(algorithm, content).hexdigest())
    blob = Descriptor(digest, len(content))
    path = await fetch_blob(cache, blob, Source(content), ignore)
    assert path == place(tmp_path, blob=blob)
    assert path.read_bytes() == content


@pytest.mark.parametrize("resumes", [True, False])
@pytest_twisted.ensureDeferred
async def test_resumes(tmp_path: Path, cache: BlobFiles, resumes: bool) -> None:
    """A partial file is hashed and kept, or replaced if the source starts at 0."""
    leave_partial(tmp_path, CONTENT[:123_456])
    source, reports = Source(resumes=resumes), list[int]()
    path = await fetch_blob(cache, BLOB, source, reports.append)
    assert path.read_bytes() == CONTENT
    assert source.offsets == [123_456]
    assert reports[0] == 123_456


@pytest_twisted.ensureDeferred
async def test_whole_partial_needs_no_source(tmp_path: Path, cache: BlobFiles) -> None:
    """A download that was complete but not yet renamed is taken as it is."""
    leave_partial(tmp_path, CONTENT)
    path = await fetch_blob(cache, BLOB, refuse, ignore)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "rest", [b"\0" * 5000, b"\0" * len(CONTENT), CONTENT + b"more", b"\0" * (len(CONTENT) + 1)]
)
@pytest_twisted.ensureDeferred
async def test_damaged_partial_is_replaced(tmp_path: Path, cache: BlobFiles, rest: bytes) -> None:
    """A damaged rest of an earlier download costs a second try, not the pull."""
    leave_partial(tmp_path, rest)
    source = Source()
    path = await fetch_blob(cache, BLOB, source, ignore)
    assert path.read_bytes() == CONTENT
    assert source.offsets[-1] == 0


@pytest_twisted.ensureDeferred
async def test_source_that_starts_again(tmp_path: Path, cache: BlobFiles) -> None:
    """After a broken connection a source goes on where it was, or starts at 0."""
    leave_partial(tmp_path, CONTENT[:1000])

    async def restless(offset: int, sink: BlobSink) -> None:
        sink.begin(offset)
        sink.write(b"\0" * 5000)
        await pause(0.01, reactor)
        sink.begin(0)
        sink.write(CONTENT[:1000] + b"\0" * 7000)
        sink.begin(0)
        sink.write(CONTENT[:50_000])
        sink.begin(50_000)
        sink.write(b"\0")
        sink.begin(0)
        sink.begin(0)
        await pause(0.01, reactor)
        sink.write(CONTENT[:60_000])
        await pause(0.01, reactor)
        sink.begin(60_000)
        sink.write(CONTENT[60_000:])

    path = await fetch_blob(cache, BLOB, restless, ignore)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("size", [1, 60_000, 100_000, 100_001, 150_000])
@pytest_twisted.ensureDeferred
async def test_bytes_that_are_sent_again(tmp_path: Path, cache: BlobFiles, size: int) -> None:
    """Bytes on disk stay, however few a source sends that starts at 0 and breaks off."""
    leave_partial(tmp_path, CONTENT[:100_000])
    positions: list[int] = []
    reports: list[int] = []

    async def starts_at_0(_: int, sink: BlobSink) -> None:
        sink.begin(0)
        for start in range(0, size, 1000):
            sink.write(CONTENT[start : min(size, start + 1000)])
            await pause(0, reactor)
        positions.append(sink.position)
        raise RegistryUnavailable("gone")

    for _ in range(2):
        with pytest.raises(RegistryUnavailable):
            await fetch_blob(cache, BLOB, starts_at_0, reports.append)
    length = max(size, 100_000)
    assert positions == [length, length]
    assert reports == sorted(reports)
    assert place(tmp_path, ".partial").read_bytes() == CONTENT[:length]
    source = Source()
    assert (await fetch_blob(cache, BLOB, source, ignore)).read_bytes() == CONTENT
    assert source.offsets == [length]


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


@pytest_twisted.ensureDeferred
async def test_other_bytes_that_are_sent_again(tmp_path: Path, cache: BlobFiles) -> None:
    """Different bytes replace those on disk; the next request starts behind them."""
    leave_partial(tmp_path, CONTENT[:1000] + b"?" * 99_000)
    positions: list[int] = []

    async def starts_at_0(_: int, sink: BlobSink) -> None:
        sink.begin(0)
        for start in range(0, 50_000, 1000):
            sink.write(CONTENT[start : start + 1000])
        positions.append(sink.position)
        while sink.position > 50_000:
            await pause(0, reactor)
        sink.begin(50_000)
        sink.write(CONTENT[50_000:60_000])
        raise RegistryUnavailable("gone")

    with pytest.raises(RegistryUnavailable):
        await fetch_blob(cache, BLOB, starts_at_0, ignore)
    assert positions == [100_000]
    assert place(tmp_path, ".partial").read_bytes() == CONTENT[:60_000]
    source = Source()
    assert (await fetch_blob(cache, BLOB, source, ignore)).read_bytes() == CONTENT
    assert source.offsets == [60_000]


@pytest_twisted.ensureDeferred
async def test_a_difference_that_no_longer_counts(tmp_path: Path, cache: BlobFiles) -> None:
    """A few bytes that differ do not discard what is on disk once the source resumes behind it."""
    leave_partial(tmp_path, CONTENT[:100_000])

    async def resumes_after_all(_: int, sink: BlobSink) -> None:
        sink.begin(0)
        sink.write(b"?" * 1000)
        sink.begin(100_000)
        sink.write(CONTENT[100_000:])

    path = await fetch_blob(cache, BLOB, resumes_after_all, ignore)
    assert path.read_bytes() == CONTENT


@pytest_twisted.ensureDeferred
async def test_a_whole_blob_of_wrong_bytes(tmp_path: Path, cache: BlobFiles) -> None:
    """A source that starts again after the last byte is resumed where the new bytes end."""
    leave_partial(tmp_path, CONTENT[:100_000])

    async def has_a_wrong_mirror(_: int, sink: BlobSink) -> None:
        sink.begin(100_000)
        sink.write(CONTENT[100_000:-1] + b"?")
        assert sink.position == len(CONTENT)
        sink.begin(0)
        assert sink.position == 0
        sink.write(CONTENT[:50_000])
        await pause(0.01, reactor)
        sink.begin(50_000)
        sink.write(CONTENT[50_000:])

    path = await fetch_blob(cache, BLOB, has_a_wrong_mirror, ignore)
    assert path.read_bytes() == CONTENT


@pytest_twisted.ensureDeferred
async def test_part_that_was_not_asked_for(cache: BlobFiles) -> None:
    """Bytes from somewhere else are refused."""

    async def wrong_offset(_: int, sink: BlobSink) -> None:
        sink.begin(77)

    with pytest.raises(BlobCorrupt, match="not asked for"):
        await fetch_blob(cache, BLOB, wrong_offset, ignore)


@pytest_twisted.ensureDeferred
async def test_wrong_digest(tmp_path: Path, cache: BlobFiles) -> None:
    """Other bytes than the digest says are never kept, nor resumed from."""
    source = Source(CONTENT[::-1])
    with pytest.raises(BlobCorrupt, match=r"digest.*a proxy on the way") as caught:
        await fetch_blob(cache, BLOB, source, ignore)
    assert caught.value.detail == str(BLOB.digest)
    assert list(place(tmp_path).parent.iterdir()) == []
    assert source.offsets == [0, 0]


@pytest_twisted.ensureDeferred
async def test_one_wrong_digest(cache: BlobFiles) -> None:
    """A blob that was damaged on its way once is downloaded once more."""
    contents = [CONTENT[:-1] + b"?", CONTENT]

    async def download(offset: int, sink: BlobSink) -> None:
        assert offset == 0
        await Source(contents.pop(0))(0, sink)

    assert (await fetch_blob(cache, BLOB, download, ignore)).read_bytes() == CONTENT
    assert contents == []


@pytest_twisted.ensureDeferred
async def test_a_damaged_partial_is_not_blamed_on_the_source(
    tmp_path: Path, cache: BlobFiles
) -> None:
    """A download that resumes wrong bytes does not count: two more from the beginning may follow.

    Anybody may leave wrong bytes under a digest, with a registry that breaks off.
    """
    leave_partial(tmp_path, b"x" * 1000)
    contents = [CONTENT, CONTENT[::-1], CONTENT]
    offsets: list[int] = []

    async def download(offset: int, sink: BlobSink) -> None:
        offsets.append(offset)
        await Source(contents.pop(0))(offset, sink)

    assert (await fetch_blob(cache, BLOB, download, ignore)).read_bytes() == CONTENT
    assert offsets == [1000, 0, 0]


@pytest_twisted.ensureDeferred
async def test_wrong_digest_after_starting_anew(tmp_path: Path, cache: BlobFiles) -> None:
    """A source that ignores the offset has sent everything, so its wrong bytes count."""
    leave_partial(tmp_path, CONTENT[:1000])
    source = Source(CONTENT[::-1], resumes=False)
    with pytest.raises(BlobCorrupt):
        await fetch_blob(cache, BLOB, source, ignore)
    assert source.offsets == [1000, 0]


@pytest_twisted.ensureDeferred
async def test_blob_that_ends_early(tmp_path: Path, cache: BlobFiles) -> None:
    """Fewer bytes than promised are an error; they stay for the next download to resume."""
    with pytest.raises(BlobCorrupt, match="ended early"):
        await fetch_blob(cache, BLOB, Source(CONTENT[:1000]), ignore)
    assert place(tmp_path, ".partial").read_bytes() == CONTENT[:1000]


@pytest_twisted.ensureDeferred
async def test_more_than_promised_ends_a_download_at_once(tmp_path: Path, cache: BlobFiles) -> None:
    """One byte too many ends an endless source, also one that does not listen; nothing stays."""
    writes = 0

    async def endless(_: int, sink: BlobSink) -> None:
        nonlocal writes
        while True:
            try:
                sink.write(b"x" * 10_000)
            except BlobCorrupt:
                with pytest.raises(BlobCorrupt):
                    sink.begin(0)
            writes += 1
            await pause(0, reactor)

    with pytest.raises(BlobCorrupt, match="more than the manifest says"):
        await fetch_blob(cache, BLOB, endless, ignore)
    assert writes < 40
    assert list(place(tmp_path).parent.iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_more_than_promised_before_the_first_wait(cache: BlobFiles) -> None:
    """A source that sends everything in its first turn is told as well."""

    async def hasty(_: int, sink: BlobSink) -> None:
        sink.write(CONTENT + b"x")

    with pytest.raises(BlobCorrupt, match="more than the manifest says"):
        await fetch_blob(cache, BLOB, hasty, ignore)


@pytest_twisted.ensureDeferred
async def test_failure_of_the_source(tmp_path: Path, cache: BlobFiles) -> None:
    """An error of the source is raised; the next download resumes the bytes sent before it."""

    async def breaks(_: int, sink: BlobSink) -> None:
        sink.write(CONTENT[:5000])
        await pause(0.1, reactor)
        raise RegistryUnavailable("gone")

    with pytest.raises(RegistryUnavailable):
        await fetch_blob(cache, BLOB, breaks, ignore)
    source = Source()
    path = await fetch_blob(cache, BLOB, source, ignore)
    assert path.read_bytes() == CONTENT
    assert source.offsets == [5000]


@pytest_twisted.ensureDeferred
async def test_bytes_that_wait_for_the_disk_when_a_source_fails(
    tmp_path: Path, cache: BlobFiles
) -> None:
    """Bytes that have arrived are written before the failure is raised."""

    async def breaks(_: int, sink: BlobSink) -> None:
        for start in range(0, 200_000, 1000):
            sink.write(CONTENT[start : start + 1000])
        raise RegistryUnavailable("gone")

    with pytest.raises(RegistryUnavailable):
        await fetch_blob(cache, BLOB, breaks, ignore)
    assert place(tmp_path, ".partial").read_bytes() == CONTENT[:200_000]


class Producer:
    """A producer that sends as fast as it may, and counts its pauses."""

    def __init__(self, sink: BlobSink, size: int, done: Deferred[None]) -> None:
        """Send `size` bytes of zeros to `sink`."""
        self._sink = sink
        self._remainder = size
        self._done = done
        self._is_paused = False
        self.pauses = 0

    def run(self) -> None:
        """Send until paused or done."""
        while self._remainder and not self._is_paused:
            self._remainder -= 65_536
            self._sink.write(b"\0" * 65_536)
        if not self._remainder:
            self._sink.unregisterProducer()
            self._done.callback(None)

    def pauseProducing(self) -> None:
        """Stop for now."""
        self._is_paused = True
        self.pauses += 1

    def resumeProducing(self) -> None:
        """Go on, in a later turn as a transport does."""
        self._is_paused = False
        reactor.callLater(0, self.run)


@pytest_twisted.ensureDeferred
async def test_fast_source_is_paused(cache: BlobFiles) -> None:
    """No more than a few MiB wait in memory, and the reactor's thread neither hashes nor writes."""
    size = 64 << 20
    blob = Descriptor(Digest("sha256", hashlib.sha256(b"\0" * size).hexdigest()), size)
    peak, bytes_sent, bytes_reported = 0, 0, 0
    pauses: list[int] = []

    def report(done: int) -> None:
        nonlocal bytes_reported
        bytes_reported = done

    async def fast(_: int, sink: BlobSink) -> None:
        class Counting:
            def __getattr__(self, name: str) -> object:
                return getattr(sink, name)

            def write(self, data: bytes) -> None:
                nonlocal peak, bytes_sent
                bytes_sent += len(data)
                peak = max(peak, bytes_sent - bytes_reported)
                sink.write(data)

        done: Deferred[None] = Deferred()
        producer = Producer(Counting(), size, done)  # type: ignore[arg-type]
        sink.registerProducer(producer, streaming=True)
        producer.run()
        await done
        pauses.append(producer.pauses)

    await fetch_blob(cache, blob, fast, report)
    assert pauses[0] > 3
    assert peak <= MOST_WAITING + 2 * 65_536


@pytest_twisted.ensureDeferred
async def test_producer_registered_while_much_waits(cache: BlobFiles) -> None:
    """A producer that takes over from a broken one is paused at once if the disk is behind."""
    content = b"\0" * (MOST_WAITING + 65_536)
    blob = Descriptor(Digest.of(content), len(content))

    async def takes_over(_: int, sink: BlobSink) -> None:
        sink.write(content[:-65_536] + b"\0")
        done: Deferred[None] = Deferred()
        producer = Producer(sink, 65_536, done)
        sink.registerProducer(producer, streaming=True)
        assert producer.pauses == 1
        sink.begin(len(content) - 65_536 + 1)
        with pytest.raises(BlobCorrupt):
            sink.write(b"\0" * 65_536)
        done.callback(None)

    with pytest.raises(BlobCorrupt):
        await fetch_blob(cache, blob, takes_over, ignore)


@pytest_twisted.ensureDeferred
async def test_pull_producer(cache: BlobFiles) -> None:
    """A file can be sent into the cache by Twisted's own sender, piece by piece."""

    async def file(_: int, sink: BlobSink) -> None:
        await FileSender().beginFileTransfer(BytesIO(CONTENT), sink)

    path = await fetch_blob(cache, BLOB, file, ignore)
    assert path.read_bytes() == CONTENT


@pytest_twisted.ensureDeferred
async def test_callers_of_one_process_share_a_download(cache: BlobFiles) -> None:
    """Ten callers share one download; waiting callers get reports of its progress."""
    source, reports = Source(piece=2000), list[int]()

    async def slowly(offset: int, sink: BlobSink) -> None:
        await source(offset, sink)
        await pause(0.25, reactor)

    paths = await gather_or_cancel(
        fetch_blob(cache, BLOB, slowly, reports.append) for _ in range(10)
    )
    assert len(set(paths)) == 1
    assert source.offsets == [0]
    assert reports.count(len(CONTENT)) >= 10


@pytest_twisted.ensureDeferred
async def test_one_who_waits_takes_over(cache: BlobFiles) -> None:
    """When the downloading caller is cancelled, a waiting caller resumes the download."""
    download_start = Deferred[None]()

    async def half(_: int, sink: BlobSink) -> None:
        download_start.callback(None)
        sink.write(CONTENT[:150_000])
        await Deferred()

    first = Deferred.fromCoroutine(fetch_blob(cache, BLOB, half, ignore))
    await download_start
    source = Source()
    second = Deferred.fromCoroutine(fetch_blob(cache, BLOB, source, ignore))
    await pause(0.2, reactor)
    first.cancel()
    path = await second
    assert path.read_bytes() == CONTENT
    assert source.offsets == [150_000]
    with pytest.raises(CancelledError):
        await first


@pytest_twisted.ensureDeferred
async def test_cancelled_while_waiting(cache: BlobFiles) -> None:
    """A waiting caller can be cancelled; the download goes on."""
    source = Source()
    first = Deferred.fromCoroutine(fetch_blob(cache, BLOB, source, ignore))
    second = Deferred.fromCoroutine(fetch_blob(cache, BLOB, refuse, ignore))
    await pause(0, reactor)
    second.cancel()
    with pytest.raises(CancelledError):
        await second
    assert (await first).read_bytes() == CONTENT


@pytest_twisted.ensureDeferred
async def test_cancellation_waits_for_the_thread(tmp_path: Path, threads: Threads) -> None:
    """No thread writes after a cancellation has ended, even if it was requested twice."""
    partial = GatedBlob(tmp_path / "p", BLOB)
    partial.open()
    writer = BlobWriter(partial, BLOB, threads, ignore, lambda: None)
    writer.write(CONTENT[:10])
    while not partial.write_start.is_set():
        await pause(0.01, reactor)
    writer.write(CONTENT[10:20])
    ends = []

    async def settle() -> None:
        try:
            await writer.settle()
        finally:
            ends.append(True)

    settling = Deferred.fromCoroutine(settle())
    settling.cancel()
    settling.cancel()
    await pause(0.05, reactor)
    assert ends == []
    partial.gate.set()
    with pytest.raises(CancelledError):
        await settling
    assert (tmp_path / "p").read_bytes() == CONTENT[:10]
    partial.close()


class GatedBlob(PartialBlob):
    """A file that writes when the gate opens."""

    def __init__(self, path: Path, blob: Descriptor) -> None:
        """Close the gate."""
        super().__init__(path, blob)
        self.write_start = threading.Event()
        self.gate = threading.Event()

    def append(self, data: memoryview) -> None:
        """Wait for the gate, then write."""
        self.write_start.set()
        assert self.gate.wait(10)
        super().append(data)


def test_hashing_what_is_there_can_be_interrupted(tmp_path: Path) -> None:
    """A large rest of a download is not hashed to its end for a caller who has gone."""
    (tmp_path / "p").write_bytes(CONTENT)
    partial = PartialBlob(tmp_path / "p", BLOB)
    partial.interrupt()
    partial.open()
    assert partial.start == 0
    partial.close()
    partial.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk(number: int) -> None:
    """A full disk raises `NoSpace`, with the path for admins only."""
    with pytest.raises(NoSpace) as caught, partial_module.disk_errors():
        raise OSError(number, "full", "/some/path")
    assert "/some/path" not in str(caught.value)
    assert "/some/path" in caught.value.detail


def make_read_only(suffix: str) -> None:
    """Make the next write to our open file of this name fail."""
    for link in Path("/proc/self/fd").iterdir():
        if link.is_symlink() and str(link.readlink()).endswith(suffix):
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, int(link.name))
            os.close(null)


@pytest_twisted.ensureDeferred
async def test_disk_that_fails_ends_the_download(cache: BlobFiles, tmp_path: Path) -> None:
    """When writing fails, the source is cancelled and the reason is the disk's."""
    cancellations = []

    async def waits(_: int, sink: BlobSink) -> None:
        make_read_only(".partial")
        sink.write(CONTENT[:100])
        try:
            await Deferred()
        except CancelledError:
            cancellations.append(True)
            raise

    with pytest.raises(PullError, match="cannot read or write"):
        await fetch_blob(cache, BLOB, waits, ignore)
    assert cancellations == [True]


@pytest_twisted.ensureDeferred
async def test_stopped_threads(tmp_path: Path) -> None:
    """With its threads stopped in the middle of a download, it fails instead of waiting."""
    pool = Threads(reactor, 1, "stopping")
    pool.startService()
    cache = BlobFiles(tmp_path / "cache", pool, reactor)

    async def stops(_: int, sink: BlobSink) -> None:
        await pool.stopService()
        sink.write(CONTENT)
        await Deferred()

    with pytest.raises(Unavailable):
        await fetch_blob(cache, BLOB, stops, ignore)


@pytest_twisted.ensureDeferred
async def test_partial_that_is_a_symlink(tmp_path: Path, cache: BlobFiles) -> None:
    """A symlink in the place of a file is not followed."""
    path = place(tmp_path, ".partial")
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PullError):
        await fetch_blob(cache, BLOB, Source(), ignore)
    assert not (tmp_path / "elsewhere").exists()


@pytest_twisted.ensureDeferred
async def test_file_of_another_size_is_replaced(tmp_path: Path, cache: BlobFiles) -> None:
    """A blob that was cut short on disk is downloaded again."""
    path = await fetch_blob(cache, BLOB, Source(), ignore)
    path.write_bytes(CONTENT[:-1])
    assert (await fetch_blob(cache, BLOB, Source(), ignore)).read_bytes() == CONTENT


@pytest_twisted.ensureDeferred
async def test_wrong_size_in_a_manifest_harms_nobody(cache: BlobFiles) -> None:
    """A manifest that lies about a size fails by itself and leaves the good blob where it is."""
    path = await fetch_blob(cache, BLOB, Source(), ignore)
    for size in (len(CONTENT) - 1, len(CONTENT) + 1):
        with pytest.raises(BlobCorrupt):
            await fetch_blob(cache, Descriptor(BLOB.digest, size), Source(), ignore)
    assert path.read_bytes() == CONTENT


@pytest_twisted.ensureDeferred
async def test_give_up(tmp_path: Path, cache: BlobFiles) -> None:
    """A partial file is removed, unless a download holds its lock."""
    await cache.give_up(BLOB.digest)
    leave_partial(tmp_path, b"half")
    lock = place(tmp_path, ".lock")
    descriptor = try_lock(lock)
    assert descriptor is not None
    await cache.give_up(BLOB.digest)
    assert place(tmp_path, ".partial").exists()
    unlock(lock, descriptor)
    await cache.give_up(BLOB.digest)
    assert list(lock.parent.iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_discard(cache: BlobFiles) -> None:
    """A damaged blob is downloaded again; discarding an absent blob is no error."""
    await cache.discard(BLOB.digest)
    path = await fetch_blob(cache, BLOB, Source(), ignore)
    path.write_bytes(bytes(len(CONTENT)))
    await cache.discard(BLOB.digest)
    assert list(path.parent.iterdir()) == []
    source = Source()
    await fetch_blob(cache, BLOB, source, ignore)
    assert source.offsets == [0]


@pytest_twisted.ensureDeferred
async def test_a_sound_blob_is_not_discarded(cache: BlobFiles) -> None:
    """An image that is wrong by itself takes no layer from the build of another one."""
    async with cache.get(BLOB, Source(), ignore, ignore) as path:
        await cache.discard(BLOB.digest)
        assert path.read_bytes() == CONTENT


@pytest_twisted.ensureDeferred
async def test_a_discard_leaves_a_download_alone(
    tmp_path: Path, cache: BlobFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob whose lock is held is not discarded."""
    monkeypatch.setattr("shiftergw.cache.blob_cache.PATIENCE", 0.0)
    path = await fetch_blob(cache, BLOB, Source(), ignore)
    path.write_bytes(bytes(len(CONTENT)))
    descriptor = try_lock(place(tmp_path, ".lock"))
    assert descriptor is not None
    await cache.discard(BLOB.digest)
    assert path.exists()
    unlock(place(tmp_path, ".lock"), descriptor)


OTHER_PROCESS = """
import pathlib, sys, time
from twisted.internet import task
from twisted.internet.defer import Deferred
from shiftergw.image import Descriptor, Digest
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.cache.blob_cache import BlobFiles

directory, digest, source, go = sys.argv[1:]
content = pathlib.Path(source).read_bytes()

async def main(reactor):
    async def download(offset, sink):
        sink.begin(offset)
        sink.write(content[offset:100_000])
        print("half", flush=True)
        while not pathlib.Path(go).exists():
            await pause(0.02, reactor)
        sink.write(content[100_000:])
    threads = Threads(reactor, 2, "other")
    threads.startService()
    cache = BlobFiles(pathlib.Path(directory), threads, reactor)
    blob = Descriptor(Digest.parse(digest), len(content))
    async with cache.get(blob, download, lambda size: None, lambda opening: None):
        pass
    await threads.stopService()

task.react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
"""


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Callable[[], None]]]:
    """Give a process in the middle of a download, and a function that lets it go on."""
    (tmp_path / "source").write_bytes(CONTENT)
    process = subprocess.Popen(
        [
            sys.executable, "-c", OTHER_PROCESS, str(tmp_path / "cache"), str(BLOB.digest),
            str(tmp_path / "source"), str(tmp_path / "go"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},  # noqa: PTH109
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    yield process, (tmp_path / "go").touch
    process.kill()
    process.wait()
    process.stdout.close()


@pytest_twisted.ensureDeferred
async def test_processes_share_a_download(
    cache: BlobFiles, other_process: tuple[subprocess.Popen[str], Callable[[], None]]
) -> None:
    """While another process downloads, its progress is reported; its result is used."""
    process, go_on = other_process

    def report(size: int) -> None:
        if size == 100_000:
            go_on()

    path = await fetch_blob(cache, BLOB, refuse, report)
    assert path.read_bytes() == CONTENT
    assert process.wait(10) == 0


@pytest_twisted.ensureDeferred
async def test_a_long_download_elsewhere_holds_no_worker(
    cache: BlobFiles,
    other_process: tuple[subprocess.Popen[str], Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a limit the pull is postponed; later it finds the blob of the other process."""
    process, go_on = other_process
    monkeypatch.setattr(cache_module, "PATIENCE", 0.3)
    with pytest.raises(RetryLater) as caught:
        await fetch_blob(cache, BLOB, refuse, ignore)
    assert caught.value.why == "another pull that downloads the same layer"
    assert caught.value.limit == DOWNLOAD_WAIT
    go_on()
    await deferToThread(process.wait, 10)
    assert (await fetch_blob(cache, BLOB, refuse, ignore)).read_bytes() == CONTENT


@pytest_twisted.ensureDeferred
async def test_download_of_a_killed_process_is_resumed(
    cache: BlobFiles, other_process: tuple[subprocess.Popen[str], Callable[[], None]]
) -> None:
    """When the other process dies, the next one resumes its partial file."""
    process, _ = other_process
    source, reports = Source(), list[int]()

    def report(size: int) -> None:
        reports.append(size)
        if size == 100_000:
            process.kill()

    path = await fetch_blob(cache, BLOB, source, report)
    assert path.read_bytes() == CONTENT
    assert source.offsets == [100_000]


@pytest_twisted.ensureDeferred
async def test_what_surely_does_not_fit_is_refused(tmp_path: Path, cache: BlobFiles) -> None:
    """Only missing bytes count, each blob once."""
    huge = Descriptor(Digest.of(b"huge"), 1 << 60)
    with pytest.raises(NoSpace):
        await cache.check_space([BLOB, huge])
    partial = place(tmp_path, ".partial", huge)
    partial.parent.mkdir(parents=True)
    with partial.open("wb") as file:
        file.truncate(1 << 42)  # a hole, of course
    almost = Descriptor(Digest.of(b"huge"), (1 << 42) + 1)
    await cache.check_space([BLOB, almost, almost])
    assert [path.name for path in partial.parent.iterdir()] == [partial.name]


@pytest_twisted.ensureDeferred
async def test_what_is_used_stays(tmp_path: Path, threads: Threads, cache: BlobFiles) -> None:
    """The sweep spares a blob as long as a context uses it."""
    caches = BlobCaches(tmp_path / "cache", threads, reactor)
    future = time.time() + 1
    async with cache.get(BLOB, Source(), ignore, ignore) as path:
        async with cache.get(BLOB, refuse, ignore, ignore):
            assert await caches.sweep(future) == 0
        assert await caches.sweep(future) == 0
        assert path.exists()
    assert await caches.sweep(future) == 1
    assert not path.exists()


@pytest_twisted.ensureDeferred
async def test_unused_blobs_make_way(tmp_path: Path, threads: Threads) -> None:
    """On a full disk, unused blobs are removed as bytes arrive; blobs in use stay."""
    root = tmp_path / "cache"
    contents = [bytes([n]) * 400_000 for n in range(3)]
    secret_blob, used_blob, new_blob = (
        Descriptor(Digest.of(content), len(content)) for content in contents
    )
    with small_disk(root, "size=1m"):
        caches = BlobCaches(root, threads, reactor)
        cache = caches.of(image_of("public", private=False))
        secret = caches.of(image_of("secret", private=True))
        old_path = await fetch_blob(secret, secret_blob, Source(contents[0]), ignore)
        async with cache.get(used_blob, Source(contents[1]), ignore, ignore) as path:
            await cache.check_space([used_blob, new_blob])
            assert old_path.exists()
            await fetch_blob(cache, new_blob, Source(contents[2]), ignore)
            assert not old_path.exists()
            assert path.read_bytes() == contents[1]


@pytest_twisted.ensureDeferred
async def test_a_false_size_costs_nobody_anything(tmp_path: Path, threads: Threads) -> None:
    """A blob whose size is overstated evicts no other blob."""
    root = tmp_path / "cache"
    content = bytes(400_000)
    victim = Descriptor(Digest.of(content), len(content))
    small = b"few bytes"
    with small_disk(root, "size=1m"):
        caches = BlobCaches(root, threads, reactor)
        path = await fetch_blob(
            caches.of(image_of("a", private=True)), victim, Source(content), ignore
        )
        cache = caches.of(image_of("b", private=True))
        false = Descriptor(Digest.of(small), 900_000)
        await cache.check_space([false])
        with pytest.raises(BlobCorrupt, match="ended early"):
            await fetch_blob(cache, false, Source(small), ignore)
        with pytest.raises(NoSpace):
            await cache.check_space([Descriptor(Digest.of(small), 1_100_000)])
        assert path.read_bytes() == content


@pytest_twisted.ensureDeferred
async def test_a_false_size_is_said_at_the_second_try(cache: BlobFiles) -> None:
    """Bytes that have the digest are the blob: the source is not at fault, nor asked again."""
    small = b"few bytes"
    offsets = []

    async def sends_twice(offset: int, sink: BlobSink) -> None:
        for _ in range(2):
            offsets.append(offset)
            sink.begin(0)
            sink.write(small)
            await until(lambda: cast("BlobWriter", sink)._writing is None)

    with pytest.raises(BlobCorrupt, match="says that a layer has 900000 bytes; it has 9"):
        await fetch_blob(cache, Descriptor(Digest.of(small), 900_000), sends_twice, ignore)
    assert len(offsets) == 2


@pytest_twisted.ensureDeferred
async def test_a_quota_makes_others_go(
    tmp_path: Path, threads: Threads, cache: BlobFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails though the disk has room is tried again once another blob is gone."""
    old_content = b"other"
    path = await fetch_blob(
        cache, Descriptor(Digest.of(old_content), 5), Source(old_content), ignore
    )
    write = os.write

    def write_with_quota(descriptor: int, data: Any) -> int:
        if isinstance(data, memoryview) and path.exists():  # not the reactor's own
            raise OSError(errno.EDQUOT, "quota")
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_with_quota)
        small = Descriptor(Digest.of(b"mine"), 4)
        assert (await fetch_blob(cache, small, Source(b"mine"), ignore)).exists()
    assert not path.exists()


def image_of(repository: str, *, private: bool) -> ResolvedImage:
    """Return an image of a repository."""
    digest = Digest.of(b"manifest")
    return ResolvedImage(digest, digest, BLOB, (BLOB,), "registry", repository, private)


@pytest_twisted.ensureDeferred
async def test_private_repositories_share_no_blobs(tmp_path: Path, threads: Threads) -> None:
    """A digest in a manifest gives no access to blobs of another private repository."""
    caches = BlobCaches(tmp_path / "cache", threads, reactor)
    images = [
        image_of("public", private=False),
        image_of("mine", private=True),
        image_of("theirs", private=True),
    ]
    paths = [await fetch_blob(caches.of(image), BLOB, Source(), ignore) for image in images]
    assert len(set(paths)) == 3
    public_cache = caches.of(image_of("public too", private=False))
    assert await fetch_blob(public_cache, BLOB, refuse, ignore) == paths[0]
    assert await fetch_blob(caches.of(images[1]), BLOB, refuse, ignore) == paths[1]


@pytest_twisted.ensureDeferred
async def test_sizes_of_layers(tmp_path: Path, threads: Threads) -> None:
    """Bytes of whole and partial blobs count, each in the cache of its repository."""
    caches = BlobCaches(tmp_path / "cache", threads, reactor)
    image, neighbor = image_of("a", private=True), image_of("b", private=True)
    assert await caches.sizes_of(image) == [0]
    assert not place(tmp_path).parent.parent.exists()
    path = await fetch_blob(caches.of(image), BLOB, Source(), ignore)
    assert await caches.sizes_of(image) == [BLOB.size]
    assert await caches.sizes_of(neighbor) == [0]
    path.rename(path.with_name(f"{path.name}.partial"))
    assert await caches.sizes_of(image) == [BLOB.size]
    path.with_name(f"{path.name}.partial").write_bytes(b"1234")
    assert await caches.sizes_of(image) == [4]
    path.with_name(f"{path.name}.partial").write_bytes(bytes(BLOB.size + 1))
    assert await caches.sizes_of(image) == [BLOB.size]


@pytest_twisted.ensureDeferred
async def test_partial_blobs_stay_with_their_repository(tmp_path: Path, threads: Threads) -> None:
    """Any public pull resumes a public one; a private one is resumed by its repository alone."""
    caches = BlobCaches(tmp_path / "cache", threads, reactor)

    async def break_off(_: int, sink: BlobSink) -> None:
        sink.begin(0)
        sink.write(CONTENT[:5000])
        await pause(0.05, reactor)
        raise RegistryUnavailable("The line broke.")

    async def offset_of(image: ResolvedImage) -> int:
        source = Source()
        await fetch_blob(caches.of(image), BLOB, source, ignore)
        return source.offsets[0]

    for image in (image_of("public", private=False), image_of("mine", private=True)):
        with pytest.raises(RegistryUnavailable):
            await fetch_blob(caches.of(image), BLOB, break_off, ignore)
    assert await offset_of(image_of("theirs", private=True)) == 0
    assert await offset_of(image_of("mine", private=True)) == 5000
    assert await offset_of(image_of("public too", private=False)) == 5000
