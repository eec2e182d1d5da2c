"""The removal of the files of expired images."""

from __future__ import annotations

from pathlib import Path

import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.model.images import Digest
from shiftergw.model.records import ImageRecord
from shiftergw.rules.attempts import MAX_ATTEMPTS
from shiftergw.states import State
from tests.job.workbench import MANIFEST, SISTER, SYSTEM, Bench, running_bench


async def expiring(bench: Bench, record: ImageRecord) -> str:
    """Expire an image; return the key of the work."""
    expiring_record = await bench.store.expire(record.key)
    assert expiring_record is not None
    return expiring_record.key


@pytest_twisted.ensureDeferred
async def test_both_files_are_removed(tmp_path: Path) -> None:
    """The record becomes EXPIRED when both files are removed, not before."""
    async with running_bench(tmp_path) as bench:
        key = await expiring(bench, await bench.pull())
        assert len(list(bench.images.iterdir())) == 2
        await bench.worker.run(key)
        assert list(bench.images.iterdir()) == []
        record = await bench.store.get(key)
        assert record is not None
        assert (record.status, record.in_flight) == (State.EXPIRED, False)


@pytest_twisted.ensureDeferred
async def test_files_that_another_system_needs_stay(tmp_path: Path) -> None:
    """Systems that share a directory share its files; the last one removes them."""
    async with running_bench(tmp_path) as bench:
        first = await bench.pull()
        second = await bench.pull(system=SISTER)
        await bench.worker.run(await expiring(bench, first))
        assert len(list(bench.images.iterdir())) == 2
        await bench.worker.run(await expiring(bench, second))
        assert list(bench.images.iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_files_that_cannot_be_removed_are_not_forgotten(tmp_path: Path) -> None:
    """The removal is repeated until it succeeds, and the image is not READY meanwhile."""
    async with running_bench(tmp_path) as bench:
        key = await expiring(bench, await bench.pull())
        moved_images = bench.images.rename(bench.images.with_name("away"))
        for attempt in range(2, MAX_ATTEMPTS + 4):
            await bench.worker.run(key)
            record = await bench.store.get(key)
            assert record is not None
            assert (record.status, record.attempt) == (State.EXPIRING, attempt)
            await bench.age(key)
        moved_images.rename(bench.images)
        await bench.worker.run(key)
        assert list(bench.images.iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_an_unmounted_directory_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    """With the mount its files would be back, and no record would be left to remove them."""
    async with running_bench(tmp_path) as bench:
        first = await bench.pull()
        bench.source.manifest = bench.source.index = Digest.of(b"another")
        await bench.pull("lib/other:1")
        moved_images = bench.images.rename(bench.images.with_name("away"))
        bench.images.mkdir()
        key = await expiring(bench, first)
        await bench.worker.run(key)
        record = await bench.store.get(key)
        assert record is not None
        assert record.status is State.EXPIRING
        bench.images.rmdir()
        moved_images.rename(bench.images)
        await bench.age(key)
        await bench.worker.run(key)
        assert len(list(bench.images.iterdir())) == 2


@pytest_twisted.ensureDeferred
async def test_a_pull_cancels_a_removal(tmp_path: Path) -> None:
    """Pulled again before its files are removed, the image is READY again and keeps them."""
    async with running_bench(tmp_path) as bench:
        key = await expiring(bench, await bench.pull())
        record = await bench.pull()
        assert (record.status, record.key) == (State.READY, key)
        await bench.worker.run(key)
        assert len(list(bench.images.iterdir())) == 2
        assert await bench.store.find(SYSTEM, "docker", ["lib/app:1"]) is not None


@pytest_twisted.ensureDeferred
async def test_a_removal_does_no_harm_to_a_delivery_of_the_same_files(tmp_path: Path) -> None:
    """In either order, the files of a pull exist when it has ended."""
    async with running_bench(tmp_path) as bench:
        first = await bench.pull()
        building: Deferred[None] = Deferred()
        (bench.images / f"{MANIFEST.hex}.squashfs").unlink()  # so that it is built again
        bench.builder.on_build = lambda: building
        claim = await bench.claim("lib/app:2", system=SISTER)
        pulling = Deferred.fromCoroutine(bench.worker.run(claim.key))
        await bench.until(lambda: bench.builder.builds == 2)
        removing = Deferred.fromCoroutine(bench.worker.run(await expiring(bench, first)))
        building.callback(None)
        await pulling
        await removing
        image = await bench.store.find(SISTER, "docker", ["lib/app:2"])
        assert image is not None
        assert (bench.images / f"{MANIFEST.hex}.squashfs").exists()
        assert bench.meta_path.exists()
