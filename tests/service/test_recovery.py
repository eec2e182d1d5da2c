"""Records of jobs without a result are requeued at once; pulls without any workers fail."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from shiftergw.errors import Unavailable
from shiftergw.model.records import Expired, Failed, ImageRecord, Progress, Ready
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import PullRequest
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
KILL_LOSS = "was killed by signal 9"


class FlakyStore(SqliteStore):
    """A store that is unavailable for `failures` calls of `get` and `requeue`."""

    failures = 0

    async def get(self, key: str) -> ImageRecord | None:
        """See `ImageStore`."""
        self._fail_some()
        return await super().get(key)

    async def requeue(self, *arguments: Any, **keywords: Any) -> ImageRecord:
        """See `ImageStore`."""
        self._fail_some()
        return await super().requeue(*arguments, **keywords)

    def _fail_some(self) -> None:
        if self.failures:
            self.failures -= 1
            raise Unavailable("The gateway's database does not answer.")


class Bench:
    """A recovery with a store, a dispatch, and a queue with slots in memory."""

    def __init__(self, store: FlakyStore) -> None:
        self.store, self.queue, self.clock = store, FakeQueue(9), Clock()
        self.clock.advance(1_000_000)
        self.dispatch = Dispatch(store, self.queue, self.clock, LIMIT, ["alpha"])
        self.recovery = Recovery(store, self.dispatch, self.clock)
        self.recovery.startService()

    async def claim(self, tag: str = "u:1", **members: Any) -> str:
        """Return the key of new work."""
        request = PullRequest("alpha", "docker", ImageReference.parse(tag), 1, **members)
        return (await self.store.claim(request, self.clock.seconds()))[0].key

    async def begin(self, key: str, runner: str = RUNNER) -> int:
        """Begin work as a worker does, and return the number of the attempt."""
        record = await self.store.begin(key, runner, self.clock.seconds(), LIMIT)
        assert record is not None
        return record.attempt

    async def end(self, key: str, loss: str = "", *, died: bool = False) -> ImageRecord:
        """Report the end of a job, and return the record once the end is settled."""
        self.recovery.job_ended(JobEnd(key, RUNNER, loss, died))
        while self.recovery._settling:
            self.clock.advance(1)
            await until(lambda: True)
            await self.store.find("alpha", "docker", [])
        record = await self.store.get(key)
        assert record is not None
        return record

    async def round(self) -> Sequence[str]:
        """Run a round of the dispatch, and return the keys of all offers so far."""
        self.dispatch.startService()
        await self.dispatch.stopService()
        return self.queue.offered_keys


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Return a bench with a running store."""
    store = FlakyStore(reactor, tmp_path / "images.sqlite")
    pytest_twisted.blockon(store.startService())
    yield Bench(store)
    pytest_twisted.blockon(store.stopService())


@pytest_twisted.ensureDeferred
async def test_a_death_requeues_the_record_at_once(bench: Bench) -> None:
    """The pull is PENDING again with the reason; the next worker begins it without a wait."""
    key = await bench.claim()
    assert await bench.round() == [key]
    await bench.begin(key)
    record = await bench.end(key, KILL_LOSS, died=True)
    assert (record.status, record.runner, record.deaths) == (State.PENDING, None, 1)
    assert record.status_message == "The worker was killed by signal 9; another one takes over."
    assert await bench.round() == [key, key]
    assert bench.queue.cancelled_keys == []
    assert await bench.begin(key, "node:8") == 2


@pytest_twisted.ensureDeferred
async def test_an_orderly_stop_is_no_death(bench: Bench) -> None:
    """Any number of stops counts as no death; a record that was requeued already is unchanged."""
    key = await bench.claim()
    for attempt in range(1, MAX_ATTEMPTS + 2):
        assert await bench.begin(key) == attempt
        record = await bench.end(key, "ended with exit code 130")
        assert (record.status, record.deaths) == (State.PENDING, 0)
        assert "was stopped" in str(record.status_message)
        assert await bench.end(key, "ended with exit code 130") == record


