"""Work reaches the workers: in turn, once, and again when it was left behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import Clock

from shiftergw.errors import Superseded
from shiftergw.model import (
    ImageRecord,
    ImageReference,
    Progress,
    PullRequest,
    Ready,
    WorkerMachine,
)
from shiftergw.service.dispatch import STOP_SECONDS, Dispatch
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from tests.work.fakes import FakeQueue
from tests.work.waiting import until

LIMIT = 60.0
SYSTEMS = ("alpha", "down", "up")


@pytest.fixture
def clock() -> Clock:
    """Return a clock at a time of day."""
    clock = Clock()
    clock.advance(1_000_000)
    return clock


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """Return a running store."""
    store = SqliteStore(reactor, tmp_path / "images.sqlite")
    pytest_twisted.blockon(store.startService())
    yield store
    if store.running:
        pytest_twisted.blockon(store.stopService())


async def claimed(
    store: SqliteStore, clock: Clock, count: int, uid: int = 1, system: str = "alpha"
) -> Sequence[str]:
    """Return the keys of new work."""
    keys = []
    for n in range(count):
        wish = PullRequest(system, "docker", ImageReference.parse(f"u{uid}:{n}"), uid)
        keys.append((await store.claim(wish, clock.seconds() + n / 100))[0].key)
    return keys


async def begin(store: SqliteStore, key: str, clock: Clock) -> ImageRecord:
    """Begin as a worker does."""
    record = await store.begin(key, "node:1", clock.seconds(), LIMIT)
    assert record is not None
    return record


async def one_round(dispatch: Dispatch) -> None:
    """Run one round to its end."""
    dispatch.startService()
    await dispatch.stopService()


@pytest_twisted.ensureDeferred
async def test_waiting_work_is_offered(store: SqliteStore, clock: Clock) -> None:
    """As much as there are slots for, in the store's fair order."""
    first = await claimed(store, clock, 3, uid=1)
    clock.advance(1)
    second = await claimed(store, clock, 1, uid=2)
    queue = FakeQueue(3)
    await one_round(Dispatch(store, queue, clock, LIMIT, SYSTEMS))
    assert queue.offered_keys == [first[0], second[0], first[1]]


@pytest_twisted.ensureDeferred
async def test_an_offer_is_made_once(store: SqliteStore, clock: Clock) -> None:
    """A record is not offered again while its worker may still begin it; the next one is."""
    keys = await claimed(store, clock, 3)
    queue = FakeQueue(1)
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    for _ in range(2):
        await one_round(dispatch)
    queue.free_slots = 1
    await one_round(dispatch)
    assert queue.offered_keys == list(keys[:2])


@pytest_twisted.ensureDeferred
async def test_a_lost_offer_is_made_again(store: SqliteStore, clock: Clock) -> None:
    """A record that nobody has begun for the limit is offered again."""
    keys = await claimed(store, clock, 1)
    queue = FakeQueue(5)
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    await one_round(dispatch)
    clock.advance(LIMIT - 1)
    await one_round(dispatch)
    assert queue.offered_keys == list(keys)
    clock.advance(1)
    await one_round(dispatch)
    assert queue.offered_keys == [keys[0], keys[0]]


@pytest_twisted.ensureDeferred
async def test_begun_work_is_forgotten(store: SqliteStore, clock: Clock) -> None:
    """What has begun is remembered no longer, and what lives is not offered."""
    keys = await claimed(store, clock, 1)
    queue = FakeQueue(5)
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    await one_round(dispatch)
    await begin(store, keys[0], clock)
    await one_round(dispatch)
    assert dispatch._offers == {}
    assert queue.offered_keys == list(keys)


@pytest_twisted.ensureDeferred
async def test_stale_work_is_taken_up_again(store: SqliteStore, clock: Clock) -> None:
    """Work without a heartbeat is offered before what waits, once its worker has been stopped."""
    keys = await claimed(store, clock, 2)
    await begin(store, keys[0], clock)
    clock.advance(LIMIT + 1)
    queue = FakeQueue(5)
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    await one_round(dispatch)
    assert queue.cancelled_keys == [keys[0]]
    assert queue.offered_keys == list(keys)
    await one_round(dispatch)
    assert queue.cancelled_keys == [keys[0]]
    assert queue.offered_keys == list(keys)
    assert (await begin(store, keys[0], clock)).attempt == 2


@pytest_twisted.ensureDeferred
async def test_no_more_than_the_slots(store: SqliteStore, clock: Clock) -> None:
    """Where slots are few, what was left behind goes first and the rest waits."""
    keys = await claimed(store, clock, 2)
    await begin(store, keys[1], clock)
    clock.advance(LIMIT + 1)
    queue = FakeQueue(1)
    await one_round(Dispatch(store, queue, clock, LIMIT, SYSTEMS))
    assert queue.offered_keys == [keys[1]]


