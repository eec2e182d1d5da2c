"""Pulls of private, shared and blocked images, on real files."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, capturedLogs

from shiftergw.delivery.local import LocalDirectory
from shiftergw.errors import Unavailable
from shiftergw.model.images import Digest
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import ANONYMOUS
from shiftergw.plumbing import retry
from shiftergw.ports import Verification
from shiftergw.states import State
from tests.job.workbench import LAYER, MANIFEST, SISTER, SYSTEM, Bench, running_bench

ALICE, BOB, CAROL, ROOT = 2001, 2002, 2003, 0
NEW_MANIFEST = Digest.of(b"another manifest")


async def private_image(bench: Bench, **members: object) -> ImageRecord:
    """Let Alice pull her private image."""
    bench.source.private = True
    return await bench.pull(login="alice:secret", **members)


@pytest_twisted.ensureDeferred
async def test_a_refresh_by_a_reader_costs_one_request(tmp_path: Path) -> None:
    """The HEAD of the manifest shows that a known reader still has access."""
    async with running_bench(tmp_path) as bench:
        await private_image(bench)
        bench.source.requests.clear()
        record = await bench.pull(login="alice:secret")
        assert bench.source.requests == ["head"]
        assert record.user_acl == (ALICE,)


@pytest_twisted.ensureDeferred
async def test_record_of_a_weaker_verification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record says how the delivered file was verified, and why only by samples."""
    install = LocalDirectory.install

    async def with_samples(*arguments: Any) -> Verification:
        await install(*arguments)
        return Verification("samples", "the account runs no commands")

    async with running_bench(tmp_path) as bench:
        record = await bench.pull("lib/app:1")
        assert record.report is not None
        assert record.report["verification"] == {"method": "sha256", "reason": ""}
        assert {"PULLING", "TRANSFER"} <= record.report["seconds"].keys()
        bench.image_path.unlink()
        monkeypatch.setattr(LocalDirectory, "install", with_samples)
        record = await bench.pull("lib/app:1")
        assert record.report is not None
        assert record.report["verification"] == {
            "method": "samples",
            "reason": "the account runs no commands",
        }


@pytest_twisted.ensureDeferred
async def test_settings_that_no_runtime_can_read_are_not_in_the_record(tmp_path: Path) -> None:
    """Record and metadata agree. The report, the log and the answer name the omitted settings."""
    async with running_bench(tmp_path) as bench:
        bench.source.config = replace(
            bench.source.config, cmd=("echo", "it's"), env=("A=1", "B=a\nb")
        )
        with capturedLogs() as events:
            record = await bench.pull()
        assert (record.cmd, record.env) == (None, ("A=1",))
        assert (bench.meta().cmd, bench.meta().env) == (None, ("A=1",))
        assert record.report is not None
        assert record.report["metadata"] == ["CMD", "ENV B"]
        assert record.notice.endswith(": CMD, ENV B")
        assert [event["names"] for event in events if "names" in event] == ["CMD, ENV B"]


@pytest.mark.parametrize("is_enabled", [True, False])
@pytest_twisted.ensureDeferred
async def test_labels_that_do_not_fit(tmp_path: Path, *, is_enabled: bool) -> None:
    """The record has the labels that fit and names the omitted ones, if the site stores labels."""
    async with running_bench(tmp_path, ENABLE_LABELS=is_enabled, MaxRecordSize="1 KiB") as bench:
        labels = {"a": "x" * 2000, "b": "short"}
        bench.source.config = replace(bench.source.config, labels=labels)
        record = await bench.pull()
        assert record.labels == ({"b": "short"} if is_enabled else None)
        assert record.report is not None
        assert record.report["metadata"] == (["LABEL a"] if is_enabled else [])


