"""How attempts end: workers that die, stop or are superseded, and stores that are away."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.errors import (
    NoSpace,
    NotStorable,
    Unavailable,
)
from shiftergw.model.records import ImageRecord, Ready
from shiftergw.model.throughput import Throughput
from shiftergw.plumbing.exhaustion import Exhausted
from shiftergw.plumbing.timing import pause
from shiftergw.rules.attempts import MAX_ATTEMPTS
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from tests.job.workbench import MANIFEST, Bench, running_bench
from tests.patience import patient


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
async def test_a_worker_that_died_during_delivery_blocks_no_pull(bench: Bench) -> None:
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


class WithoutStatistics(SqliteStore):
    """A store that is unavailable just after the end of a pull."""

    async def add_throughput(self, work: Throughput) -> None:
        """Raise `Unavailable`."""
        raise Unavailable("The gateway's database does not answer.")


@pytest.mark.parametrize("kind", [SqliteStore, Full, WithoutStatistics])
@pytest_twisted.ensureDeferred
async def test_the_throughput_of_a_site(tmp_path: Path, kind: type[SqliteStore]) -> None:
    """Pulls and failures count, with their bytes; without a place for that the pull ends well."""
    async with running_bench(tmp_path, kind) as bench:
        record = await bench.pull()
        entries = await bench.store.list_throughput(0)
        counts = [(entry.pulls, entry.failures, entry.image_bytes) for entry in entries]
        assert record.size or kind is Full
        assert counts == {SqliteStore: [(1, 0, record.size)], Full: [(0, 1, 0)]}.get(kind, [])
        if kind is SqliteStore:
            await bench.pull(kind="acl")
            assert await bench.store.list_throughput(0) == entries


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
