"""One job, on a real store and directory; source and builder are fakes."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.errors import (
    BlobCorrupt,
    ConfigurationError,
    LayerInvalid,
    NoSpace,
    NotStorable,
    RegistryUnavailable,
    Unavailable,
)
from shiftergw.model.records import ImageRecord, Ready
from shiftergw.plumbing.exhaustion import Exhausted
from shiftergw.plumbing.timing import pause
from shiftergw.rules.attempts import MAX_ATTEMPTS
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from tests.job.workbench import INDEX, LAYER, MANIFEST, SYSTEM, Bench, running_bench
from tests.patience import patient
from tests.store.places import remove_record


@pytest_twisted.async_yield_fixture()
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Yield a worker on an empty store."""
    async with running_bench(tmp_path) as running:
        yield running


@pytest_twisted.ensureDeferred
async def test_a_pull_delivers_and_records(bench: Bench) -> None:
    """Image and metadata are delivered, and the record has all members that the original wrote."""
    record = await bench.pull()
    assert (record.status, record.id, record.tags) == (State.READY, MANIFEST.hex, ("lib/app:1",))
    assert (bench.images / f"{MANIFEST.hex}.squashfs").read_bytes() == b"squashfs"
    assert bench.meta().env == ("A=1",)
    assert (record.format, record.arch, record.os, record.remotetype) == (
        "squashfs", "amd64", "linux", "dockerv2",
    )  # fmt: skip
    assert (record.private, record.user_acl, record.size) == (False, (), 8)
    assert record.origin is not None
    assert record.origin.source_digest == str(INDEX)
    assert record.report is not None
    assert record.report["setuid"] == 1
    assert record.expiration is not None
    assert not record.in_flight


@pytest_twisted.ensureDeferred
async def test_the_record_names_the_kind_of_source(bench: Bench) -> None:
    """The source says of which kind it is, and the record repeats it as `remotetype`."""
    bench.source.kind = "archive"
    assert (await bench.pull()).remotetype == "archive"


@pytest_twisted.ensureDeferred
async def test_an_unchanged_tag_costs_one_request(bench: Bench) -> None:
    """A repeated pull asks the registry for the tag's digest only."""
    await bench.pull()
    bench.source.requests.clear()
    inode = (bench.images / f"{MANIFEST.hex}.meta").stat().st_ino
    record = await bench.pull()
    assert record.status is State.READY
    assert bench.source.requests == ["head"]
    assert bench.builder.builds == 1
    assert (bench.images / f"{MANIFEST.hex}.meta").stat().st_ino == inode


@pytest_twisted.ensureDeferred
async def test_a_missing_file_is_delivered_again(bench: Bench) -> None:
    """Although the record is READY, a file that is missing or has another size is built again."""
    await bench.pull()
    (bench.images / f"{MANIFEST.hex}.squashfs").unlink()
    await bench.pull()
    assert bench.builder.builds == 2
    (bench.images / f"{MANIFEST.hex}.squashfs").write_bytes(b"short")
    await bench.pull()
    assert bench.builder.builds == 3


@pytest_twisted.ensureDeferred
async def test_another_tag_of_a_delivered_image_is_added(bench: Bench) -> None:
    """The record gets the second tag; nothing is downloaded or built."""
    await bench.pull("lib/app:1")
    record = await bench.pull("lib/app:2")
    assert sorted(record.tags) == ["lib/app:1", "lib/app:2"]
    assert (bench.builder.builds, len(bench.cache.downloads)) == (1, 1)


@pytest_twisted.ensureDeferred
async def test_a_private_image_belongs_to_its_puller(bench: Bench) -> None:
    """The record and the metadata name the puller from the first moment."""
    bench.source.private = True
    record = await bench.pull(login="alice:secret")
    assert (record.private, record.user_acl) == (True, (2001,))
    assert bench.meta().user_acl == (2001,)


@pytest_twisted.ensureDeferred
async def test_a_second_user_with_access_is_added(bench: Bench) -> None:
    """The record and the metadata get a second reader, and nothing is built again."""
    bench.source.private = True
    await bench.pull(login="alice:secret")
    record = await bench.pull(uid=2002, login="bob:other")
    assert record.user_acl == (2001, 2002)
    assert bench.meta().user_acl == (2001, 2002)
    assert bench.builder.builds == 1


