"""Records of jobs that ended without a result go back at once; those without workers fail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import Clock

from shiftergw.errors import Unavailable
from shiftergw.model import (
    Expired,
    Failed,
    ImageRecord,
    ImageReference,
    Progress,
    PullRequest,
    Ready,
)
from shiftergw.ports import JobEnd, QueueTrouble
from shiftergw.rules.attempts import MAX_ATTEMPTS
from shiftergw.service.dispatch import Dispatch
from shiftergw.service.recovery import (
    HANDOVER_SECONDS,
    INTERVAL,
    STOP_SECONDS,
    Recovery,
    WorkerShortage,
)
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from tests.work.fakes import FakeQueue
from tests.work.waiting import until

LIMIT = 60.0
RUNNER = "node:7"
KILLED = "was killed by signal 9"


class AwayOnce(SqliteStore):
    """A store that is unavailable for as many calls of `get` and `requeue` as the test says."""

    away = 0

    async def get(self, key: str) -> ImageRecord | None:
        """See `ImageStore`."""
        self._miss()
        return await super().get(key)

    async def requeue(self, *arguments: Any, **named: Any) -> ImageRecord:
        """See `ImageStore`."""
        self._miss()
        return await super().requeue(*arguments, **named)

    def _miss(self) -> None:
        if self.away:
            self.away -= 1
            raise Unavailable("The gateway's database does not answer.")


class Bench:
    """A recovery with a store, a dispatch, and a queue with slots in memory."""

    def __init__(self, store: AwayOnce) -> None:
        self.store, self.queue, self.clock = store, FakeQueue(9), Clock()
        self.clock.advance(1_000_000)
        self.dispatch = Dispatch(store, self.queue, self.clock, LIMIT, ["alpha"])
        self.recovery = Recovery(store, self.dispatch, self.clock)
        self.recovery.startService()

    async def claim(self, tag: str = "u:1", **members: Any) -> str:
        """Return the key of new work."""
        wish = PullRequest("alpha", "docker", ImageReference.parse(tag), 1, **members)
        return (await self.store.claim(wish, self.clock.seconds()))[0].key

    async def begin(self, key: str, runner: str = RUNNER) -> int:
        """Begin work as a worker does, and return the number of the attempt."""
        record = await self.store.begin(key, runner, self.clock.seconds(), LIMIT)
        assert record is not None
        return record.attempt

    async def end(self, key: str, loss: str = "", *, died: bool = False) -> ImageRecord:
        """Report the end of a job, and return the record once that is settled."""
        self.recovery.job_ended(JobEnd(key, RUNNER, loss, died))
        while self.recovery._settling:
            self.clock.advance(1)
            await until(lambda: True)
            await self.store.find("alpha", "docker", [])
        record = await self.store.get(key)
        assert record is not None
        return record

    async def round(self) -> Sequence[str]:
        """Run a round of the dispatch, and return the keys that were offered so far."""
        self.dispatch.startService()
        await self.dispatch.stopService()
        return self.queue.offered_keys


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Return a bench with a running store."""
    store = AwayOnce(reactor, tmp_path / "images.sqlite")
    pytest_twisted.blockon(store.startService())
    yield Bench(store)
    pytest_twisted.blockon(store.stopService())


@pytest_twisted.ensureDeferred
async def test_a_death_is_known_at_once(bench: Bench) -> None:
    """The pull is PENDING again and says why; the next worker begins it without any wait."""
    key = await bench.claim()
    assert await bench.round() == [key]
    await bench.begin(key)
    record = await bench.end(key, KILLED, died=True)
    assert (record.status, record.runner, record.deaths) == (State.PENDING, None, 1)
    assert record.status_message == "The worker was killed by signal 9; another one takes over."
    assert await bench.round() == [key, key]
    assert bench.queue.cancelled_keys == []
    assert await bench.begin(key, "node:8") == 2


@pytest_twisted.ensureDeferred
async def test_an_orderly_stop_is_no_death(bench: Bench) -> None:
    """However often; a worker that requeued its record itself changes nothing any more."""
    key = await bench.claim()
    for attempt in range(1, MAX_ATTEMPTS + 2):
        assert await bench.begin(key) == attempt
        record = await bench.end(key, "ended with exit code 130")
        assert (record.status, record.deaths) == (State.PENDING, 0)
        assert "was stopped" in str(record.status_message)
        assert await bench.end(key, "ended with exit code 130") == record


