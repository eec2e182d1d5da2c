"""Who may read an image after a pull, and how its access list changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from shiftergw.errors import Unavailable
from shiftergw.model.requests import ANONYMOUS
from shiftergw.plumbing import retry
from shiftergw.states import State
from tests.job.pulls import ALICE, BOB, CAROL, NEW_MANIFEST, ROOT, private_image
from tests.job.workbench import LAYER, SISTER, SYSTEM, running_bench


@pytest_twisted.ensureDeferred
async def test_a_second_user_proves_access_to_the_blobs(tmp_path: Path) -> None:
    """A second user proves access to manifest and blobs in the record's repository."""
    async with running_bench(tmp_path) as bench:
        await private_image(bench)
        bench.source.requests.clear()
        bench.cache.downloads.clear()
        record = await bench.pull(uid=BOB, login="bob:other")
        assert bench.source.requests == ["resolve", "prove"]
        assert record.user_acl == bench.meta().user_acl == (ALICE, BOB)
        assert bench.cache.downloads == []


@pytest_twisted.ensureDeferred
async def test_a_user_who_may_not_read_the_blobs_is_refused(tmp_path: Path) -> None:
    """Access to the manifest alone is no proof; only this user sees the failure."""
    async with running_bench(tmp_path) as bench:
        await private_image(bench)
        bench.source.blobs_are_closed = True
        record = await bench.pull(uid=BOB, login="bob:other")
        assert (record.status, record.own_failure) == (State.FAILURE, True)
        assert bench.meta().user_acl == (ALICE,)


@pytest_twisted.ensureDeferred
async def test_the_acl_is_changed_without_the_registry(tmp_path: Path) -> None:
    """Work of kind acl replaces the access list in record and metadata, without the registry."""
    async with running_bench(tmp_path) as bench:
        await private_image(bench)
        before = bench.meta_path.stat().st_ino
        bench.source.requests.clear()
        record = await bench.pull(user_acl=(CAROL,), group_acl=(2300,), kind="acl")
        assert bench.source.requests == []
        assert (record.user_acl, record.group_acl) == ((CAROL, ALICE), (2300,))
        assert (bench.meta().user_acl, bench.meta().group_acl) == ((CAROL, ALICE), (2300,))
        assert bench.meta_path.stat().st_ino != before
        record = await bench.pull(user_acl=(ALICE,), kind="acl")
        assert (record.user_acl, record.group_acl) == ((ALICE,), ())


@pytest_twisted.ensureDeferred
async def test_an_admin_changes_the_acl_too(tmp_path: Path) -> None:
    """The admin becomes a reader; the puller of record stays."""
    async with running_bench(tmp_path) as bench:
        await private_image(bench)
        record = await bench.pull(uid=ROOT, user_acl=(CAROL,), kind="acl", by_admin=True)
        assert (record.user_acl, record.requested_by) == ((CAROL, ROOT), ALICE)


@pytest_twisted.ensureDeferred
async def test_an_acl_that_cannot_be_delivered_is_a_failure(tmp_path: Path) -> None:
    """Record and metadata both stay as they were."""
    async with running_bench(tmp_path) as bench:
        await private_image(bench)
        moved_images = bench.images.rename(bench.images.with_name("away"))
        failure = await bench.pull(user_acl=(CAROL,), kind="acl")
        moved_images.rename(bench.images)
        assert failure.status is State.FAILURE
        image = await bench.store.find(SYSTEM, "docker", ["lib/app:1"])
        assert image is not None
        assert image.user_acl == bench.meta().user_acl == (ALICE,)


@pytest_twisted.ensureDeferred
async def test_a_private_image_is_not_ready_without_its_metadata(tmp_path: Path) -> None:
    """If the metadata cannot be written, the pull fails; the next pull repairs it."""
    async with running_bench(tmp_path) as bench:
        bench.meta_path.mkdir()  # no file can take its place
        failure = await private_image(bench)
        assert failure.status is State.FAILURE
        assert await bench.store.list(SYSTEM) == []
        bench.meta_path.rmdir()
        record = await private_image(bench)
        assert (record.status, bench.meta().user_acl) == (State.READY, (ALICE,))


@pytest_twisted.ensureDeferred
async def test_systems_with_one_directory_share_the_acl(tmp_path: Path) -> None:
    """Files have the same readers in every record, whichever system changed them."""
    async with running_bench(tmp_path) as bench:
        await private_image(bench)
        sister_record = await bench.pull(uid=BOB, login="bob:other", system=SISTER)
        record = await bench.store.find(SYSTEM, "docker", ["lib/app:1"])
        assert record is not None
        assert record.user_acl == sister_record.user_acl == bench.meta().user_acl == (ALICE, BOB)
        assert bench.builder.builds == 1
        assert (sister_record.env, sister_record.size, sister_record.origin) == (
            record.env,
            record.size,
            record.origin,
        )
        assert sister_record.requested_by == ALICE


