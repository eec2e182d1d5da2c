"""Downloads that resume partial files, of sources that resume, repeat or differ."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.cache.blob_cache import BlobCaches, BlobFiles
from shiftergw.cache.partial import PartialBlob
from shiftergw.errors import RegistryUnavailable
from shiftergw.model.images import ResolvedImage
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import BlobSink
from tests.cache.downloads import (
    BLOB,
    CONTENT,
    Source,
    fetch_blob,
    ignore,
    image_of,
    leave_partial,
    place,
    refuse,
)
from tests.installed_reactor import reactor


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
        sink.write(CONTENT[100_000:-1] + bytes([CONTENT[-1] ^ 1]))
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


def test_the_hashing_of_a_partial_file_can_be_interrupted(tmp_path: Path) -> None:
    """A large rest of a download is not hashed to its end for a caller who has gone."""
    (tmp_path / "p").write_bytes(CONTENT)
    partial = PartialBlob(tmp_path / "p", BLOB)
    partial.interrupt()
    partial.open()
    assert partial.start == 0
    partial.close()
    partial.close()


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
