"""Waiting work is offered to workers: in fair order, once, and again after a worker has died."""

from __future__ import annotations

from pathlib import Path

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import Clock

from shiftergw.model.records import Ready, WorkerMachine
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import PullRequest
from shiftergw.service.dispatch import Dispatch
from shiftergw.store.sqlite.store import SqliteStore
from tests.service.dispatch_rounds import LIMIT, SYSTEMS, begin, claim_work, run_round
from tests.work.fakes import FakeQueue
from tests.work.waiting import until


@pytest_twisted.ensureDeferred
async def test_waiting_work_is_offered(store: SqliteStore, clock: Clock) -> None:
    """A record is offered for each slot, in the store's fair order."""
    first = await claim_work(store, clock, 3, uid=1)
    clock.advance(1)
    second = await claim_work(store, clock, 1, uid=2)
    queue = FakeQueue(3)
    await run_round(Dispatch(store, queue, clock, LIMIT, SYSTEMS))
    assert queue.offered_keys == [first[0], second[0], first[1]]


@pytest_twisted.ensureDeferred
async def test_an_offer_is_made_once(store: SqliteStore, clock: Clock) -> None:
    """A record is not offered again while a worker may still begin it; the next record is."""
    keys = await claim_work(store, clock, 3)
    queue = FakeQueue(1)
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    for _ in range(2):
        await run_round(dispatch)
    queue.free_slots = 1
    await run_round(dispatch)
    assert queue.offered_keys == list(keys[:2])


@pytest_twisted.ensureDeferred
async def test_a_lost_offer_is_made_again(store: SqliteStore, clock: Clock) -> None:
    """A record that no worker has begun within the limit is offered again."""
    keys = await claim_work(store, clock, 1)
    queue = FakeQueue(5)
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    await run_round(dispatch)
    clock.advance(LIMIT - 1)
    await run_round(dispatch)
    assert queue.offered_keys == list(keys)
    clock.advance(1)
    await run_round(dispatch)
    assert queue.offered_keys == [keys[0], keys[0]]


@pytest_twisted.ensureDeferred
async def test_begun_work_is_not_offered(store: SqliteStore, clock: Clock) -> None:
    """The offer of begun work is forgotten, and not repeated while the heartbeat lives."""
    keys = await claim_work(store, clock, 1)
    queue = FakeQueue(5)
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    await run_round(dispatch)
    await begin(store, keys[0], clock)
    await run_round(dispatch)
    assert dispatch._offers == {}
    assert queue.offered_keys == list(keys)


@pytest_twisted.ensureDeferred
async def test_stale_work_is_offered_again(store: SqliteStore, clock: Clock) -> None:
    """Work without a heartbeat is offered first, after its worker was stopped."""
    keys = await claim_work(store, clock, 2)
    await begin(store, keys[0], clock)
    clock.advance(LIMIT + 1)
    queue = FakeQueue(5)
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    await run_round(dispatch)
    assert queue.cancelled_keys == [keys[0]]
    assert queue.offered_keys == list(keys)
    await run_round(dispatch)
    assert queue.cancelled_keys == [keys[0]]
    assert queue.offered_keys == list(keys)
    assert (await begin(store, keys[0], clock)).attempt == 2


@pytest_twisted.ensureDeferred
async def test_offers_do_not_exceed_the_slots(store: SqliteStore, clock: Clock) -> None:
    """With few slots, stale work is offered first and the rest waits."""
    keys = await claim_work(store, clock, 2)
    await begin(store, keys[1], clock)
    clock.advance(LIMIT + 1)
    queue = FakeQueue(1)
    await run_round(Dispatch(store, queue, clock, LIMIT, SYSTEMS))
    assert queue.offered_keys == [keys[1]]


@pytest_twisted.ensureDeferred
async def test_a_hung_worker_is_stopped_without_a_free_slot(
    store: SqliteStore, clock: Clock
) -> None:
    """The worker of stale work is stopped even if no slot is free."""
    keys = await claim_work(store, clock, 1)
    await begin(store, keys[0], clock)
    clock.advance(LIMIT + 1)
    queue = FakeQueue(0)
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    await run_round(dispatch)
    assert (queue.cancelled_keys, queue.offered_keys) == (list(keys), [])
    queue.free_slots = 1
    await run_round(dispatch)
    assert queue.offered_keys == list(keys)


@pytest_twisted.ensureDeferred
async def test_a_refused_offer_is_repeated(store: SqliteStore, clock: Clock) -> None:
    """A record that no worker took is offered in the next round."""
    keys = await claim_work(store, clock, 2)
    queue = FakeQueue(5)
    queue.refuses_offers = True
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    await run_round(dispatch)
    queue.refuses_offers = False
    await run_round(dispatch)
    assert queue.offered_keys == list(keys)


@pytest_twisted.ensureDeferred
async def test_an_unavailable_store(store: SqliteStore, clock: Clock, tmp_path: Path) -> None:
    """Rounds continue after failures; when the store is back, work is offered."""
    keys = await claim_work(store, clock, 1)
    await store.stopService()
    queue = FakeQueue(5)
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    await run_round(dispatch)
    assert queue.offered_keys == []
    new_store = SqliteStore(reactor, tmp_path / "images.sqlite")
    await new_store.startService()
    dispatch._store = new_store
    await run_round(dispatch)
    assert queue.offered_keys == list(keys)
    await new_store.stopService()