@pytest_twisted.ensureDeferred
async def test_the_acl_follows_a_moved_tag(tmp_path: Path) -> None:
    """A new image under a private tag keeps the readers of the old one."""
    async with running_bench(tmp_path) as bench:
        await private_image(bench, user_acl=(CAROL,))
        bench.source.manifest, bench.source.index = NEW_MANIFEST, NEW_MANIFEST
        record = await bench.pull(login="alice:secret")
        assert (record.id, record.user_acl) == (NEW_MANIFEST.hex, (CAROL, ALICE))


@pytest_twisted.ensureDeferred
async def test_work_on_an_acl_adds_no_user_without_proof(tmp_path: Path) -> None:
    """The tag may mean another user's image when the work begins."""
    async with running_bench(tmp_path) as bench:
        await private_image(bench)
        record = await bench.pull(uid=BOB, user_acl=(CAROL,), kind="acl")
        assert (record.status, record.own_failure) == (State.FAILURE, True)
        assert bench.meta().user_acl == (ALICE,)


@pytest_twisted.ensureDeferred
async def test_readers_do_not_follow_a_tag_to_another_repository(tmp_path: Path) -> None:
    """If the reference means another repository than before, the old readers do not count."""
    async with running_bench(tmp_path) as bench:
        await private_image(bench)
        bench.source.repository = "elsewhere/app"
        bench.source.manifest = bench.source.index = NEW_MANIFEST
        record = await bench.pull(uid=BOB, login="bob:other")
        assert (record.user_acl, record.requested_by) == ((BOB,), BOB)


@pytest_twisted.ensureDeferred
async def test_record_and_metadata_stay_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the store fails after the metadata was written, the old metadata is written back."""
    monkeypatch.setattr(retry, "RETRY_SECONDS", 0.5)
    async with running_bench(tmp_path) as bench:
        await private_image(bench)

        async def fail(*_: object) -> None:
            raise Unavailable("The store is away.")

        bench.store.set_access = fail  # type: ignore[method-assign, assignment]
        record = await bench.pull(uid=BOB, login="bob:other")
        assert record.status is State.FAILURE
        assert bench.meta().user_acl == (ALICE,)


@pytest_twisted.ensureDeferred
async def test_the_anonymous_user_is_no_reader(tmp_path: Path) -> None:
    """A private image whose repository is public by now is public for every user."""
    async with running_bench(tmp_path, PrivateImagesWithoutAcl="public") as bench:
        await private_image(bench)
        bench.source.private = False
        record = await bench.pull(uid=ANONYMOUS)
        assert (record.status, record.private, record.user_acl) == (State.READY, False, ())


@pytest_twisted.ensureDeferred
async def test_an_expiring_image_keeps_its_readers(tmp_path: Path) -> None:
    """An image that another user pulls by another tag keeps its puller and readers."""
    async with running_bench(tmp_path) as bench:
        private = await private_image(bench, user_acl=(CAROL,))
        assert await bench.store.expire(private.key) is not None
        record = await bench.pull("lib/app:2", uid=BOB, login="bob:other")
        assert (record.status, record.user_acl) == (State.READY, (CAROL, ALICE, BOB))
        assert (record.requested_by, bench.meta().user_acl) == (ALICE, (CAROL, ALICE, BOB))


@pytest_twisted.ensureDeferred
async def test_an_image_that_became_private_meanwhile_is_not_reused(tmp_path: Path) -> None:
    """While a pull waits for the lease, the image is removed and delivered as Alice's private one.

    Bob has only read an equal manifest in another repository, so the image is built from the
    blobs there.
    """
    async with running_bench(tmp_path) as bench:
        public = await bench.pull()
        lease = bench.store.lease

        async def lease_after_removal(*arguments: Any) -> bool:
            bench.store.lease = lease  # type: ignore[method-assign]
            removal = await bench.store.expire(public.key)
            assert removal is not None
            await bench.worker.run(removal.key)
            assert not bench.image_path.exists()
            bench.source.repository = "lib/app"
            record = await private_image(bench)
            assert (record.private, record.user_acl) == (True, (ALICE,))
            bench.cache.downloads.clear()
            return await lease(*arguments)

        bench.store.lease = lease_after_removal  # type: ignore[method-assign, assignment]
        bench.source.repository = "bob/copy"
        await bench.pull("bob/copy:1", uid=BOB, login="bob:other")
        assert bench.cache.downloads == [LAYER.digest]