@pytest_twisted.ensureDeferred
async def test_a_delivery_has_a_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery that hangs fails, may be retried, and names the configuration key."""

    async def hang(*_: Any) -> Verification:
        await Deferred[None]()
        raise AssertionError

    async with running_bench(tmp_path, StageLimits={"transfer": 0.2}) as bench:
        with monkeypatch.context() as patch:
            patch.setattr(LocalDirectory, "install", hang)
            record = await bench.pull()
        assert (record.status, record.retryable) == (State.FAILURE, True)
        assert record.cause == "Transferring the image took longer than 0.2 seconds."
        assert "`StageLimits.transfer`" in (record.remedy or "")


@pytest_twisted.ensureDeferred
async def test_a_bloated_environment_is_refused(tmp_path: Path) -> None:
    """A bloated environment fails before any download; the failure names the key."""
    async with running_bench(tmp_path) as bench:
        bench.source.config = replace(bench.source.config, env=("A=" + "\x01" * 20_000,))
        record = await bench.pull()
        assert record.status is State.FAILURE
        assert "in its record, which may have 65.5 kB" in (record.cause or "")
        assert "`MaxRecordSize`" in (record.remedy or "")
        assert bench.cache.downloads == []


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
async def test_an_image_that_lost_its_tag_stays_for_a_while(tmp_path: Path) -> None:
    """An untagged image expires after `KeepUntagged` at the earliest: batch jobs use its id."""
    async with running_bench(tmp_path, KeepUntagged="30:00:00:00") as bench:
        await bench.pull()
        bench.source.manifest, bench.source.index = NEW_MANIFEST, NEW_MANIFEST
        await bench.pull()
        (old,) = await bench.store.find_id([SYSTEM], MANIFEST.hex)
        assert old.tags == ()
        assert old.expiration is not None
        assert old.expiration > reactor.seconds() + 29 * 86400
        assert (bench.images / f"{MANIFEST.hex}.squashfs").exists()


@pytest_twisted.ensureDeferred
async def test_a_blocked_image_is_not_fetched(tmp_path: Path) -> None:
    """A block applies to the id of the image and to the digest of an index that leads to it."""
    async with running_bench(tmp_path) as bench:
        for digest in (bench.source.manifest, bench.source.index):
            await bench.store.block("images", digest.hex, ROOT, 1000.0)
            record = await bench.pull()
            assert record.status is State.FAILURE
            assert "taken this image down" in (record.cause or "")
            await bench.store.allow("images", digest.hex)
        assert bench.cache.downloads == []


@pytest_twisted.ensureDeferred
async def test_an_image_blocked_during_its_delivery_is_removed(tmp_path: Path) -> None:
    """An admin may block an image between the check and the end of its pull."""
    async with running_bench(tmp_path) as bench:
        bench.builder.on_build = lambda: bench.store.block("images", MANIFEST.hex, ROOT, 1000.0)
        record = await bench.claim()
        await bench.worker.run(record.key)
        (removal,) = await bench.store.waiting(math.inf, 5)
        assert removal.status is State.EXPIRING
        await bench.worker.run(removal.key)
        assert list(bench.images.iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_work_on_an_acl_adds_nobody_without_proof(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    "method", ["find", "find_id", "is_blocked", "lease", "heartbeat", "set_access", "release"]
)
@pytest_twisted.ensureDeferred
async def test_a_pull_survives_a_moment_without_the_store(tmp_path: Path, method: str) -> None:
    """The pull ends READY, and the metadata agrees with the record, whichever step failed."""
    async with running_bench(tmp_path) as bench:
        await private_image(bench)
        query = getattr(bench.store, method)
        calls: list[object] = []

        async def fail_once(*arguments: Any, **keywords: Any) -> Any:
            calls.append(arguments)
            if len(calls) == 1:
                raise Unavailable("The store is away.")
            return await query(*arguments, **keywords)

        setattr(bench.store, method, fail_once)
        bench.source.manifest = bench.source.index = NEW_MANIFEST
        record = await bench.pull(uid=BOB, login="bob:other")
        assert (record.status, record.user_acl) == (State.READY, (ALICE, BOB))
        assert bench.meta().user_acl == (ALICE, BOB)
        assert calls


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
async def test_a_touched_image_is_not_delivered_again(tmp_path: Path) -> None:
    """Equal bytes with another time cost no second request. The record gets the new time."""
    async with running_bench(tmp_path) as bench:
        record = await bench.pull()
        assert record.modified == int(bench.image_path.stat().st_mtime)
        os.utime(bench.image_path, (1, 1))
        bench.source.requests.clear()
        record = await bench.pull()
        assert (record.modified, bench.source.requests, bench.builder.builds) == (1, ["head"], 1)


@pytest_twisted.ensureDeferred
async def test_a_replaced_image_is_delivered_again(tmp_path: Path) -> None:
    """Other bytes of the same size are detected by their digest, once for all records."""
    async with running_bench(tmp_path) as bench:
        await bench.pull()
        await bench.pull(system=SISTER)
        bench.image_path.write_bytes(b"squashfz")
        os.utime(bench.image_path, (1, 1))
        bench.source.requests.clear()
        with capturedLogs() as events:
            record = await bench.pull()
        warnings = [event for event in events if event["log_level"] is LogLevel.warn]
        assert len(warnings) == 1
        assert bench.source.requests == ["head", "resolve"]
        assert bench.image_path.read_bytes() == b"squashfs"
        assert record.modified == int(bench.image_path.stat().st_mtime)
        assert (await bench.pull(system=SISTER)).modified == record.modified
        assert bench.builder.builds == 2


@pytest.mark.parametrize("damage", [b"USERACL: 2009\n", b"", None])
@pytest_twisted.ensureDeferred
async def test_damaged_metadata_is_written_again(tmp_path: Path, damage: bytes | None) -> None:
    """Damaged or missing metadata costs no download and no conversion, as the image exists."""
    async with running_bench(tmp_path) as bench:
        await private_image(bench)
        whole = bench.meta_path.read_bytes()
        if damage is None:
            bench.meta_path.unlink()
        else:
            bench.meta_path.write_bytes(damage)
        bench.source.requests.clear()
        record = await bench.pull(login="alice:secret")
        assert record.status is State.READY
        assert bench.meta_path.read_bytes() == whole
        assert (bench.source.requests, bench.builder.builds) == (["head"], 1)


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
