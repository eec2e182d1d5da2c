"""The rules of one job, on a real store and directory; source and builder are in memory."""

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
    LayerInvalid,
    NoSpace,
    NotStorable,
    RegistryUnavailable,
    Unavailable,
)
from shiftergw.model import ImageRecord, Ready
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
    """Return a worker on an empty store."""
    async with running_bench(tmp_path) as opened:
        yield opened


@pytest_twisted.ensureDeferred
async def test_a_pull_delivers_and_records(bench: Bench) -> None:
    """Image and metadata lie there, and the record says all that the original's did, and more."""
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
async def test_an_unchanged_tag_costs_one_request(bench: Bench) -> None:
    """A re-pull of what is there asks for the tag's digest, and for nothing else."""
    await bench.pull()
    bench.source.asked.clear()
    written = (bench.images / f"{MANIFEST.hex}.meta").stat().st_ino
    record = await bench.pull()
    assert record.status is State.READY
    assert bench.source.asked == ["head"]
    assert bench.builder.built == 1
    assert (bench.images / f"{MANIFEST.hex}.meta").stat().st_ino == written


@pytest_twisted.ensureDeferred
async def test_a_lost_file_is_made_again(bench: Bench) -> None:
    """A READY record whose file is gone, or has another size, is no reason to do nothing."""
    await bench.pull()
    (bench.images / f"{MANIFEST.hex}.squashfs").unlink()
    await bench.pull()
    assert bench.builder.built == 2
    (bench.images / f"{MANIFEST.hex}.squashfs").write_bytes(b"short")
    await bench.pull()
    assert bench.builder.built == 3


@pytest_twisted.ensureDeferred
async def test_another_tag_of_a_delivered_image_is_added(bench: Bench) -> None:
    """The second tag joins the record of the first; nothing is fetched or built."""
    await bench.pull("lib/app:1")
    record = await bench.pull("lib/app:2")
    assert sorted(record.tags) == ["lib/app:1", "lib/app:2"]
    assert (bench.builder.built, len(bench.cache.given)) == (1, 1)


@pytest_twisted.ensureDeferred
async def test_a_private_image_belongs_to_its_puller(bench: Bench) -> None:
    """In the record and in the metadata alike, from the first moment."""
    bench.source.private = True
    record = await bench.pull(login="alice:secret")
    assert (record.private, record.user_acl) == (True, (2001,))
    assert bench.meta().user_acl == (2001,)


@pytest_twisted.ensureDeferred
async def test_a_second_user_with_access_is_added(bench: Bench) -> None:
    """He is added to the record and the metadata, nobody is removed, nothing is built again."""
    bench.source.private = True
    await bench.pull(login="alice:secret")
    record = await bench.pull(uid=2002, login="bob:other")
    assert record.user_acl == (2001, 2002)
    assert bench.meta().user_acl == (2001, 2002)
    assert bench.builder.built == 1


@pytest_twisted.ensureDeferred
async def test_a_user_without_access_is_refused_alone(bench: Bench) -> None:
    """His failure is his own; the private image stays as it was."""
    bench.source.private = True
    await bench.pull(login="alice:secret")
    record = await bench.pull(uid=2002)
    assert (record.status, record.own_failure) == (State.FAILURE, True)
    assert record.cause == "The registry refused the image."
    found = await bench.store.find(SYSTEM, "docker", ["lib/app:1"])
    assert found is not None
    assert found.user_acl == (2001,)


@pytest_twisted.ensureDeferred
async def test_a_copied_manifest_is_no_way_to_a_private_image(bench: Bench) -> None:
    """The same manifest at another place is believed only once every blob came from there."""
    bench.source.private = True
    await bench.pull("lib/app:1", login="alice:secret")
    bench.cache.given.clear()
    bench.source.repository = "bob/copy"
    await bench.pull("bob/copy:1", uid=2002, login="bob:other")
    assert bench.cache.given == [LAYER.digest]


@pytest_twisted.ensureDeferred
async def test_a_public_image_stays_public(bench: Bench) -> None:
    """That it also lies in somebody's private repository takes it from nobody."""
    await bench.pull("lib/app:1")
    bench.source.private = True
    bench.source.repository = "alice/copy"
    record = await bench.pull("alice/copy:1", login="alice:secret")
    assert (record.private, record.user_acl) == (False, ())
    assert bench.meta().user_acl is None


@pytest_twisted.ensureDeferred
async def test_a_record_of_the_original_counts_as_current(bench: Bench) -> None:
    """The original stored the digest of the index as id, and nothing about its origin."""
    first = await bench.pull()
    for name in ("squashfs", "meta"):
        path = bench.images / f"{MANIFEST.hex}.{name}"
        path.rename(bench.images / f"{INDEX.hex}.{name}")
    await remove_record(bench.store, first.key)
    old = await bench.claim()
    begun = await bench.store.begin(old.key, "here:1", 1000.0, 60)
    assert begun is not None
    await bench.store.finish(old.key, begun.attempt, Ready(INDEX.hex, {"private": False}), 1000.0)
    bench.source.asked.clear()
    record = await bench.pull()
    assert record.id == INDEX.hex
    assert bench.source.asked == ["head"]