@pytest_twisted.ensureDeferred
async def test_a_job_that_wrote_its_outcome(bench: Bench) -> None:
    """The record of the job does not change, nor does one that another worker has begun."""
    done, distant_pull, removal = [await bench.claim(f"u:{n}") for n in range(3)]
    await bench.store.finish(done, await bench.begin(done), Ready("a" * 64), 1.0)
    await bench.begin(distant_pull, "node:8")
    await bench.store.finish(removal, await bench.begin(removal), Ready("b" * 64), 1.0)
    await bench.store.expire(removal)
    attempt = await bench.begin(removal)
    await bench.store.finish(
        removal, attempt, Failed("EXPIRING", "x", "", True), bench.clock.seconds()
    )
    for key in (done, distant_pull, removal):
        before = await bench.store.get(key)
        assert await bench.end(key) == before
    time = bench.clock.seconds() + LIMIT + 1
    last = await bench.store.begin(removal, RUNNER, time, LIMIT)
    assert last is not None
    await bench.store.finish(removal, last.attempt, Expired(), time)


@pytest_twisted.ensureDeferred
async def test_a_job_that_could_not_write_its_outcome(bench: Bench) -> None:
    """The work is repeated, and the attempt counts as a death."""
    key = await bench.claim()
    await bench.begin(key)
    record = await bench.end(key)
    assert (record.status, record.deaths) == (State.PENDING, 1)


@pytest_twisted.ensureDeferred
async def test_a_job_that_did_not_begin_its_record(bench: Bench) -> None:
    """The record is offered again at once, because its worker could not start or was stopped."""
    key = await bench.claim()
    await bench.round()
    record = await bench.end(key, "ended with exit code 1")
    assert (record.attempt, record.deaths) == (0, 0)
    assert await bench.round() == [key, key]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("begins", [True, False])
async def test_an_image_that_kills_its_workers_fails(bench: Bench, begins: bool) -> None:
    """A pull fails after five deaths with the error of the last, also if no worker began it."""
    key = await bench.claim()
    for _ in range(MAX_ATTEMPTS - 1):
        if begins:
            await bench.begin(key)
        assert (await bench.end(key, KILL_LOSS, died=True)).status is State.PENDING
    if begins:
        await bench.begin(key)
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    try:
        record = await bench.end(key, KILL_LOSS, died=True)
    finally:
        globalLogPublisher.removeObserver(observe)
    assert any(re.match(f"pull finished outcome=FAILURE .* job={key} .* cause=", x) for x in lines)
    assert record.status is State.FAILURE
    assert record.cause == "5 workers died on this image; the last one was killed by signal 9."
    assert not record.in_flight
    assert record.own_failure is False


@pytest_twisted.ensureDeferred
async def test_an_unavailable_store(bench: Bench) -> None:
    """The end is written as soon as the store is back."""
    key = await bench.claim()
    await bench.begin(key)
    bench.store.failures = 3
    record = await bench.end(key, KILL_LOSS, died=True)
    assert (record.status, record.deaths) == (State.PENDING, 1)


@pytest_twisted.ensureDeferred
async def test_no_offer_before_the_end_is_settled(bench: Bench) -> None:
    """Otherwise a new attempt of the same worker could be requeued in place of the old one."""
    key = await bench.claim()
    await bench.store.postpone(
        key, await bench.begin(key), bench.clock.seconds(), "", bench.clock.seconds(), None
    )
    bench.store.failures = 1
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
    bench.store.failures = 1000
    for key in keys:
        bench.recovery.job_ended(JobEnd(key, RUNNER, KILL_LOSS, died=True))
    began = bench.clock.seconds()
    stopping = bench.recovery.stopService()
    while not stopping.called:
        bench.clock.advance(1)
        await until(lambda: True)
    assert bench.clock.seconds() - began <= STOP_SECONDS + 1
    bench.store.failures = 0


