"""What waiting work waits for, and its place in the queue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from shiftergw.errors import Unavailable
from shiftergw.ports import QueueTrouble
from shiftergw.service.waiting import (
    BUSY_SHARE,
    MOST_VALID_SECONDS,
    PATIENCE,
    VALID_SECONDS,
)
from shiftergw.states import State
from tests.service.gateway_bench import ALICE, BOB, READY, START, Bench, list_queue


class Schedule:
    """Counts the queries of the store for places, and delays or refuses them."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stand in front of the store's `schedule`."""
        self._schedule = bench.store.schedule
        self.queries = 0
        self.gate: Deferred[None] | None = None
        self.raises: Exception | None = None
        monkeypatch.setattr(bench.store, "schedule", self.schedule)

    async def schedule(self, now: float) -> Sequence[str]:
        """Return the keys in order."""
        self.queries += 1
        if self.gate is not None:
            await self.gate
        if self.raises is not None:
            raise self.raises
        return await self._schedule(now)


@pytest.fixture
def schedule(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Schedule:
    """Return the counter of queries of the bench."""
    return Schedule(bench, monkeypatch)


def place(record: Any) -> tuple[int | None, int | None]:
    """Return the place of a record, and of how many."""
    return record.queue_place, record.queue_length


@pytest_twisted.ensureDeferred
async def test_a_poll_shows_the_place(bench: Bench) -> None:
    """Users take turns: the second pull of a user comes after the first ones of others."""
    for name in ("a:1", "a:2"):
        bench.clock.advance(1)
        assert (await bench.pull(ALICE, name)).status is State.INIT
    bench.clock.advance(1)
    await bench.pull(BOB, "b:1")
    bench.clock.advance(VALID_SECONDS)
    assert place(await bench.pull(ALICE, "a:1")) == (1, 3)
    assert place(await bench.pull(ALICE, "a:2")) == (3, 3)
    assert place(await bench.pull(BOB, "b:1")) == (2, 3)
    assert [place(record) for record in await list_queue(bench, BOB)] == [(1, 3), (3, 3), (2, 3)]
    await bench.end(READY)
    bench.clock.advance(VALID_SECONDS)
    assert place(await bench.pull(BOB, "b:1")) == (1, 2)


@pytest_twisted.ensureDeferred
async def test_all_polls_of_a_second_share_one_query(bench: Bench, schedule: Schedule) -> None:
    """The number of clients does not count; work that does not wait asks nothing."""
    await bench.pull(ALICE)
    schedule.gate = Deferred()
    polls = [Deferred.fromCoroutine(bench.pull(ALICE)) for _ in range(50)]
    assert not any(poll.called for poll in polls)
    while not schedule.queries:
        await bench.store.find("mycluster", "docker", [])
    schedule.gate.callback(None)
    assert {place(record) for record in await gatherResults(polls)} == {(1, 1)}
    assert schedule.queries == 1
    schedule.gate = None
    bench.clock.advance(VALID_SECONDS / 2)
    await bench.pull(ALICE)
    assert schedule.queries == 1
    bench.clock.advance(VALID_SECONDS)
    await bench.pull(ALICE)
    assert schedule.queries == 2
    await bench.end(READY)
    bench.clock.advance(VALID_SECONDS)
    await bench.pull(ALICE)
    assert schedule.queries == 2


@pytest_twisted.ensureDeferred
async def test_a_slow_query_is_valid_for_longer(bench: Bench, schedule: Schedule) -> None:
    """Places take a tenth of the time of the store at most."""
    await bench.pull(ALICE)
    schedule.gate = Deferred()
    poll = Deferred.fromCoroutine(bench.pull(ALICE))
    while not schedule.queries:
        await bench.store.find("mycluster", "docker", [])
    bench.clock.advance(2)
    schedule.gate.callback(None)
    await poll
    bench.clock.advance(2 * BUSY_SHARE - 0.1)
    await bench.pull(ALICE)
    assert schedule.queries == 1


@pytest_twisted.ensureDeferred
async def test_answers_do_not_wait_long_for_places(bench: Bench, schedule: Schedule) -> None:
    """While the query hangs, answers have no places; it is not repeated, and its result counts."""
    await bench.pull(ALICE)
    schedule.gate = Deferred()
    poll = Deferred.fromCoroutine(bench.pull(ALICE))
    while not schedule.queries:
        await bench.store.find("mycluster", "docker", [])
    bench.clock.advance(PATIENCE)
    assert place(await poll) == (None, None)
    assert place(await bench.pull(ALICE)) == (None, None)
    schedule.gate.callback(None)
    while bench.gateway.work._waiting._reading is not None:
        await bench.store.find("mycluster", "docker", [])
    assert place(await bench.pull(ALICE)) == (1, 1)
    assert schedule.queries == 1
    assert bench.clock.getDelayedCalls() == []


@pytest.mark.parametrize("step", [7200.0, -7200.0])
@pytest_twisted.ensureDeferred
async def test_a_step_of_the_clock_keeps_no_places(
    bench: Bench, schedule: Schedule, step: float
) -> None:
    """Places are read again soon, whether the clock was set during a query or after it."""
    await bench.pull(ALICE)
    schedule.gate = Deferred()
    poll = Deferred.fromCoroutine(bench.pull(ALICE))
    while not schedule.queries:
        await bench.store.find("mycluster", "docker", [])
    bench.clock.rightNow += max(step, 0)
    schedule.gate.callback(None)
    await poll
    bench.clock.rightNow += MOST_VALID_SECONDS if step > 0 else step
    await bench.pull(ALICE)
    assert schedule.queries == 2


@pytest.mark.parametrize("error", [Unavailable("The store is away."), ValueError("a fault")])
@pytest_twisted.ensureDeferred
async def test_answers_do_without_places(
    bench: Bench, schedule: Schedule, error: Exception
) -> None:
    """A poll is answered also if the places cannot be read."""
    await bench.pull(ALICE)
    schedule.raises = error
    assert place(await bench.pull(ALICE)) == (None, None)


@pytest_twisted.ensureDeferred
async def test_what_keeps_workers_away_is_named(bench: Bench, schedule: Schedule) -> None:
    """The reason is in the message, and apart; another user's hidden pull shows no place."""
    record = await bench.pull(ALICE)
    bench.queue.current_trouble = QueueTrouble("No worker can start.", "secret detail", START)
    waiting = bench.gateway.work._waiting
    answer = await waiting.describe(replace(record, status=State.PENDING, claim=None))
    assert (answer.status_message, answer.waits_for) == ("No worker can start.",) * 2
    assert place(answer) == (None, None)
    assert schedule.queries == 0


@pytest_twisted.ensureDeferred
async def test_a_postponed_pull_has_no_place(bench: Bench) -> None:
    """It has the time until which it waits instead, and the reason."""
    record = await bench.pull(ALICE)
    now = bench.clock.seconds()
    await bench.store.begin(record.key, "here:1", now, 60)
    await bench.store.postpone(record.key, 1, now + 60, "the registry", now)
    answer = await bench.pull(ALICE)
    assert place(answer) == (None, None)
    assert (answer.waits_for, answer.not_before) == ("the registry", now + 60)
    bench.clock.advance(60)
    answer = await bench.pull(ALICE)
    assert (place(answer), answer.status_message) == ((1, 1), "")
    assert (answer.waits_for, answer.not_before) == (None, None)


@pytest_twisted.ensureDeferred
async def test_the_end_of_a_pull_is_found(bench: Bench) -> None:
    """The READY image has the key of the pull, or is an earlier image with its tag."""
    first = await bench.pull(ALICE, "a:1")
    work = bench.gateway.work
    assert await work.end_of(first) is None
    await bench.end(READY)
    image = await work.end_of(first)
    assert image is not None
    assert image.tags == ("a:1",)
    second = await bench.pull(ALICE, "a:2")
    await bench.end(READY)
    image = await work.end_of(second)
    assert image is not None
    assert image.tags == ("a:1", "a:2")
    assert await work.end_of(replace(second, pulltag=None)) is None
