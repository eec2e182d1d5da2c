"""What an attempt tells the store, and when: a real store, on a clock of the test's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from shiftergw.errors import DeliveryFailed, RetryLater, Superseded, Unavailable
from shiftergw.job.attempt import (
    HUNG_SECONDS,
    LEASE_PATIENCE,
    LEASE_SECONDS,
    LEASE_WAIT,
    WRITE_SECONDS,
    Attempt,
)
from shiftergw.model import ImageRecord, Progress
from shiftergw.plumbing.timing import pause
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from tests.store.pulls import ID, LIMIT, begun, holder, request

PLACE = ("/images", ID)


class Store(SqliteStore):
    """A store that can be away."""

    away = False

    async def heartbeat(self, *arguments: Any) -> None:
        """Write, or be away."""
        if self.away:
            raise Unavailable("The store is away.")
        await super().heartbeat(*arguments)


class Bench:
    """One begun record, its attempt, and the attempt's clock."""

    def __init__(self, store: Store, record: ImageRecord, clock: Clock) -> None:
        """Begin."""
        self.store, self.record, self.clock = store, record, clock
        self.attempt = Attempt(record, store, clock, LIMIT)

    async def stored(self) -> ImageRecord:
        """Return what the store says."""
        record = await self.store.get(self.record.key)
        assert record is not None
        return record

    async def other(self) -> str:
        """Return another who may hold leases: an attempt at another record."""
        found = await self.store.find_work("alpha", "docker", "other:1")
        return holder(found[0] if found else await begun(self.store, request("other:1")))

    async def free_for_other(self, seconds: float = LEASE_SECONDS) -> bool:
        """Say whether another could take the lease now; if so, he has it."""
        return await self.store.lease(*PLACE, await self.other(), self.clock.seconds(), seconds)