@pytest_twisted.ensureDeferred
async def test_a_hanging_worker_makes_room(store: SqliteStore, clock: Clock) -> None:
    """Also when all slots are taken, the worker of stale work is stopped."""
    keys = await claimed(store, clock, 1)
    await begin(store, keys[0], clock)
    clock.advance(LIMIT + 1)
    queue = FakeQueue(0)
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    await one_round(dispatch)
    assert (queue.cancelled_keys, queue.offered_keys) == (list(keys), [])
    queue.free_slots = 1
    await one_round(dispatch)
    assert queue.offered_keys == list(keys)


@pytest_twisted.ensureDeferred
async def test_a_refused_offer(store: SqliteStore, clock: Clock) -> None:
    """What no worker took is offered in the next round."""
    keys = await claimed(store, clock, 2)
    queue = FakeQueue(5)
    queue.refuses_offers = True
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    await one_round(dispatch)
    queue.refuses_offers = False
    await one_round(dispatch)
    assert queue.offered_keys == list(keys)


@pytest_twisted.ensureDeferred
async def test_a_store_that_is_away(store: SqliteStore, clock: Clock, tmp_path: Path) -> None:
    """While the store is away rounds fail and go on; when it is back work is offered."""
    keys = await claimed(store, clock, 1)
    await store.stopService()
    queue = FakeQueue(5)
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    await one_round(dispatch)
    assert queue.offered_keys == []
    again = SqliteStore(reactor, tmp_path / "images.sqlite")
    await again.startService()
    dispatch._store = again
    await one_round(dispatch)
    assert queue.offered_keys == list(keys)
    await again.stopService()


@pytest_twisted.ensureDeferred
async def test_wake(store: SqliteStore, clock: Clock) -> None:
    """New work is offered when somebody wakes the dispatch, without waiting for the interval."""
    queue = FakeQueue(5)
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    dispatch.startService()
    await until(clock.getDelayedCalls)
    keys = await claimed(store, clock, 1)
    dispatch.wake()
    await until(lambda: queue.offered_keys)
    assert queue.offered_keys == list(keys)
    await dispatch.stopService()


@pytest_twisted.ensureDeferred
async def test_no_user_has_all_slots(store: SqliteStore, clock: Clock) -> None:
    """With `running_per_user` a user's next pull is offered once one of his has ended."""
    first, second, third = await claimed(store, clock, 3)
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


def crew_of(*machines: tuple[int, tuple[str, ...]]) -> list[WorkerMachine]:
    """Return machines with so many slots for these systems."""
    return [
        WorkerMachine(f"node{n}", "1", systems, slots, (), leaving=False, heard=0.0)
        for n, (slots, systems) in enumerate(machines)
    ]


@pytest_twisted.ensureDeferred
async def test_no_system_has_all_slots(store: SqliteStore, clock: Clock) -> None:
    """While others wait, a system's pulls leave a slot to them; alone they may have it."""
    keys = await claimed(store, clock, 2, 1, "down")
    clock.advance(1)
    (late,) = await claimed(store, clock, 1, 1, "up")
    queue = FakeQueue(2)
    queue.worker_machines = crew_of((2, SYSTEMS))
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    await one_round(dispatch)
    assert queue.offered_keys == [keys[0], late]
    for key in queue.offered_keys:
        await begin(store, key, clock)
    await store.finish(late, 1, Ready("a" * 64), clock.seconds())
    queue.free_slots = 1
    await one_round(dispatch)
    assert queue.offered_keys[2:] == [keys[1]]


@pytest_twisted.ensureDeferred
async def test_systems_with_machines_of_their_own_have_no_share(
    store: SqliteStore, clock: Clock
) -> None:
    """Their work takes no slot that another system could have."""
    keys = await claimed(store, clock, 3, 1, "down")
    clock.advance(1)
    await claimed(store, clock, 3, 1, "up")
    queue = FakeQueue(3)
    queue.worker_machines = crew_of((3, ("down",)), (9, ("up",)))
    await one_round(Dispatch(store, queue, clock, LIMIT, SYSTEMS))
    assert queue.offered_keys == list(keys)


@pytest_twisted.ensureDeferred
async def test_workers_that_hang_are_stopped_side_by_side(store: SqliteStore, clock: Clock) -> None:
    """However many cannot be stopped, the others' work does not wait, and theirs for one time."""
    hung = await claimed(store, clock, 3)
    for key in hung:
        await begin(store, key, clock)
    (waiting,) = await claimed(store, clock, 1, 2)
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
async def test_a_worker_that_cannot_be_stopped_stops_nobody_else(
    store: SqliteStore, clock: Clock
) -> None:
    """The others' work is offered at once, and its own after a while."""
    hung, waiting = await claimed(store, clock, 2)
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
async def test_a_system_without_workers_starves_nobody(store: SqliteStore, clock: Clock) -> None:
    """Its work waits, however much it is; another system's is offered, and its own later."""
    stuck = await claimed(store, clock, 5, 1, "down")
    clock.advance(1)
    (free,) = await claimed(store, clock, 1, 2, "up")
    queue = FakeQueue(2)
    queue.closed_systems = {"down", "alpha"}
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    await one_round(dispatch)
    assert queue.offered_keys == [free]
    queue.closed_systems = {"up"}
    await one_round(dispatch)
    assert queue.offered_keys == [free, stuck[0]]