@pytest_twisted.ensureDeferred
async def test_errors_become_reasons(bench: Bench) -> None:
    """Cause, remedy and whether a retry helps; only what concerns a login is a user's own."""
    bench.source.refuses = RegistryUnavailable("The registry is away.", remedy="Wait.")
    record = await bench.pull()
    assert (record.status, record.cause, record.remedy, record.retryable, record.own_failure) == (
        State.FAILURE, "The registry is away.", "Wait.", True, False,
    )  # fmt: skip
    assert record.sealed is None
    bench.source.refuses = None
    bench.builder.fails = RuntimeError("a surprise with /secret/path")
    record = await bench.pull()
    assert record.status is State.FAILURE
    assert "secret" not in f"{record.cause} {record.remedy}"
    assert not bench.images.joinpath(f"{MANIFEST.hex}.squashfs").exists()


@pytest_twisted.ensureDeferred
async def test_what_cannot_fit_is_not_begun(bench: Bench) -> None:
    """A disk of the gateway, or the system's, that is too small is named before any download."""
    bench.cache.full = True
    record = await bench.pull()
    assert (record.status, record.cause) == (State.FAILURE, "The gateway's cache is full.")
    assert bench.cache.given == []


@pytest_twisted.ensureDeferred
async def test_layers_that_fail_are_looked_at_in_the_cache(bench: Bench) -> None:
    """What cannot be read may be damaged there; what has no `diff_id` is looked at before, too."""
    for error in (BlobCorrupt("bad"), LayerInvalid("worse")):
        bench.builder.fails = error
        await bench.pull()
    assert bench.cache.discarded == 4 * [LAYER.digest]


@pytest_twisted.ensureDeferred
async def test_an_image_that_kills_workers_is_given_up(bench: Bench) -> None:
    """After five dead workers the record ends as a failure, instead of killing a sixth."""
    record = await bench.claim()
    for n in range(MAX_ATTEMPTS):
        assert await bench.store.begin(record.key, f"dead:{n}", 1000.0 + 100 * n, 60) is not None
    await bench.worker.run(record.key)
    kept = await bench.store.get(record.key)
    assert kept is not None
    assert kept.status is State.FAILURE
    assert "workers died" in (kept.cause or "")


@pytest_twisted.ensureDeferred
async def test_who_died_while_he_delivered_holds_up_nobody(bench: Bench) -> None:
    """His lease is his successor's at once, and free for all when that one is done."""
    record = await bench.claim()
    assert await bench.store.begin(record.key, "dead:1", 1000.0, 60) is not None
    place = "images", MANIFEST.hex
    assert await bench.store.lease(*place, f"{record.key}/1", reactor.seconds(), 3600)
    await Deferred.fromCoroutine(bench.worker.run(record.key)).addTimeout(patient(20), reactor)
    kept = await bench.store.get(record.key)
    assert kept is not None
    assert (kept.status, kept.attempt) == (State.READY, 2)
    assert await bench.store.lease(*place, "another/1", reactor.seconds(), 60)


@pytest_twisted.ensureDeferred
async def test_work_that_somebody_else_does_is_left_alone(bench: Bench) -> None:
    """A record with a living heartbeat, or without work, is not touched."""
    record = await bench.claim()
    now = reactor.seconds()
    assert await bench.store.begin(record.key, "other:1", now, 60) is not None
    await bench.worker.run(record.key)
    await bench.worker.run("0" * 24)
    assert bench.source.asked == []


@pytest_twisted.ensureDeferred
async def test_a_superseded_attempt_stops_without_a_word(bench: Bench) -> None:
    """When a newer attempt has taken over, the old one's work is cancelled and writes nothing."""
    bench.source.hangs = True
    record = await bench.claim()
    running = Deferred.fromCoroutine(bench.worker.run(record.key))
    while bench.source.asked == []:
        await pause(0.05, reactor)
    later = reactor.seconds() + 1000
    newer = await bench.store.begin(record.key, "other:1", later, 60)
    assert newer is not None
    bench.source.hangs = False
    # The next news of the old attempt is refused; it has none of its own, so a heartbeat is due.
    running.addTimeout(patient(40), reactor)
    await running
    kept = await bench.store.get(record.key)
    assert kept is not None
    assert (kept.attempt, kept.runner) == (newer.attempt, "other:1")


@pytest_twisted.ensureDeferred
async def test_a_cancelled_worker_leaves_the_work_to_another(bench: Bench) -> None:
    """A worker that is told to stop requeues its record; that is no death."""
    bench.source.hangs = True
    record = await bench.claim()
    running = Deferred.fromCoroutine(bench.worker.run(record.key))
    while bench.source.asked == []:
        await pause(0.05, reactor)
    running.cancel()
    try:
        await running
    except CancelledError:
        pass
    else:
        raise AssertionError("the cancellation was swallowed")
    kept = await bench.store.get(record.key)
    assert kept is not None
    assert (kept.status, kept.runner, kept.deaths) == (State.PENDING, None, 0)
    assert "was stopped" in str(kept.status_message)
    assert await bench.store.begin(record.key, "next:1", 1000.0, 60) is not None


