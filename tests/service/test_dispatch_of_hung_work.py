"""Rounds of the dispatcher while workers hang, end, or are missing."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from shiftergw.errors import Superseded
from shiftergw.model.records import Progress, WorkerMachine
from shiftergw.service.dispatch import STOP_SECONDS, Dispatch
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from tests.service.dispatch_rounds import LIMIT, SYSTEMS, begin, claim_work, run_round
from tests.work.fakes import FakeQueue
from tests.work.waiting import until


@pytest_twisted.ensureDeferred
async def test_workers_that_hang_are_stopped_side_by_side(store: SqliteStore, clock: Clock) -> None:
    """Other work does not wait for hung workers; their own work waits for a single time limit."""
    hung = await claim_work(store, clock, 3)
    for key in hung:
        await begin(store, key, clock)
    (waiting,) = await claim_work(store, clock, 1, 2)
    clock.advance(LIMIT + 1)
    queue = FakeQueue(5)
    queue.is_deaf = True
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    dispatch.startService()
    await until(lambda: len(queue.cancelled_keys) == 3)
    await until(lambda: queue.offered_keys)
    assert queue.offered_keys == [waiting]
    clock.advance(STOP_SECONDS)
    await until(lambda: len(queue.offered_keys) == 4)
    await dispatch.stopService()


@pytest_twisted.ensureDeferred
async def test_a_worker_that_does_not_stop_delays_only_its_own_record(
    store: SqliteStore, clock: Clock
) -> None:
    """Other work is offered at once, and its own record after the time limit."""
    hung, waiting = await claim_work(store, clock, 2)
    await begin(store, hung, clock)
    clock.advance(LIMIT + 1)
    queue = FakeQueue(5)
    queue.is_deaf = True
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    dispatch.startService()
    await until(lambda: queue.offered_keys)
    assert (queue.cancelled_keys, queue.offered_keys) == ([hung], [waiting])
    clock.advance(STOP_SECONDS)
    await until(lambda: len(queue.offered_keys) == 2)
    assert queue.offered_keys == [waiting, hung]
    await dispatch.stopService()


@pytest_twisted.ensureDeferred
async def test_a_system_without_workers_does_not_delay_other_systems(
    store: SqliteStore, clock: Clock
) -> None:
    """The work of a system without workers waits, while that of other systems is offered."""
    waiting = await claim_work(store, clock, 5, 1, "down")
    clock.advance(1)
    (free,) = await claim_work(store, clock, 1, 2, "up")
    queue = FakeQueue(2)
    queue.closed_systems = {"down", "alpha"}
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    await run_round(dispatch)
    assert queue.offered_keys == [free]
    queue.closed_systems = {"up"}
    await run_round(dispatch)
    assert queue.offered_keys == [free, waiting[0]]


@pytest_twisted.ensureDeferred
async def test_stale_work_without_workers_does_not_delay_other_work(
    store: SqliteStore, clock: Clock
) -> None:
    """Stale work waits for workers of its system; work of other systems is offered."""
    (stale,) = await claim_work(store, clock, 1, 1, "down")
    await begin(store, stale, clock)
    clock.advance(LIMIT + 1)
    (free,) = await claim_work(store, clock, 1, 2, "up")
    queue = FakeQueue(2)
    queue.closed_systems = {"down"}
    await run_round(Dispatch(store, queue, clock, LIMIT, SYSTEMS))
    assert queue.offered_keys == [free]


@pytest_twisted.ensureDeferred
async def test_work_that_was_requeued_stops_no_worker(store: SqliteStore, clock: Clock) -> None:
    """Requeued work is offered at once, and its next worker is not mistaken for the hung one."""
    (key,) = await claim_work(store, clock, 1)
    await begin(store, key, clock)
    await store.requeue(key, 1, "", died=True)
    queue = FakeQueue(5)
    await run_round(Dispatch(store, queue, clock, LIMIT, SYSTEMS))
    assert (queue.cancelled_keys, queue.offered_keys) == ([], [key])


@pytest_twisted.ensureDeferred
async def test_a_hung_worker_counts_as_a_death(store: SqliteStore, clock: Clock) -> None:
    """Later writes of the hung worker are refused, also before the next attempt begins."""
    (key,) = await claim_work(store, clock, 1)
    await begin(store, key, clock)
    clock.advance(LIMIT + 1)
    await run_round(Dispatch(store, FakeQueue(0), clock, LIMIT, SYSTEMS))
    record = await store.get(key)
    assert record is not None
    assert (record.status, record.deaths) == (State.PENDING, 1)
    assert "vanished" in str(record.status_message)
    with pytest.raises(Superseded):
        await store.heartbeat(key, 1, Progress(), clock.seconds())


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("limit", [1.0, 10.0])
async def test_a_successor_is_not_stopped(store: SqliteStore, clock: Clock, limit: float) -> None:
    """The successor runs, however long the stop of the hung worker and its own start take."""
    (key,) = await claim_work(store, clock, 1)
    await begin(store, key, clock)
    clock.advance(limit + 1)
    queue = FakeQueue(5)
    queue.is_deaf = True
    dispatch = Dispatch(store, queue, clock, limit, SYSTEMS)
    dispatch.startService()
    await until(lambda: queue.cancelled_keys)
    clock.advance(STOP_SECONDS)
    await until(lambda: queue.offered_keys)
    for _ in range(3):
        clock.advance(limit + 1)
        jobs = (key,)
        queue.worker_machines = [WorkerMachine("a", "1", SYSTEMS, 5, jobs, False, clock.seconds())]
        await until(clock.getDelayedCalls)
        dispatch.wake()
    await dispatch.stopService()
    assert (queue.cancelled_keys, queue.offered_keys) == ([key], [key])


@pytest_twisted.ensureDeferred
async def test_an_ended_job_allows_a_new_offer(store: SqliteStore, clock: Clock) -> None:
    """The next offer follows at once, also if the job ends before the first offer returns."""
    (key,) = await claim_work(store, clock, 1)
    queue = FakeQueue(5)
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    offer = queue.offer

    async def ending(key: str, system: str) -> None:
        dispatch.begin_settling(key)
        dispatch.end_settling(key)
        await offer(key, system)

    queue.offer = ending  # type: ignore[method-assign]
    await run_round(dispatch)
    await run_round(dispatch)
    assert queue.offered_keys == [key, key]