@pytest_twisted.ensureDeferred
async def test_stale_work_without_workers_holds_up_nobody(store: SqliteStore, clock: Clock) -> None:
    """What was left behind on a system without workers waits for them; the others go on."""
    (left,) = await claimed(store, clock, 1, 1, "down")
    await begin(store, left, clock)
    clock.advance(LIMIT + 1)
    (free,) = await claimed(store, clock, 1, 2, "up")
    queue = FakeQueue(2)
    queue.closed_systems = {"down"}
    await one_round(Dispatch(store, queue, clock, LIMIT, SYSTEMS))
    assert queue.offered_keys == [free]


@pytest_twisted.ensureDeferred
async def test_work_that_was_requeued_stops_no_worker(store: SqliteStore, clock: Clock) -> None:
    """It is offered at once; whoever gets it is not taken for the one that hung."""
    (key,) = await claimed(store, clock, 1)
    await begin(store, key, clock)
    await store.requeue(key, 1, "", died=True)
    queue = FakeQueue(5)
    await one_round(Dispatch(store, queue, clock, LIMIT, SYSTEMS))
    assert (queue.cancelled_keys, queue.offered_keys) == ([], [key])


@pytest_twisted.ensureDeferred
async def test_a_hung_worker_counts_as_a_death(store: SqliteStore, clock: Clock) -> None:
    """What it still writes is refused, also before its successor has begun."""
    (key,) = await claimed(store, clock, 1)
    await begin(store, key, clock)
    clock.advance(LIMIT + 1)
    await one_round(Dispatch(store, FakeQueue(0), clock, LIMIT, SYSTEMS))
    record = await store.get(key)
    assert record is not None
    assert (record.status, record.deaths) == (State.PENDING, 1)
    assert "vanished" in str(record.status_message)
    with pytest.raises(Superseded):
        await store.heartbeat(key, 1, Progress(), clock.seconds())


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("limit", [1.0, 10.0])
async def test_a_successor_is_not_stopped(store: SqliteStore, clock: Clock, limit: float) -> None:
    """However long the worker that hung took to stop, and however long its successor starts."""
    (key,) = await claimed(store, clock, 1)
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
async def test_an_offer_whose_job_has_ended(store: SqliteStore, clock: Clock) -> None:
    """It is made again without a wait, also if the end was told before the offer returned."""
    (key,) = await claimed(store, clock, 1)
    queue = FakeQueue(5)
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    offer = queue.offer

    async def ending(key: str, system: str) -> None:
        dispatch.begin_settling(key)
        dispatch.end_settling(key)
        await offer(key, system)

    queue.offer = ending  # type: ignore[method-assign]
    await one_round(dispatch)
    await one_round(dispatch)
    assert queue.offered_keys == [key, key]


@pytest_twisted.ensureDeferred
async def test_no_registry_gets_the_last_slot(store: SqliteStore, clock: Clock) -> None:
    """While another one's pull waits; when nothing else waits it may have them all."""
    queue = FakeQueue(2)
    queue.worker_machines = crew_of((2, SYSTEMS))
    for n in range(3):
        reference = ImageReference.parse(f"slow:{n}")
        wish = PullRequest("alpha", "docker", reference, n, location="slow.example")
        await store.claim(wish, clock.seconds() + n / 100)
    other = PullRequest("alpha", "docker", ImageReference.parse("up:1"), 9, location="up.example")
    await store.claim(other, clock.seconds() + 1)
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    await one_round(dispatch)
    offered = [await store.get(key) for key in queue.offered_keys]
    assert [record.location for record in offered if record] == ["slow.example", "up.example"]
    up = queue.offered_keys[1]
    begun = await begin(store, up, clock)
    await store.finish(up, begun.attempt, Ready("a" * 64), clock.seconds())
    queue.free_slots = 1
    await one_round(dispatch)
    last = await store.get(queue.offered_keys[2])
    assert last is not None
    assert last.location == "slow.example"


@pytest_twisted.ensureDeferred
async def test_postponed_work_is_offered_at_its_time(store: SqliteStore, clock: Clock) -> None:
    """Not before, though slots are free; then once, whoever had it before."""
    queue = FakeQueue(2)
    (key,) = await claimed(store, clock, 1)
    dispatch = Dispatch(store, queue, clock, LIMIT, SYSTEMS)
    await one_round(dispatch)
    record = await begin(store, key, clock)
    await store.postpone(key, record.attempt, clock.seconds() + 300, "ghcr.io", clock.seconds())
    clock.advance(299)
    await one_round(dispatch)
    assert queue.offered_keys == [key]
    clock.advance(1)
    await one_round(dispatch)
    assert queue.offered_keys == [key, key]
    again = await begin(store, key, clock)
    assert (again.attempt, again.deaths) == (2, 0)
