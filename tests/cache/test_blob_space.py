"""The space of the blob cache: blobs in use stay, unused ones make room for new ones."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from shiftergw.cache.blob_cache import BlobCaches, BlobFiles
from shiftergw.errors import BlobCorrupt, NoSpace
from shiftergw.model.images import Descriptor, Digest
from shiftergw.plumbing.threads import Threads
from tests.cache.downloads import BLOB, Source, fetch_blob, ignore, image_of, place, refuse
from tests.installed_reactor import reactor
from tests.parts import small_disk


@pytest_twisted.ensureDeferred
async def test_layers_that_cannot_fit_are_refused(tmp_path: Path, cache: BlobFiles) -> None:
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
async def test_a_blob_in_use_is_not_swept(
    tmp_path: Path, threads: Threads, cache: BlobFiles
) -> None:
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
async def test_an_overstated_size_evicts_no_blob(tmp_path: Path, threads: Threads) -> None:
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
async def test_an_exhausted_quota_evicts_other_blobs(
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
async def test_packs_need_room_beside_their_layers(tmp_path: Path, threads: Threads) -> None:
    """Half of the size of each layer is required, also of one that is here; the error says so."""
    root, content = tmp_path / "cache", bytes(400_000)
    old_blob = Descriptor(Digest.of(content), len(content))
    new_blob, huge_blob = (Descriptor(Digest.of(b"new"), size) for size in (400_000, 800_000))
    with small_disk(root, "size=1m"):
        cache = BlobCaches(root, threads, reactor).of(image_of("a", private=False))
        await fetch_blob(cache, old_blob, Source(content), ignore)
        await cache.check_space([old_blob], with_packs=True)
        await cache.check_space([old_blob, new_blob])
        with pytest.raises(NoSpace, match=r"layers and the converted layers .* at least 800 kB"):
            await cache.check_space([old_blob, new_blob, new_blob], with_packs=True)
        with pytest.raises(NoSpace, match="image's layers need at least 800 kB"):
            await cache.check_space([old_blob, huge_blob])
