"""Files that must survive a power cut are on the disk before they are used or reported."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet import reactor

from shiftergw.cache.blob_cache import BlobFiles
from shiftergw.cache.blobs import BlobPaths, CachedBlobs
from shiftergw.cache.upload_spool import UploadFiles
from shiftergw.cache.upload_states import data_path
from shiftergw.cli.logins import LoginFile
from shiftergw.delivery.local import LocalDirectory
from shiftergw.model.images import Descriptor, Digest
from shiftergw.model.uploads import UploadDeclaration
from shiftergw.plumbing.files import write_private
from shiftergw.plumbing.seal import Seal
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import BlobSink, DeltaSource, SharedRange
from shiftergw.store.sqlite.database import open_database
from tests.build.packing import PackSite
from tests.build.site import Site
from tests.durability import watched_disk
from tests.images import tar_of

real: Any = reactor

CONTENT = os.urandom(100_000)
IMAGE = f"{'ab' * 32}.squashfs"
NEXT_IMAGE = f"{'cd' * 32}.squashfs"
META = f"{'ab' * 32}.meta"


def ignore(_: object) -> None:
    """Ignore a report."""


def test_a_private_file(tmp_path: Path) -> None:
    """The list of known hosts and the description of a converted file survive a power cut."""
    with watched_disk() as disk:
        write_private(tmp_path / "file", CONTENT)
    disk.assert_durable(tmp_path / "file")


def test_the_secret_key(tmp_path: Path) -> None:
    """The key survives: without it no login in the store can be read."""
    with watched_disk() as disk:
        Seal.from_file(tmp_path / "key")
    disk.assert_durable(tmp_path / "key")


def test_a_new_database(tmp_path: Path) -> None:
    """A new database is complete after a power cut, or does not exist."""
    with watched_disk() as disk:
        open_database(tmp_path / "database").close()
    disk.assert_durable(tmp_path / "database")


@pytest_twisted.ensureDeferred
async def test_a_blob(tmp_path: Path, threads: Threads) -> None:
    """A downloaded blob survives, since later only its size is checked."""
    blob = Descriptor(Digest.of(CONTENT), len(CONTENT))

    async def download(offset: int, sink: BlobSink) -> None:
        sink.begin(offset)
        sink.write(CONTENT)

    with watched_disk() as disk:
        async with BlobFiles(tmp_path, threads, real).get(blob, download, ignore, ignore) as path:
            disk.assert_durable(path)


@pytest_twisted.ensureDeferred
async def test_a_converted_file(tmp_path: Path, threads: Threads) -> None:
    """A converted file survives, since a delivery links it without reading it again."""
    site = Site(tmp_path, threads)
    with watched_disk() as disk:
        image = await site.build_image(site.two)
    disk.assert_durable(image.path)
    disk.assert_durable(image.path.with_suffix(".json"))


@pytest_twisted.ensureDeferred
async def test_a_pack(tmp_path: Path, threads: Threads) -> None:
    """A pack and its index survive, since later only size and time of the pack are compared."""
    packs = PackSite(tmp_path, threads)
    layer = packs.layer(tar_of({"a": CONTENT}))
    with watched_disk() as disk:
        pack = await packs.pack(layer)
    disk.assert_durable(pack.path)
    disk.assert_durable(packs.packer().files(layer.digest).sidecar)


@pytest_twisted.ensureDeferred
async def test_the_bytes_of_an_upload(tmp_path: Path, threads: Threads) -> None:
    """Bytes that count as uploaded survive: the client does not send them again."""
    spool = UploadFiles(tmp_path / "uploads", threads, real)
    await spool.startService()
    declaration = UploadDeclaration("mycluster", 2001, len(CONTENT), "ab" * 32, "sif", "x.sif")
    upload = await spool.add(declaration, 1.0)
    writer = await spool.open(upload.id)
    assert writer is not None
    with watched_disk() as disk:
        await writer.write(CONTENT)
        await writer.commit(2.0)
    disk.assert_synced(data_path(tmp_path / "uploads", upload.id))
    await writer.close()


@pytest_twisted.ensureDeferred
async def test_a_delivered_copy(tmp_path: Path, threads: Threads) -> None:
    """A delivered copy survives before its image is READY."""
    source, target = tmp_path / "converted", tmp_path / "images"
    source.write_bytes(CONTENT)
    source.chmod(0o640)  # not the mode of a delivered file, so it is copied instead of linked
    target.mkdir()
    with watched_disk() as disk:
        sha256 = hashlib.sha256(CONTENT).hexdigest()
        await LocalDirectory(target, threads).install(source, IMAGE, sha256, ignore)
    disk.assert_durable(target / IMAGE)


@pytest_twisted.ensureDeferred
async def test_a_copy_that_shares_ranges(tmp_path: Path, threads: Threads) -> None:
    """A copy that was put together from another image survives before its image is READY."""
    source, target = tmp_path / "converted", tmp_path / "images"
    source.write_bytes(CONTENT)
    source.chmod(0o640)  # so that it is no link
    target.mkdir()
    (target / IMAGE).write_bytes(CONTENT)
    delta = DeltaSource(IMAGE, len(CONTENT), (SharedRange(0, 0, len(CONTENT)),))
    with watched_disk() as disk:
        sha256 = hashlib.sha256(CONTENT).hexdigest()
        await LocalDirectory(target, threads).install(source, NEXT_IMAGE, sha256, ignore, delta)
    disk.assert_durable(target / NEXT_IMAGE)


@pytest_twisted.ensureDeferred
async def test_a_second_name(tmp_path: Path, threads: Threads) -> None:
    """A delivery by a hard link syncs the directory; the conversion has synced the content."""
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
    """Metadata survives, since it lists who may start the image."""
    with watched_disk() as disk:
        await LocalDirectory(tmp_path, threads).write(b"ENV:", META)
    disk.assert_durable(tmp_path / META)


def test_the_logins_of_a_user(tmp_path: Path) -> None:
    """The file of logins is replaced as a whole: half a file would lose all logins."""
    file = LoginFile(tmp_path)
    with watched_disk() as disk:
        file.change(lambda _: CONTENT)
    disk.assert_durable(file.path)


def test_a_blob_that_is_swept(tmp_path: Path) -> None:
    """A swept blob stays removed after a power cut."""
    blob = BlobPaths.of(tmp_path, Digest.of(CONTENT))
    blob.whole.parent.mkdir()
    blob.whole.write_bytes(CONTENT)
    with watched_disk() as disk:
        assert CachedBlobs(tmp_path).sweep(time.time() + 60) == 1
    disk.assert_gone(blob.whole)


@pytest_twisted.ensureDeferred
async def test_a_converted_file_that_is_swept(tmp_path: Path, threads: Threads) -> None:
    """A swept converted file and its description stay removed after a power cut."""
    site = Site(tmp_path, threads)
    image = await site.build_image(site.two)
    with watched_disk() as disk:
        assert await site.builder.sweep(time.time() + 60) == 1
    disk.assert_gone(image.path)
    disk.assert_gone(image.path.with_suffix(".json"))


@pytest_twisted.ensureDeferred
async def test_a_removed_image(tmp_path: Path, threads: Threads) -> None:
    """A removed image stays removed after a power cut, such as one that admins have taken down."""
    (tmp_path / IMAGE).write_bytes(CONTENT)
    with watched_disk() as disk:
        await LocalDirectory(tmp_path, threads).remove(IMAGE)
        await LocalDirectory(tmp_path, threads).remove(META)
    disk.assert_gone(tmp_path / IMAGE)