@pytest_twisted.async_yield_fixture()
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Return a begun record on an empty store."""
    store = Store(reactor, tmp_path / "store.sqlite")
    await store.startService()
    clock = Clock()
    clock.advance(1_000_000)
    record = await begun(store, request(), clock.seconds())
    yield Bench(store, record, clock)
    await store.stopService()


async def until(said: Callable[[], object]) -> None:
    """Wait until something holds."""
    for _ in range(1000):
        if said():
            return
        await pause(0.01, reactor)
    raise AssertionError("it never came to hold")


@pytest_twisted.ensureDeferred
async def test_news_are_written_once(bench: Bench) -> None:
    """Stage, message and progress reach the store; nothing new is no write."""
    bench.attempt.enter_stage(State.PULLING, "Pulling layers")
    bench.attempt.report(Progress("fetch", 5, 10))
    await bench.attempt.write()
    record = await bench.stored()
    assert (record.status_message, record.stage, record.done, record.total) == (
        "Pulling layers", "fetch", 5, 10,
    )  # fmt: skip
    beat = record.last_heartbeat
    bench.clock.advance(1)
    await bench.attempt.write()
    assert (await bench.stored()).last_heartbeat == beat
    bench.attempt.enter_stage(State.CONVERSION, "Converting image")
    bench.attempt.notify("Waiting")
    await bench.attempt.write()
    record = await bench.stored()
    assert (record.status, record.status_message) == (State.CONVERSION, "Waiting")


@pytest_twisted.ensureDeferred
async def test_silence_is_broken_by_heartbeats(bench: Bench) -> None:
    """A stage without news is known to live: a heartbeat each quarter of the limit."""
    bench.clock.advance(LIMIT / 4)
    await bench.attempt.write()
    assert (await bench.stored()).last_heartbeat == bench.clock.seconds()


@pytest_twisted.ensureDeferred
async def test_a_hung_stage_is_left_to_another_attempt(bench: Bench) -> None:
    """Hours without any news are no life; until then silence is."""
    for _ in range(int(HUNG_SECONDS // 3600)):
        bench.clock.advance(3600)
        await bench.attempt.write()
    bench.clock.advance(1)
    with pytest.raises(Superseded):
        await bench.attempt.write()


@pytest_twisted.ensureDeferred
async def test_leases_live_while_progress_is_reported(bench: Bench) -> None:
    """A copy that has news in every round for longer than a lease keeps its lease all the same."""
    await bench.attempt.lease(*PLACE)
    for second in range(int(2 * LEASE_SECONDS)):
        bench.clock.advance(1)
        bench.attempt.report(Progress("deliver", second, 1000))
        await bench.attempt.write()
    assert not await bench.free_for_other()
    await bench.attempt.release()
    assert await bench.free_for_other()


@pytest_twisted.ensureDeferred
async def test_a_lost_lease_ends_the_attempt(bench: Bench) -> None:
    """Whoever slept longer than his lease lives does not write over him who has it now."""
    await bench.attempt.lease(*PLACE)
    bench.clock.advance(LEASE_SECONDS)
    assert await bench.free_for_other()
    with pytest.raises(Superseded):
        await bench.attempt.confirm()


@pytest_twisted.ensureDeferred
async def test_the_lease_of_a_dead_attempt_is_not_waited_for(bench: Bench) -> None:
    """Its successor has it at once; were it to come back, it would write nothing more."""
    await bench.attempt.lease(*PLACE)
    bench.clock.advance(LIMIT)
    record = await bench.store.begin(bench.record.key, "other:1", bench.clock.seconds(), LIMIT)
    assert record is not None
    successor = Attempt(record, bench.store, bench.clock, LIMIT)
    await successor.lease(*PLACE)
    await successor.confirm()
    with pytest.raises(Superseded):
        await bench.attempt.confirm()
    await bench.attempt.release()
    await successor.confirm()
    assert not await bench.free_for_other()


@pytest_twisted.ensureDeferred
async def test_a_lease_that_is_held_is_waited_for(bench: Bench) -> None:
    """The user reads why; the lease is taken as soon as the other gives it back."""
    assert await bench.free_for_other()
    taking = Deferred.fromCoroutine(bench.attempt.lease(*PLACE))
    await until(bench.clock.getDelayedCalls)
    await bench.attempt.write()
    assert (await bench.stored()).status_message == "Waiting for another delivery of this image"
    await bench.store.release(*PLACE, await bench.other())
    bench.clock.advance(1)
    await taking
    assert not await bench.free_for_other()


@pytest_twisted.ensureDeferred
async def test_a_lease_is_not_waited_for_without_end(bench: Bench) -> None:
    """Not for long with a worker in hand, and for an hour altogether."""
    assert await bench.free_for_other(2 * LEASE_WAIT)
    taking = Deferred.fromCoroutine(bench.attempt.lease(*PLACE))
    await until(bench.clock.getDelayedCalls)
    bench.clock.advance(LEASE_PATIENCE + 1)
    with pytest.raises(RetryLater) as caught:
        await taking
    later = caught.value
    assert (later.why, later.limit) == ("another delivery of this image", LEASE_WAIT)
    assert bench.attempt.wait(later).cause == "pull"
    bench.attempt.record = replace(bench.record, waited_for_pulls=LEASE_WAIT - 1, waited=0)
    with pytest.raises(DeliveryFailed, match="did not end"):
        bench.attempt.wait(later)
    bench.attempt.record = replace(bench.record, waited=9999)
    assert bench.attempt.may_wait(later)


@pytest_twisted.ensureDeferred
async def test_the_loop_ends_when_a_newer_attempt_has_taken_over(bench: Bench) -> None:
    """`on_lost` is called once, and the loop is over."""
    lost: list[bool] = []
    loop = Deferred.fromCoroutine(bench.attempt.keep_alive(lambda: lost.append(True)))
    later = bench.clock.seconds() + 2 * LIMIT
    assert await bench.store.begin(bench.record.key, "other:1", later, LIMIT) is not None
    bench.attempt.notify("news")
    bench.clock.advance(WRITE_SECONDS)
    await loop
    assert lost == [True]
    assert bench.attempt.is_superseded


@pytest_twisted.ensureDeferred
async def test_the_loop_outlives_a_store_that_is_away(bench: Bench) -> None:
    """The work goes on without its store, and the next round tries again."""
    bench.store.away = True
    loop = Deferred.fromCoroutine(bench.attempt.keep_alive(lambda: None))
    bench.attempt.notify("unheard")
    bench.clock.advance(WRITE_SECONDS)
    await until(bench.clock.getDelayedCalls)
    bench.store.away = False
    bench.clock.advance(WRITE_SECONDS)
    await until(bench.clock.getDelayedCalls)
    assert (await bench.stored()).status_message == "unheard"
    loop.cancel()
    with pytest.raises(CancelledError):
        await loop


@pytest_twisted.ensureDeferred
async def test_stages_reach_a_slow_store_in_their_order(bench: Bench) -> None:
    """A stage that is still being told is not overtaken by the next one."""
    attempt = bench.attempt
    told: list[State] = []
    slow: Deferred[None] = Deferred()
    advance = bench.store.advance

    async def slowly(key: str, number: int, state: State, *rest: Any) -> None:
        if not told:
            await slow
        told.append(state)
        await advance(key, number, state, *rest)

    bench.store.advance = slowly  # type: ignore[method-assign, assignment]
    attempt.enter_stage(State.CONVERSION, "")
    first = Deferred.fromCoroutine(attempt.write())
    attempt.enter_stage(State.TRANSFER, "")
    second = Deferred.fromCoroutine(attempt.confirm())
    assert not second.called
    slow.callback(None)
    await first
    await second
    assert told == [State.CONVERSION, State.TRANSFER]
    assert (await bench.stored()).status is State.TRANSFER


@pytest_twisted.ensureDeferred
async def test_a_lease_that_cannot_be_given_back(bench: Bench) -> None:
    """While the store is away that is no error: it ends by itself."""
    await bench.attempt.lease(*PLACE)

    async def away(*_: object) -> None:
        raise Unavailable("The store is away.")

    release, bench.store.release = bench.store.release, away  # type: ignore[method-assign, assignment]
    await bench.attempt.release()
    bench.store.release = release  # type: ignore[method-assign]
    assert not await bench.free_for_other()
    bench.clock.advance(LEASE_SECONDS + 1)
    assert await bench.free_for_other()