@pytest_twisted.ensureDeferred
async def test_a_stop_waits_for_the_store_but_not_for_ever(bench: Bench) -> None:
    """Ends that were reported before the stop are in the store after it."""
    key = await bench.claim()
    await bench.begin(key)
    bench.recovery.job_ended(JobEnd(key, RUNNER, KILL_LOSS, died=True))
    await bench.recovery.stopService()
    record = await bench.store.get(key)
    assert record is not None
    assert record.status is State.PENDING
    await bench.begin(key)
    bench.store.failures = 1000
    bench.recovery.job_ended(JobEnd(key, RUNNER, KILL_LOSS, died=True))
    stopping = bench.recovery.stopService()
    while not stopping.called:
        bench.clock.advance(1)
        await until(lambda: True)
    bench.store.failures = 0


@pytest_twisted.ensureDeferred
async def test_pulls_fail_when_no_worker_can_start(bench: Bench) -> None:
    """After the time limit, waiting pulls fail with a cause; removals go on waiting."""
    bench.queue.free_slots = 0
    waiting, requeued_key = await bench.claim("u:1"), await bench.claim("u:2", sealed="secret")
    await bench.store.requeue(requeued_key, await bench.begin(requeued_key), "", died=False)
    removal = await bench.claim("u:3")
    await bench.store.finish(removal, await bench.begin(removal), Ready("a" * 64), 1.0)
    await bench.store.expire(removal)
    working = await bench.claim("u:4")
    await bench.begin(working)
    shortage = WorkerShortage(bench.store, bench.queue, bench.clock, 600, ["alpha"], LIMIT)

    async def states() -> list[State]:
        shortage.startService()
        await shortage.stopService()
        keys = (waiting, requeued_key, removal, working)
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
    failure, own = await bench.store.get(waiting), await bench.store.get(requeued_key)
    assert failure is not None
    assert own is not None
    assert failure.cause == "For 10 minutes no worker could start on the gateway's machine."
    assert (failure.own_failure, own.own_failure, failure.retryable) == (False, True, True)
    assert own.sealed is None


class TestOtherGateway:
    """No worker can start here, but another gateway on the same store has workers."""

    async def check(self, bench: Bench, shortage: WorkerShortage) -> None:
        """Let the shortage check the store, one interval later."""
        bench.clock.advance(INTERVAL)
        shortage.startService()
        await shortage.stopService()

    async def convert(self, bench: Bench, key: str) -> None:
        """Do all work on a record."""
        attempt = await bench.begin(key, "other:8")
        await bench.store.finish(key, attempt, Ready(key.zfill(64)), bench.clock.seconds())

    def shortage(self, bench: Bench) -> WorkerShortage:
        """Return a shortage that may fail pulls at once."""
        start = bench.clock.seconds() - 900
        bench.queue.current_trouble = QueueTrouble("No worker can start.", "why", start)
        return WorkerShortage(bench.store, bench.queue, bench.clock, 600, ["alpha"], LIMIT)

    @pytest_twisted.ensureDeferred
    async def test_between_two_pulls(self, bench: Bench) -> None:
        """A check that sees no work in progress does not fail the waiting pulls."""
        shortage, waiting = self.shortage(bench), await bench.claim("waiting:1")
        for n in range(30):
            key = await bench.claim(f"u:{n}")
            attempt = await bench.begin(key, "other:8")
            await self.check(bench, shortage)
            await bench.store.finish(key, attempt, Ready(key.zfill(64)), bench.clock.seconds())
            await self.check(bench, shortage)
        await self.convert(bench, waiting)

    @pytest_twisted.ensureDeferred
    async def test_idle(self, bench: Bench) -> None:
        """A pull that was accepted here waits until the other gateway begins it."""
        shortage = self.shortage(bench)
        for n in range(30):
            key = await bench.claim(f"u:{n}")
            await self.check(bench, shortage)
            await self.convert(bench, key)
