"""An attempt writes progress, heartbeats and leases to a real store, on the test's clock."""

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
from shiftergw.model.records import ImageRecord, Progress
from shiftergw.plumbing.timing import pause
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from tests.store.pulls import ID, LIMIT, begin_pull, holder, request

PLACE = ("/images", ID)


class Store(SqliteStore):
    """A store that can be unavailable."""

    is_away = False

    async def heartbeat(self, *arguments: Any) -> None:
        """Write, or raise `Unavailable`."""
        if self.is_away:
            raise Unavailable("The store is away.")
        await super().heartbeat(*arguments)


class Bench:
    """One record in work, its attempt, and the attempt's clock."""

    def __init__(self, store: Store, record: ImageRecord, clock: Clock) -> None:
        """Make the attempt of `record`."""
        self.store, self.record, self.clock = store, record, clock
        self.attempt = Attempt(record, store, clock, LIMIT)

    async def load(self) -> ImageRecord:
        """Read the record from the store."""
        record = await self.store.get(self.record.key)
        assert record is not None
        return record

    async def rival(self) -> str:
        """Return another holder of leases: an attempt at another record."""
        records = await self.store.find_work("alpha", "docker", "other:1")
        return holder(records[0] if records else await begin_pull(self.store, request("other:1")))

    async def lease_to_rival(self, seconds: float = LEASE_SECONDS) -> bool:
        """Let another attempt take the lease; return whether it got it."""
        return await self.store.lease(*PLACE, await self.rival(), self.clock.seconds(), seconds)


@pytest_twisted.async_yield_fixture()
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Return a begun record on an empty store."""
    store = Store(reactor, tmp_path / "store.sqlite")
    await store.startService()
    clock = Clock()
    clock.advance(1_000_000)
    record = await begin_pull(store, request(), clock.seconds())
    yield Bench(store, record, clock)
    await store.stopService()


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition is true."""
    for _ in range(1000):
        if condition():
            return
        await pause(0.01, reactor)
    raise AssertionError("the condition never became true")


@pytest_twisted.ensureDeferred
async def test_changed_progress_is_written_once(bench: Bench) -> None:
    """Stage, message and progress reach the store; without a change nothing is written."""
    bench.attempt.enter_stage(State.PULLING, "Pulling layers")
    bench.attempt.report(Progress("fetch", 5, 10))
    await bench.attempt.write()
    record = await bench.load()
    assert (record.status_message, record.stage, record.done, record.total) == (
        "Pulling layers", "fetch", 5, 10,
    )  # fmt: skip
    beat = record.last_heartbeat
    bench.clock.advance(1)
    await bench.attempt.write()
    assert (await bench.load()).last_heartbeat == beat
    bench.attempt.enter_stage(State.CONVERSION, "Converting image")
    bench.attempt.notify("Waiting")
    await bench.attempt.write()
    record = await bench.load()
    assert (record.status, record.status_message) == (State.CONVERSION, "Waiting")


@pytest_twisted.ensureDeferred
async def test_progress_has_a_rate(bench: Bench) -> None:
    """The record has the rate of its stage; a stage that stands still has none, nor a new stage."""
    bench.attempt.enter_stage(State.PULLING, "Pulling layers")
    for second in range(6):
        bench.attempt.report(Progress("fetch", 100 * second, 1000))
        await bench.attempt.write()
        bench.clock.advance(1)
    record = await bench.load()
    assert (record.rate, record.time_left) == (100, None)
    bench.clock.advance(LIMIT / 4)
    await bench.attempt.write()
    assert ((await bench.load()).rate or 0) < 50
    bench.attempt.report(Progress("index", 0, 1000))
    await bench.attempt.write()
    assert (await bench.load()).rate is None