@pytest_twisted.ensureDeferred
async def test_wake(store: SqliteStore, clock: Clock) -> None:
    """New work is offered at once after `wake`, without waiting for the interval."""
    queue = FakeQueue(5)
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    dispatch.startService()
    await until(clock.getDelayedCalls)
    keys = await claim_work(store, clock, 1)
    dispatch.wake()
    await until(lambda: queue.offered_keys)
    assert queue.offered_keys == list(keys)
    await dispatch.stopService()


@pytest_twisted.ensureDeferred
async def test_no_user_has_all_slots(store: SqliteStore, clock: Clock) -> None:
    """With `running_per_user`, the next pull of a user is offered when one has ended."""
    first, second, third = await claim_work(store, clock, 3)
    queue = FakeQueue(5)
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS, running_per_user=2)
    dispatch.startService()
    await until(clock.getDelayedCalls)
    assert queue.offered_keys == [first, second]
    await begin(store, first, clock)
    await store.finish(first, 1, Ready("a" * 64), clock.seconds())
    dispatch.wake()
    await until(lambda: third in queue.offered_keys)
    await dispatch.stopService()


def machines_with(*machines: tuple[int, tuple[str, ...]]) -> list[WorkerMachine]:
    """Return machines with these numbers of slots for systems."""
    return [
        WorkerMachine(f"node{n}", "1", systems, slots, (), leaving=False, heard=0.0)
        for n, (slots, systems) in enumerate(machines)
    ]


@pytest_twisted.ensureDeferred
async def test_no_system_has_all_slots(store: SqliteStore, clock: Clock) -> None:
    """While work of another system waits, a slot is left for it; otherwise all are used."""
    keys = await claim_work(store, clock, 2, 1, "down")
    clock.advance(1)
    (late,) = await claim_work(store, clock, 1, 1, "up")
    queue = FakeQueue(2)
    queue.worker_machines = machines_with((2, SYSTEMS))
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    await run_round(dispatch)
    assert queue.offered_keys == [keys[0], late]
    for key in queue.offered_keys:
        await begin(store, key, clock)
    await store.finish(late, 1, Ready("a" * 64), clock.seconds())
    queue.free_slots = 1
    await run_round(dispatch)
    assert queue.offered_keys[2:] == [keys[1]]


@pytest_twisted.ensureDeferred
async def test_systems_with_machines_of_their_own_have_no_limit(
    store: SqliteStore, clock: Clock
) -> None:
    """Their work takes no slot that another system could have."""
    keys = await claim_work(store, clock, 3, 1, "down")
    clock.advance(1)
    await claim_work(store, clock, 3, 1, "up")
    queue = FakeQueue(3)
    queue.worker_machines = machines_with((3, ("down",)), (9, ("up",)))
    await run_round(Dispatch(store, queue, clock, LIMIT, SYSTEMS))
    assert queue.offered_keys == list(keys)


@pytest_twisted.ensureDeferred
async def test_no_registry_gets_the_last_slot(store: SqliteStore, clock: Clock) -> None:
    """A slot is left while a pull from another registry waits; otherwise all slots are used."""
    queue = FakeQueue(2)
    queue.worker_machines = machines_with((2, SYSTEMS))
    for n in range(3):
        reference = ImageReference.parse(f"slow:{n}")
        request = PullRequest("alpha", "docker", reference, n, location="slow.example")
        await store.claim(request, clock.seconds() + n / 100)
    request = PullRequest("alpha", "docker", ImageReference.parse("up:1"), 9, location="up.example")
    await store.claim(request, clock.seconds() + 1)
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    await run_round(dispatch)
    records = [await store.get(key) for key in queue.offered_keys]
    assert [record.location for record in records if record] == ["slow.example", "up.example"]
    up = queue.offered_keys[1]
    work = await begin(store, up, clock)
    await store.finish(up, work.attempt, Ready("a" * 64), clock.seconds())
    queue.free_slots = 1
    await run_round(dispatch)
    last = await store.get(queue.offered_keys[2])
    assert last is not None
    assert last.location == "slow.example"


@pytest_twisted.ensureDeferred
async def test_postponed_work_is_offered_at_its_time(store: SqliteStore, clock: Clock) -> None:
    """Postponed work is not offered earlier, although slots are free, and then only once."""
    queue = FakeQueue(2)
    (key,) = await claim_work(store, clock, 1)
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    await run_round(dispatch)
    record = await begin(store, key, clock)
    await store.postpone(key, record.attempt, clock.seconds() + 300, "ghcr.io", clock.seconds())
    clock.advance(299)
    await run_round(dispatch)
    assert queue.offered_keys == [key]
    clock.advance(1)
    await run_round(dispatch)
    assert queue.offered_keys == [key, key]
    record = await begin(store, key, clock)
    assert (record.attempt, record.deaths) == (2, 0)
