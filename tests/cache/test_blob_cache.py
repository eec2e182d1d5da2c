"""The blob cache: blobs are downloaded once, have their digest and size, and stay private."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import cast

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.cache import partial as partial_module
from shiftergw.cache.blob_cache import BlobCaches, BlobFiles
from shiftergw.cache.blob_writer import BlobWriter
from shiftergw.errors import BlobCorrupt, NoSpace, PullError, Unavailable
from shiftergw.model.images import Descriptor, Digest
from shiftergw.plumbing.locks import try_lock, unlock
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import BlobCache, BlobSink
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
from tests.work.waiting import until


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
    contents = [CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]), CONTENT]

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
async def test_a_byte_too_many_ends_a_download_at_once(tmp_path: Path, cache: BlobFiles) -> None:
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
async def test_a_wrong_size_in_a_manifest_harms_no_other_pull(cache: BlobFiles) -> None:
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