@pytest_twisted.ensureDeferred
async def test_a_job_that_is_done(bench: Bench) -> None:
    """Nothing happens to what its worker has ended, nor to what another one has begun."""
    done, other, removal = [await bench.claim(f"u:{n}") for n in range(3)]
    await bench.store.finish(done, await bench.begin(done), Ready("a" * 64), 1.0)
    await bench.begin(other, "node:8")
    await bench.store.finish(removal, await bench.begin(removal), Ready("b" * 64), 1.0)
    await bench.store.expire(removal)
    again = await bench.begin(removal)
    await bench.store.finish(
        removal, again, Failed("EXPIRING", "x", "", True), bench.clock.seconds()
    )
    for key in (done, other, removal):
        before = await bench.store.get(key)
        assert await bench.end(key) == before
    later = bench.clock.seconds() + LIMIT + 1
    last = await bench.store.begin(removal, RUNNER, later, LIMIT)
    assert last is not None
    await bench.store.finish(removal, last.attempt, Expired(), later)


@pytest_twisted.ensureDeferred
async def test_a_job_that_is_done_but_not_ended(bench: Bench) -> None:
    """Its worker could not write the end; the work is done again, and that counts."""
    key = await bench.claim()
    await bench.begin(key)
    record = await bench.end(key)
    assert (record.status, record.deaths) == (State.PENDING, 1)


@pytest_twisted.ensureDeferred
async def test_an_offer_that_was_not_begun(bench: Bench) -> None:
    """It is made again at once: its worker could not start, or was stopped before."""
    key = await bench.claim()
    await bench.round()
    record = await bench.end(key, "ended with exit code 1")
    assert (record.attempt, record.deaths) == (0, 0)
    assert await bench.round() == [key, key]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("begins", [True, False])
async def test_an_image_that_kills_its_workers(bench: Bench, begins: bool) -> None:
    """After five deaths it fails, with the last one's reason; also if none of them got to begin."""
    key = await bench.claim()
    for _ in range(MAX_ATTEMPTS - 1):
        if begins:
            await bench.begin(key)
        assert (await bench.end(key, KILLED, died=True)).status is State.PENDING
    if begins:
        await bench.begin(key)
    record = await bench.end(key, KILLED, died=True)
    assert record.status is State.FAILURE
    assert record.cause == "5 workers died on this image; the last one was killed by signal 9."
    assert not record.in_flight
    assert record.own_failure is False


@pytest_twisted.ensureDeferred
async def test_a_store_that_is_away(bench: Bench) -> None:
    """The end is told as soon as the store is back."""
    key = await bench.claim()
    await bench.begin(key)
    bench.store.away = 3
    record = await bench.end(key, KILLED, died=True)
    assert (record.status, record.deaths) == (State.PENDING, 1)


@pytest_twisted.ensureDeferred
async def test_no_offer_before_the_end_is_settled(bench: Bench) -> None:
    """The same worker could begin the record again, and its new attempt would be requeued."""
    key = await bench.claim()
    await bench.store.postpone(
        key, await bench.begin(key), bench.clock.seconds(), "", bench.clock.seconds(), None
    )
    bench.store.away = 1
    bench.recovery.job_ended(JobEnd(key, RUNNER))
    assert await bench.round() == []
    record = await bench.end(key)
    assert (record.status, record.deaths) == (State.PENDING, 0)
    assert await bench.round() == [key]


@pytest_twisted.ensureDeferred
async def test_a_stop_gives_all_ends_the_same_seconds(bench: Bench) -> None:
    """Many workers may end while the store is unavailable."""
    keys = [await bench.claim(f"u:{n}") for n in range(5)]
    for key in keys:
        await bench.begin(key)
    bench.store.away = 1000
    for key in keys:
        bench.recovery.job_ended(JobEnd(key, RUNNER, KILLED, died=True))
    began = bench.clock.seconds()
    stopping = bench.recovery.stopService()
    while not stopping.called:
        bench.clock.advance(1)
        await until(lambda: True)
    assert bench.clock.seconds() - began <= STOP_SECONDS + 1
    bench.store.away = 0


@pytest_twisted.ensureDeferred
async def test_a_stop_waits_for_the_store_but_not_for_ever(bench: Bench) -> None:
    """What was reported before the stop is in the store after it."""
    key = await bench.claim()
    await bench.begin(key)
    bench.recovery.job_ended(JobEnd(key, RUNNER, KILLED, died=True))
    await bench.recovery.stopService()
    record = await bench.store.get(key)
    assert record is not None
    assert record.status is State.PENDING
    await bench.begin(key)
    bench.store.away = 1000
    bench.recovery.job_ended(JobEnd(key, RUNNER, KILLED, died=True))
    stopping = bench.recovery.stopService()
    while not stopping.called:
        bench.clock.advance(1)
        await until(lambda: True)
    bench.store.away = 0