@pytest_twisted.ensureDeferred
async def test_a_user_without_access_is_refused_alone(bench: Bench) -> None:
    """Only this user sees the failure; the private image stays as it was."""
    bench.source.private = True
    await bench.pull(login="alice:secret")
    record = await bench.pull(uid=2002)
    assert (record.status, record.own_failure) == (State.FAILURE, True)
    assert record.cause == "The registry refused the image."
    image = await bench.store.find(SYSTEM, "docker", ["lib/app:1"])
    assert image is not None
    assert image.user_acl == (2001,)


@pytest_twisted.ensureDeferred
async def test_a_copied_manifest_gives_no_access_to_a_private_image(bench: Bench) -> None:
    """An equal manifest in another repository is built from the blobs of that repository."""
    bench.source.private = True
    await bench.pull("lib/app:1", login="alice:secret")
    bench.cache.downloads.clear()
    bench.source.repository = "bob/copy"
    await bench.pull("bob/copy:1", uid=2002, login="bob:other")
    assert bench.cache.downloads == [LAYER.digest]


@pytest_twisted.ensureDeferred
async def test_a_public_image_stays_public(bench: Bench) -> None:
    """An equal image in a private repository does not make the public one private."""
    await bench.pull("lib/app:1")
    bench.source.private = True
    bench.source.repository = "alice/copy"
    record = await bench.pull("alice/copy:1", login="alice:secret")
    assert (record.private, record.user_acl) == (False, ())
    assert bench.meta().user_acl is None


@pytest_twisted.ensureDeferred
async def test_a_record_of_the_original_counts_as_current(bench: Bench) -> None:
    """The original stored the digest of the index as the id, and no origin."""
    first = await bench.pull()
    for name in ("squashfs", "meta"):
        path = bench.images / f"{MANIFEST.hex}.{name}"
        path.rename(bench.images / f"{INDEX.hex}.{name}")
    await remove_record(bench.store, first.key)
    old = await bench.claim()
    work = await bench.store.begin(old.key, "here:1", 1000.0, 60)
    assert work is not None
    await bench.store.finish(old.key, work.attempt, Ready(INDEX.hex, {"private": False}), 1000.0)
    bench.source.requests.clear()
    record = await bench.pull()
    assert record.id == INDEX.hex
    assert bench.source.requests == ["head"]


@pytest_twisted.ensureDeferred
async def test_errors_become_failures(bench: Bench) -> None:
    """The record gets cause, remedy and retryability, but no unexpected error and no setting."""
    bench.source.refuses = RegistryUnavailable("The registry is away.", remedy="Wait.")
    record = await bench.pull()
    assert (record.status, record.cause, record.remedy, record.retryable, record.own_failure) == (
        State.FAILURE, "The registry is away.", "Wait.", True, False,
    )  # fmt: skip
    assert record.sealed is None
    bench.source.refuses = None
    for error in (
        RuntimeError("a surprise with /secret/path"),
        ConfigurationError("clientKey cannot be read: /secret/path."),
    ):
        bench.builder.fails = error
        record = await bench.pull()
        assert record.status is State.FAILURE
        assert "secret" not in f"{record.cause} {record.remedy}"
    assert not bench.images.joinpath(f"{MANIFEST.hex}.squashfs").exists()


@pytest_twisted.ensureDeferred
async def test_an_image_that_cannot_fit_is_not_downloaded(bench: Bench) -> None:
    """If the gateway's disk is too small, the pull fails before any download."""
    bench.cache.full = True
    record = await bench.pull()
    assert (record.status, record.cause) == (State.FAILURE, "The gateway's cache is full.")
    assert bench.cache.downloads == []


@pytest_twisted.ensureDeferred
async def test_layers_that_fail_are_verified_in_the_cache(bench: Bench) -> None:
    """An unreadable layer may be damaged; a layer without `diff_id` is verified before, too."""
    for error in (BlobCorrupt("bad"), LayerInvalid("worse")):
        bench.builder.fails = error
        await bench.pull()
    assert bench.cache.discards == 4 * [LAYER.digest]


@pytest_twisted.ensureDeferred
async def test_an_image_that_kills_workers_fails(bench: Bench) -> None:
    """After five dead workers the record fails, instead of killing a sixth."""
    record = await bench.claim()
    for n in range(MAX_ATTEMPTS):
        assert await bench.store.begin(record.key, f"dead:{n}", 1000.0 + 100 * n, 60) is not None
    await bench.worker.run(record.key)
    result = await bench.store.get(record.key)
    assert result is not None
    assert result.status is State.FAILURE
    assert "workers died" in (result.cause or "")