@pytest_twisted.ensureDeferred
async def test_progress_has_the_time_left(bench: Bench) -> None:
    """The record has the time left of the whole pull: of the slower stage, and what follows."""
    costs = dict.fromkeys(("plan", "compose", "check", "deliver"), 0.01)
    bench.attempt.estimate.learn(costs, 1000)
    bench.attempt.enter_stage(State.PULLING, "Pulling layers")
    for second in range(6):
        bench.attempt.report_reading(Progress("pack", 50 * second, 1000))
        bench.attempt.report(Progress("fetch", 100 * second, 1000))
        await bench.attempt.write()
        bench.clock.advance(1)
    record = await bench.load()
    assert (record.done, record.rate, record.time_left) == (500, 100, 15 + 4 * 10)


@pytest_twisted.ensureDeferred
async def test_a_silent_stage_writes_heartbeats(bench: Bench) -> None:
    """A stage without progress writes a heartbeat after each quarter of the limit."""
    bench.clock.advance(LIMIT / 4)
    await bench.attempt.write()
    assert (await bench.load()).last_heartbeat == bench.clock.seconds()


@pytest_twisted.ensureDeferred
async def test_a_hung_stage_is_left_to_another_attempt(bench: Bench) -> None:
    """After four hours without any progress the attempt ends; until then heartbeats are enough."""
    for _ in range(int(HUNG_SECONDS // 3600)):
        bench.clock.advance(3600)
        await bench.attempt.write()
    bench.clock.advance(1)
    with pytest.raises(Superseded):
        await bench.attempt.write()


@pytest_twisted.ensureDeferred
async def test_work_without_new_bytes_is_no_hung_stage(bench: Bench) -> None:
    """A stage that works, or does again what failed, goes on; users see no bytes taken back."""
    bench.attempt.report(Progress("squash", 50, 100))
    for sign in range(4):
        bench.clock.advance(HUNG_SECONDS - 1)
        bench.attempt.report(Progress("squash", 50, 100, signs=sign))
        await bench.attempt.write()
    for done in range(4):
        bench.clock.advance(HUNG_SECONDS - 1)
        bench.attempt.report(Progress("squash", done, 100))
        await bench.attempt.write()
        assert (await bench.load()).done == 50
    bench.clock.advance(HUNG_SECONDS + 1)
    with pytest.raises(Superseded):
        await bench.attempt.write()


@pytest_twisted.ensureDeferred
async def test_leases_are_renewed_while_progress_is_reported(bench: Bench) -> None:
    """A copy that reports in every round keeps its lease for longer than a lease is valid."""
    await bench.attempt.lease(*PLACE)
    for second in range(int(2 * LEASE_SECONDS)):
        bench.clock.advance(1)
        bench.attempt.report(Progress("deliver", second, 1000))
        await bench.attempt.write()
    assert not await bench.lease_to_rival()
    await bench.attempt.release()
    assert await bench.lease_to_rival()


@pytest_twisted.ensureDeferred
async def test_an_expired_lease_ends_the_attempt(bench: Bench) -> None:
    """An attempt whose lease expired must not write after another one has taken the lease."""
    await bench.attempt.lease(*PLACE)
    bench.clock.advance(LEASE_SECONDS)
    assert await bench.lease_to_rival()
    with pytest.raises(Superseded):
        await bench.attempt.confirm()


@pytest_twisted.ensureDeferred
async def test_the_lease_of_a_dead_attempt_passes_to_its_successor(bench: Bench) -> None:
    """The successor gets the lease at once; if the dead attempt wakes up, it writes nothing."""
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
    assert not await bench.lease_to_rival()


@pytest_twisted.ensureDeferred
async def test_an_attempt_waits_for_a_lease(bench: Bench) -> None:
    """The user reads why, and the attempt takes the lease as soon as it is released."""
    assert await bench.lease_to_rival()
    taking = Deferred.fromCoroutine(bench.attempt.lease(*PLACE))
    await until(bench.clock.getDelayedCalls)
    await bench.attempt.write()
    assert (await bench.load()).status_message == "Waiting for another delivery of this image"
    await bench.store.release(*PLACE, await bench.rival())
    bench.clock.advance(1)
    await taking
    assert not await bench.lease_to_rival()


@pytest_twisted.ensureDeferred
async def test_the_wait_for_a_lease_has_limits(bench: Bench) -> None:
    """A wait for a lease occupies the worker for a short time, and the pull for an hour at most."""
    assert await bench.lease_to_rival(2 * LEASE_WAIT)
    taking = Deferred.fromCoroutine(bench.attempt.lease(*PLACE))
    await until(bench.clock.getDelayedCalls)
    bench.clock.advance(LEASE_PATIENCE + 1)
    with pytest.raises(RetryLater) as caught:
        await taking
    delay = caught.value
    assert (delay.why, delay.limit) == ("another delivery of this image", LEASE_WAIT)
    assert bench.attempt.decide_postponement(delay).cause == "pull"
    bench.attempt.record = replace(bench.record, waited_for_pulls=LEASE_WAIT - 1, waited=0)
    with pytest.raises(DeliveryFailed, match="did not end"):
        bench.attempt.decide_postponement(delay)
    bench.attempt.record = replace(bench.record, waited=9999)
    assert bench.attempt.decide_postponement(delay).cause == "pull"


@pytest_twisted.ensureDeferred
async def test_the_loop_ends_when_a_newer_attempt_has_taken_over(bench: Bench) -> None:
    """The loop calls `on_superseded` once and ends."""
    calls: list[bool] = []
    loop = Deferred.fromCoroutine(bench.attempt.keep_alive(lambda: calls.append(True)))
    time = bench.clock.seconds() + 2 * LIMIT
    assert await bench.store.begin(bench.record.key, "other:1", time, LIMIT) is not None
    bench.attempt.notify("news")
    bench.clock.advance(WRITE_SECONDS)
    await loop
    assert calls == [True]
    assert bench.attempt.is_superseded


@pytest_twisted.ensureDeferred
async def test_the_loop_survives_an_unavailable_store(bench: Bench) -> None:
    """The work continues without its store, and the next round queries the store again."""
    bench.store.is_away = True
    loop = Deferred.fromCoroutine(bench.attempt.keep_alive(lambda: None))
    bench.attempt.notify("unheard")
    bench.clock.advance(WRITE_SECONDS)
    await until(bench.clock.getDelayedCalls)
    bench.store.is_away = False
    bench.clock.advance(WRITE_SECONDS)
    await until(bench.clock.getDelayedCalls)
    assert (await bench.load()).status_message == "unheard"
    loop.cancel()
    with pytest.raises(CancelledError):
        await loop


@pytest_twisted.ensureDeferred
async def test_stages_reach_a_slow_store_in_their_order(bench: Bench) -> None:
    """The next stage is not written before the write of the current one has ended."""
    attempt = bench.attempt
    states: list[State] = []
    slow: Deferred[None] = Deferred()
    advance = bench.store.advance

    async def slowly(key: str, number: int, state: State, *rest: Any) -> None:
        if not states:
            await slow
        states.append(state)
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
    assert states == [State.CONVERSION, State.TRANSFER]
    assert (await bench.load()).status is State.TRANSFER


@pytest_twisted.ensureDeferred
async def test_a_release_without_the_store_is_no_error(bench: Bench) -> None:
    """If the store is unavailable, the lease expires by itself."""
    await bench.attempt.lease(*PLACE)

    async def fail(*_: object) -> None:
        raise Unavailable("The store is away.")

    release, bench.store.release = bench.store.release, fail  # type: ignore[method-assign, assignment]
    await bench.attempt.release()
    bench.store.release = release  # type: ignore[method-assign]
    assert not await bench.lease_to_rival()
    bench.clock.advance(LEASE_SECONDS + 1)
    assert await bench.lease_to_rival()
