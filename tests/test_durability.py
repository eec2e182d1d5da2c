"""What is said to survive a power cut is on the disk before anybody hears of it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet import reactor

from shiftergw.cache.blob_cache import BlobFiles
from shiftergw.cache.blobs import BlobPaths, sweep
from shiftergw.cli.logins import LoginFile
from shiftergw.delivery.local import LocalDirectory
from shiftergw.image import Descriptor, Digest
from shiftergw.plumbing.files import write_private
from shiftergw.plumbing.seal import Seal
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import BlobSink
from shiftergw.store.sqlite.database import open_database
from tests.build.site import Site
from tests.durability import watched_disk

real: Any = reactor

CONTENT = os.urandom(100_000)
IMAGE = f"{'ab' * 32}.squashfs"
META = f"{'ab' * 32}.meta"


@pytest_twisted.async_yield_fixture()
async def threads() -> AsyncIterator[Threads]:
    """Give a pool of threads."""
    pool = Threads(real, 6, "test")
    pool.startService()
    yield pool
    await pool.stopService()


def ignore(_: object) -> None:
    """Hear a report."""


def test_a_private_file(tmp_path: Path) -> None:
    """The list of known hosts, and what is known of a converted file."""
    with watched_disk() as disk:
        write_private(tmp_path / "file", CONTENT)
    disk.assert_durable(tmp_path / "file")


def test_the_secret_key(tmp_path: Path) -> None:
    """Without it no login that waits in the store can be read."""
    with watched_disk() as disk:
        Seal.from_file(tmp_path / "key")
    disk.assert_durable(tmp_path / "key")


def test_a_new_database(tmp_path: Path) -> None:
    """It is whole, or it is not there."""
    with watched_disk() as disk:
        open_database(tmp_path / "database").close()
    disk.assert_durable(tmp_path / "database")


@pytest_twisted.ensureDeferred
async def test_a_blob(tmp_path: Path, threads: Threads) -> None:
    """It is trusted by its size from then on."""
    blob = Descriptor(Digest.of(CONTENT), len(CONTENT))

    async def download(offset: int, sink: BlobSink) -> None:
        sink.begin(offset)
        sink.write(CONTENT)

    with watched_disk() as disk:
        async with BlobFiles(tmp_path, threads, real).get(blob, download, ignore, ignore) as path:
            disk.assert_durable(path)


@pytest_twisted.ensureDeferred
async def test_a_converted_file(tmp_path: Path, threads: Threads) -> None:
    """A delivery gives it a second name without another look at its bytes."""
    site = Site(tmp_path, threads)
    with watched_disk() as disk:
        built = await site.built(site.two)
    disk.assert_durable(built.path)
    disk.assert_durable(built.path.with_suffix(".json"))


@pytest_twisted.ensureDeferred
async def test_a_delivered_copy(tmp_path: Path, threads: Threads) -> None:
    """An image is READY only once it would outlive a power cut."""
    source, target = tmp_path / "converted", tmp_path / "images"
    source.write_bytes(CONTENT)
    source.chmod(0o640)  # another mode than a delivered file has: it gets no second name
    target.mkdir()
    with watched_disk() as disk:
        sha256 = hashlib.sha256(CONTENT).hexdigest()
        await LocalDirectory(target, threads).install(source, IMAGE, sha256, ignore)
    disk.assert_durable(target / IMAGE)


@pytest_twisted.ensureDeferred
async def test_a_second_name(tmp_path: Path, threads: Threads) -> None:
    """The name is synced; the content was when the file was converted."""
    source, target = tmp_path / "converted", tmp_path / "images"
    target.mkdir()
    with watched_disk() as disk:
        write_private(source, CONTENT)
        sha256 = hashlib.sha256(CONTENT).hexdigest()
        await LocalDirectory(target, threads).install(source, IMAGE, sha256, ignore)
    assert source.samefile(target / IMAGE)
    disk.assert_durable(target / IMAGE)


@pytest_twisted.ensureDeferred
async def test_delivered_metadata(tmp_path: Path, threads: Threads) -> None:
    """It says who may start the image."""
    with watched_disk() as disk:
        await LocalDirectory(tmp_path, threads).write(b"ENV:", META)
    disk.assert_durable(tmp_path / META)


def test_the_logins_of_a_user(tmp_path: Path) -> None:
    """The file is replaced: a half of it would cost the user all of them."""
    file = LoginFile(tmp_path)
    with watched_disk() as disk:
        file.change(lambda _: CONTENT)
    disk.assert_durable(file.path)


def test_a_blob_that_is_swept(tmp_path: Path) -> None:
    """It is gone for good, with the room that it took."""
    blob = BlobPaths.of(tmp_path, Digest.of(CONTENT))
    blob.whole.parent.mkdir()
    blob.whole.write_bytes(CONTENT)
    with watched_disk() as disk:
        assert sweep(tmp_path, time.time() + 60) == 1
    disk.assert_gone(blob.whole)


@pytest_twisted.ensureDeferred
async def test_a_converted_file_that_is_swept(tmp_path: Path, threads: Threads) -> None:
    """It is gone with what is known of it."""
    site = Site(tmp_path, threads)
    built = await site.built(site.two)
    with watched_disk() as disk:
        assert await site.builder.sweep(time.time() + 60) == 1
    disk.assert_gone(built.path)
    disk.assert_gone(built.path.with_suffix(".json"))


@pytest_twisted.ensureDeferred
async def test_a_removed_image(tmp_path: Path, threads: Threads) -> None:
    """What the admins have taken down does not come back."""
    (tmp_path / IMAGE).write_bytes(CONTENT)
    with watched_disk() as disk:
        await LocalDirectory(tmp_path, threads).remove(IMAGE)
        await LocalDirectory(tmp_path, threads).remove(META)
    disk.assert_gone(tmp_path / IMAGE)