@pytest_twisted.ensureDeferred
async def test_a_worker_that_died_during_delivery_blocks_nobody(bench: Bench) -> None:
    """The next attempt gets its lease at once and releases it at the end."""
    record = await bench.claim()
    assert await bench.store.begin(record.key, "dead:1", 1000.0, 60) is not None
    place = "images", MANIFEST.hex
    assert await bench.store.lease(*place, f"{record.key}/1", reactor.seconds(), 3600)
    await Deferred.fromCoroutine(bench.worker.run(record.key)).addTimeout(patient(20), reactor)
    result = await bench.store.get(record.key)
    assert result is not None
    assert (result.status, result.attempt) == (State.READY, 2)
    assert await bench.store.lease(*place, "another/1", reactor.seconds(), 60)


@pytest_twisted.ensureDeferred
async def test_the_work_of_another_worker_is_left_alone(bench: Bench) -> None:
    """A record with a living heartbeat, or one that does not exist, is not touched."""
    record = await bench.claim()
    now = reactor.seconds()
    assert await bench.store.begin(record.key, "other:1", now, 60) is not None
    await bench.worker.run(record.key)
    await bench.worker.run("0" * 24)
    assert bench.source.requests == []


@pytest_twisted.ensureDeferred
async def test_a_superseded_attempt_writes_nothing(bench: Bench) -> None:
    """When a newer attempt takes over, the work of the old one is cancelled."""
    bench.source.hangs = True
    record = await bench.claim()
    running = Deferred.fromCoroutine(bench.worker.run(record.key))
    while bench.source.requests == []:
        await pause(0.05, reactor)
    time = reactor.seconds() + 1000
    newer = await bench.store.begin(record.key, "other:1", time, 60)
    assert newer is not None
    bench.source.hangs = False
    # The old attempt has no progress to write; its next heartbeat is refused.
    running.addTimeout(patient(40), reactor)
    await running
    result = await bench.store.get(record.key)
    assert result is not None
    assert (result.attempt, result.runner) == (newer.attempt, "other:1")


@pytest_twisted.ensureDeferred
async def test_a_cancelled_worker_leaves_the_work_to_another(bench: Bench) -> None:
    """A worker that is stopped requeues its record, which does not count as a death."""
    bench.source.hangs = True
    record = await bench.claim()
    running = Deferred.fromCoroutine(bench.worker.run(record.key))
    while bench.source.requests == []:
        await pause(0.05, reactor)
    running.cancel()
    try:
        await running
    except CancelledError:
        pass
    else:
        raise AssertionError("the cancellation was swallowed")
    result = await bench.store.get(record.key)
    assert result is not None
    assert (result.status, result.runner, result.deaths) == (State.PENDING, None, 0)
    assert "was stopped" in str(result.status_message)
    assert await bench.store.begin(record.key, "next:1", 1000.0, 60) is not None


@pytest_twisted.ensureDeferred
async def test_work_that_does_not_end_is_abandoned(bench: Bench) -> None:
    """A record whose clean-up hangs is requeued, and the attempt counts as a death."""
    assert not await bench.worker.abandon()
    bench.source.hangs = True
    record = await bench.claim()
    running = Deferred.fromCoroutine(bench.worker.run(record.key))
    while bench.source.requests == []:
        await pause(0.05, reactor)
    assert await bench.worker.abandon()
    result = await bench.store.get(record.key)
    assert result is not None
    assert (result.status, result.runner, result.deaths) == (State.PENDING, None, 1)
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    assert await bench.store.get(record.key) == result
    assert not await bench.worker.abandon()


@pytest_twisted.ensureDeferred
async def test_a_stop_does_not_wait_long_for_the_store(bench: Bench) -> None:
    """A stop does not wait for the store; the parent of the worker requeues the record."""
    bench.source.hangs = True
    record = await bench.claim()
    running = Deferred.fromCoroutine(bench.worker.run(record.key))
    while bench.source.requests == []:
        await pause(0.05, reactor)

    async def fail(*_: Any, **__: Any) -> Any:
        raise Unavailable("The gateway's database does not answer.")

    bench.store.requeue = fail  # type: ignore[method-assign]
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    result = await bench.store.get(record.key)
    assert result is not None
    assert result.runner == "here:1"