@pytest_twisted.ensureDeferred
async def test_work_that_does_not_end_is_abandoned(bench: Bench) -> None:
    """Its record is requeued although its clean-up hangs; that is a death."""
    assert not await bench.worker.abandon()
    bench.source.hangs = True
    record = await bench.claim()
    running = Deferred.fromCoroutine(bench.worker.run(record.key))
    while bench.source.asked == []:
        await pause(0.05, reactor)
    assert await bench.worker.abandon()
    requeued = await bench.store.get(record.key)
    assert requeued is not None
    assert (requeued.status, requeued.runner, requeued.deaths) == (State.PENDING, None, 1)
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    assert await bench.store.get(record.key) == requeued
    assert not await bench.worker.abandon()


@pytest_twisted.ensureDeferred
async def test_a_stop_does_not_wait_long_for_the_store(bench: Bench) -> None:
    """The process would be killed meanwhile; whoever stops it knows of the record, too."""
    bench.source.hangs = True
    record = await bench.claim()
    running = Deferred.fromCoroutine(bench.worker.run(record.key))
    while bench.source.asked == []:
        await pause(0.05, reactor)

    async def away(*_: Any, **__: Any) -> Any:
        raise Unavailable("The gateway's database does not answer.")

    bench.store.requeue = away  # type: ignore[method-assign]
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    kept = await bench.store.get(record.key)
    assert kept is not None
    assert kept.runner == "here:1"


@pytest_twisted.ensureDeferred
async def test_a_worker_without_descriptors(bench: Bench) -> None:
    """It fails nobody's pull: it ends, and the record is left to whatever has started it."""
    bench.builder.fails = NoSpace("The gateway's files cannot be read.")
    bench.builder.fails.__cause__ = OSError(errno.EMFILE, "Too many open files")
    record = await bench.claim()
    with pytest.raises(Exhausted):
        await bench.worker.run(record.key)
    kept = await bench.store.get(record.key)
    assert kept is not None
    assert (kept.runner, kept.in_flight) == ("here:1", True)


class AwayAtTheEnd(SqliteStore):
    """A store that cannot be reached when the first ends are to be written."""

    away = 2

    async def finish(self, *arguments: Any) -> ImageRecord:
        """Write an end, or raise `Unavailable`."""
        if self.away:
            self.away -= 1
            raise Unavailable("The gateway's database does not answer.")
        return await super().finish(*arguments)


@pytest_twisted.ensureDeferred
async def test_an_end_waits_for_the_store(tmp_path: Path) -> None:
    """Work that is done is not done again because the store was away for a moment."""
    async with running_bench(tmp_path, AwayAtTheEnd) as bench:
        record = await bench.pull()
        assert isinstance(bench.store, AwayAtTheEnd)
        assert (record.status, record.attempt, bench.store.away) == (State.READY, 1, 0)
        assert bench.builder.built == 1


class Full(SqliteStore):
    """A store that cannot keep what a record of a delivered image says."""

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
async def test_an_end_that_cannot_be_written(
    tmp_path: Path, kind: type[SqliteStore], cause: str
) -> None:
    """The work ends as a failure that says so, and not with five workers one after the other."""
    async with running_bench(tmp_path, kind) as bench:
        record = await bench.pull()
        assert (record.status, record.attempt, record.retryable) == (State.FAILURE, 1, False)
        assert cause in str(record.cause)
        assert "secret" not in str(record.cause)
        assert await bench.store.lease("images", MANIFEST.hex, "another/1", 0.0, 9)


class AwayAtTheBegin(SqliteStore):
    """A store that cannot be reached when the first work is to be begun."""

    away = 2

    async def begin(self, *arguments: Any) -> ImageRecord | None:
        """Begin, or raise `Unavailable`."""
        if self.away:
            self.away -= 1
            raise Unavailable("The gateway's database does not answer.")
        return await super().begin(*arguments)


@pytest_twisted.ensureDeferred
async def test_a_begin_waits_for_the_store(tmp_path: Path) -> None:
    """Work that a worker was given is not left lying because the store was away for a moment."""
    async with running_bench(tmp_path, AwayAtTheBegin) as bench:
        record = await bench.pull()
        assert isinstance(bench.store, AwayAtTheBegin)
        assert (record.status, record.attempt, bench.store.away) == (State.READY, 1, 0)


@pytest_twisted.ensureDeferred
async def test_work_that_takes_too_long(bench: Bench) -> None:
    """It ends as a failure that says so, once it is told; another record's lateness is nothing."""
    record = await bench.claim()
    bench.source.hangs = True
    worker = bench.worker
    running = Deferred.fromCoroutine(worker.run(record.key))
    while bench.source.asked == []:
        await pause(0.05, reactor)
    worker.time_out("f" * 24)
    assert not running.called
    worker.time_out(record.key)
    await running
    worker.time_out(record.key)
    failed = await bench.store.get(record.key)
    assert failed is not None
    assert (failed.status, failed.stage) == (State.FAILURE, "PULLING")
    assert "limit of time" in str(failed.cause)