@pytest_twisted.ensureDeferred
async def test_no_worker_can_start(bench: Bench) -> None:
    """Once that has lasted for the limit, what waits fails, and says so; removals wait on."""
    bench.queue.free_slots = 0
    waiting, requeued = await bench.claim("u:1"), await bench.claim("u:2", sealed="secret")
    await bench.store.requeue(requeued, await bench.begin(requeued), "", died=False)
    gone = await bench.claim("u:3")
    await bench.store.finish(gone, await bench.begin(gone), Ready("a" * 64), 1.0)
    await bench.store.expire(gone)
    working = await bench.claim("u:4")
    await bench.begin(working)
    shortage = WorkerShortage(bench.store, bench.queue, bench.clock, 600, ["alpha"], LIMIT)

    async def states() -> list[State]:
        shortage.startService()
        await shortage.stopService()
        keys = (waiting, requeued, gone, working)
        records = [await bench.store.get(key) for key in keys]
        return [record.status for record in records if record is not None]

    before = [State.PENDING, State.PENDING, State.EXPIRING, State.PULLING]
    assert await states() == before
    bench.queue.current_trouble = QueueTrouble("No worker can start.", "why", bench.clock.seconds())
    bench.clock.advance(599)
    assert await states() == before
    bench.clock.advance(1)
    bench.queue.current_trouble = QueueTrouble(
        "They are slow.", "", bench.clock.seconds() - 900, grave=False
    )
    assert await states() == before
    bench.queue.current_trouble = QueueTrouble(
        "No worker can start.", "why", bench.clock.seconds() - 600
    )
    # Another gateway has a worker that lives: it does the work, sooner or later.
    alive = bench.clock.seconds() - LIMIT + 1
    await bench.store.heartbeat(working, 1, Progress(), alive)
    assert await states() == before
    bench.clock.advance(2)
    assert await states() == before
    bench.clock.advance(HANDOVER_SECONDS)
    bench.queue.current_trouble = QueueTrouble(
        "No worker can start.", "why", bench.clock.seconds() - 600
    )
    assert await states() == [State.FAILURE, State.FAILURE, State.EXPIRING, State.PULLING]
    failed, own = await bench.store.get(waiting), await bench.store.get(requeued)
    assert failed is not None
    assert own is not None
    assert failed.cause == "For 10 minutes no worker could start on the gateway's machine."
    assert (failed.own_failure, own.own_failure, failed.retryable) == (False, True, True)
    assert own.sealed is None


class TestOtherGateway:
    """While no worker can start here, another gateway on the same store has one that does."""

    async def look(self, bench: Bench, shortage: WorkerShortage) -> None:
        """Have the shortage look at the store, one interval later."""
        bench.clock.advance(INTERVAL)
        shortage.startService()
        await shortage.stopService()

    async def convert(self, bench: Bench, key: str) -> None:
        """Do all work on a record."""
        attempt = await bench.begin(key, "other:8")
        await bench.store.finish(key, attempt, Ready(key.zfill(64)), bench.clock.seconds())

    def shortage(self, bench: Bench) -> WorkerShortage:
        """Return one that may fail pulls at once."""
        since = bench.clock.seconds() - 900
        bench.queue.current_trouble = QueueTrouble("No worker can start.", "why", since)
        return WorkerShortage(bench.store, bench.queue, bench.clock, 600, ["alpha"], LIMIT)

    @pytest_twisted.ensureDeferred
    async def test_between_two_pulls(self, bench: Bench) -> None:
        """A look that sees no work in progress leaves the pulls that wait."""
        shortage, waiting = self.shortage(bench), await bench.claim("waiting:1")
        for n in range(30):
            key = await bench.claim(f"u:{n}")
            attempt = await bench.begin(key, "other:8")
            await self.look(bench, shortage)
            await bench.store.finish(key, attempt, Ready(key.zfill(64)), bench.clock.seconds())
            await self.look(bench, shortage)
        await self.convert(bench, waiting)

    @pytest_twisted.ensureDeferred
    async def test_idle(self, bench: Bench) -> None:
        """A pull that came in here waits until the other gateway looks for work."""
        shortage = self.shortage(bench)
        for n in range(30):
            key = await bench.claim(f"u:{n}")
            await self.look(bench, shortage)
            await self.convert(bench, key)