@pytest_twisted.ensureDeferred
async def test_a_worker_without_descriptors_ends(bench: Bench) -> None:
    """A worker without descriptors fails no pull: its parent requeues the record."""
    bench.builder.fails = NoSpace("The gateway's files cannot be read.")
    bench.builder.fails.__cause__ = OSError(errno.EMFILE, "Too many open files")
    record = await bench.claim()
    with pytest.raises(Exhausted):
        await bench.worker.run(record.key)
    result = await bench.store.get(record.key)
    assert result is not None
    assert (result.runner, result.in_flight) == ("here:1", True)


class UnavailableAtTheEnd(SqliteStore):
    """A store that is unavailable for the first two outcomes."""

    failures = 2

    async def finish(self, *arguments: Any) -> ImageRecord:
        """Write an end, or raise `Unavailable`."""
        if self.failures:
            self.failures -= 1
            raise Unavailable("The gateway's database does not answer.")
        return await super().finish(*arguments)


@pytest_twisted.ensureDeferred
async def test_an_outcome_waits_for_the_store(tmp_path: Path) -> None:
    """The work is not repeated because the store was unavailable for a moment."""
    async with running_bench(tmp_path, UnavailableAtTheEnd) as bench:
        record = await bench.pull()
        assert isinstance(bench.store, UnavailableAtTheEnd)
        assert (record.status, record.attempt, bench.store.failures) == (State.READY, 1, 0)
        assert bench.builder.builds == 1


class Full(SqliteStore):
    """A store that cannot store the record of a delivered image."""

    error: Exception = NotStorable("The gateway's database cannot hold this.", detail="17 MB")

    async def finish(self, *arguments: Any) -> ImageRecord:
        """Write a bad end alone."""
        if isinstance(arguments[2], Ready):
            raise self.error
        return await super().finish(*arguments)


class Faulty(Full):
    """A store with a fault of its own."""

    error = ZeroDivisionError("/secret/path")


@pytest.mark.parametrize(
    ("kind", "cause"), [(Full, "cannot hold this"), (Faulty, "a fault of its own")]
)
@pytest_twisted.ensureDeferred
async def test_an_outcome_that_cannot_be_written(
    tmp_path: Path, kind: type[SqliteStore], cause: str
) -> None:
    """The pull fails with a cause, instead of being repeated by five workers."""
    async with running_bench(tmp_path, kind) as bench:
        record = await bench.pull()
        assert (record.status, record.attempt, record.retryable) == (State.FAILURE, 1, False)
        assert cause in str(record.cause)
        assert "secret" not in str(record.cause)
        assert await bench.store.lease("images", MANIFEST.hex, "another/1", 0.0, 9)


class UnavailableAtTheBegin(SqliteStore):
    """A store that is unavailable for the first two begins."""

    failures = 2

    async def begin(self, *arguments: Any) -> ImageRecord | None:
        """Begin, or raise `Unavailable`."""
        if self.failures:
            self.failures -= 1
            raise Unavailable("The gateway's database does not answer.")
        return await super().begin(*arguments)


@pytest_twisted.ensureDeferred
async def test_a_begin_waits_for_the_store(tmp_path: Path) -> None:
    """Offered work is not lost because the store was unavailable for a moment."""
    async with running_bench(tmp_path, UnavailableAtTheBegin) as bench:
        record = await bench.pull()
        assert isinstance(bench.store, UnavailableAtTheBegin)
        assert (record.status, record.attempt, bench.store.failures) == (State.READY, 1, 0)


@pytest_twisted.ensureDeferred
async def test_work_that_takes_too_long_fails(bench: Bench) -> None:
    """Work fails at its timeout; the timeout of another record changes nothing."""
    record = await bench.claim()
    bench.source.hangs = True
    worker = bench.worker
    running = Deferred.fromCoroutine(worker.run(record.key))
    while bench.source.requests == []:
        await pause(0.05, reactor)
    worker.time_out("f" * 24)
    assert not running.called
    worker.time_out(record.key)
    await running
    worker.time_out(record.key)
    result = await bench.store.get(record.key)
    assert result is not None
    assert (result.status, result.stage) == (State.FAILURE, "PULLING")
    assert "limit of time" in str(result.cause)
