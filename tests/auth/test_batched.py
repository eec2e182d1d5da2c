"""Short calls that are made in batches, in one thread."""

from __future__ import annotations

import subprocess
import sys
from threading import Event
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from shiftergw.auth.batched import BATCH_SIZE, MAX_QUEUED, BatchedCalls
from shiftergw.errors import TimedOut
from shiftergw.plumbing.timing import pause
from tests.installed_reactor import reactor
from tests.patience import patient

LIMIT = 5.0


class Turns(Clock):
    """A reactor whose turns and time the test controls; its threads report to the real one."""

    def __init__(self) -> None:
        """Count the reports."""
        super().__init__()
        self.reports = 0

    def callFromThread(self, function: Any) -> None:
        """Count a report, and call the function soon."""
        self.reports += 1
        reactor.callFromThread(function)


class Doubling:
    """A function that doubles numbers, fails for 0, and can be blocked."""

    def __init__(self) -> None:
        """Block no calls yet."""
        self.go = Event()
        self.go.set()
        self.start_event = Event()
        self.numbers: list[int] = []

    def __call__(self, number: int) -> int:
        """Return twice the number, once it is not blocked."""
        self.start_event.set()
        assert self.go.wait(patient(20))
        self.numbers.append(number)
        if number == 0:
            raise ZeroDivisionError
        return 2 * number

    async def wait_for_start(self) -> None:
        """Wait until a call has started."""
        assert await deferToThread(self.start_event.wait, 20)


def late() -> TimedOut:
    """Return the exception for callers that have waited too long."""
    return TimedOut("late")


def start(calls: BatchedCalls[int, int], number: int) -> Deferred[int]:
    """Begin a call."""
    return Deferred.fromCoroutine(calls.run(number))


@pytest_twisted.ensureDeferred
async def test_each_caller_gets_its_own_result() -> None:
    """Each caller gets its own result, or its own exception, and calls are made in their order."""
    doubling = Doubling()
    calls = BatchedCalls(doubling, LIMIT, reactor, late)
    results = [start(calls, number) for number in range(40)]
    with pytest.raises(ZeroDivisionError):
        await results[0]
    assert [await result for result in results[1:]] == [2 * number for number in range(1, 40)]
    assert doubling.numbers == list(range(40))
    assert await calls.run(21) == 42


@pytest_twisted.ensureDeferred
async def test_calls_that_come_together_are_made_together() -> None:
    """The reactor is woken once for many calls, even if they come in several turns."""
    doubling, turns = Doubling(), Turns()
    calls = BatchedCalls(doubling, LIMIT, cast("Any", turns), late)
    results = [start(calls, number) for number in (1, 2)]
    turns.callLater(0, lambda: results.append(start(calls, 3)))
    turns.advance(0)
    assert [await result for result in results] == [2, 4, 6]
    assert turns.reports == 1


@pytest_twisted.ensureDeferred
async def test_the_size_of_a_batch_is_limited() -> None:
    """Further calls are made in the next batch; the first ones do not wait for it."""
    doubling, turns = Doubling(), Turns()
    calls = BatchedCalls(doubling, LIMIT, cast("Any", turns), late)
    results = [start(calls, 1) for _ in range(BATCH_SIZE + 1)]
    turns.advance(0)
    assert [await result for result in results[:-1]] == [2] * BATCH_SIZE
    assert not results[-1].called
    await pause(0, reactor)  # until all callers have their results
    turns.advance(0)
    assert await results[-1] == 2
    assert turns.reports == 2


@pytest_twisted.ensureDeferred
async def test_a_call_that_hangs() -> None:
    """Waiting callers fail at the limit, the next one at once; later calls succeed again."""
    doubling, turns = Doubling(), Turns()
    calls = BatchedCalls(doubling, LIMIT, cast("Any", turns), late)
    doubling.go.clear()
    results = [start(calls, 1) for _ in range(2)]
    turns.advance(0)
    results += [start(calls, 1) for _ in range(2 * BATCH_SIZE)]
    turns.advance(LIMIT - 0.1)
    assert not any(result.called for result in results)
    turns.advance(0.1)
    for result in results:
        with pytest.raises(TimedOut):
            await result
    with pytest.raises(TimedOut):
        await calls.run(1)
    doubling.go.set()
    while calls._is_hanging:
        await pause(0.01, reactor)
    next_result = start(calls, 3)
    turns.advance(0)
    assert await next_result == 6
    assert len(doubling.numbers) <= 2  # no calls are made for callers that no longer wait


@pytest_twisted.ensureDeferred
async def test_the_wait_for_the_batch_before_counts() -> None:
    """The limit is on the whole wait, also if the batch before took most of it."""
    doubling, turns = Doubling(), Turns()
    calls = BatchedCalls(doubling, LIMIT, cast("Any", turns), late)
    doubling.go.clear()
    first = start(calls, 1)
    turns.advance(0)
    second = start(calls, 2)
    turns.advance(LIMIT - 1)
    doubling.go.set()
    assert await first == 2
    await pause(0, reactor)  # until the first batch has ended
    doubling.go.clear()
    doubling.start_event.clear()
    turns.advance(0)
    await doubling.wait_for_start()
    assert not second.called
    turns.advance(1)
    with pytest.raises(TimedOut):
        await second
    doubling.go.set()


@pytest_twisted.ensureDeferred
async def test_cancelled_callers() -> None:
    """Cancelled callers stop waiting at once; a call that has not started is not made."""
    doubling = Doubling()
    calls = BatchedCalls(doubling, LIMIT, reactor, late)
    doubling.go.clear()
    results = [start(calls, number) for number in range(1, 5)]
    results[3].cancel()
    await doubling.wait_for_start()
    results[0].cancel()
    results[1].cancel()
    doubling.go.set()
    for cancelled_number in (0, 1, 3):
        with pytest.raises(CancelledError):
            await results[cancelled_number]
    assert await results[2] == 6
    assert doubling.numbers == [1, 3]


@pytest_twisted.ensureDeferred
async def test_too_many_waiting_calls_are_refused() -> None:
    """A flood of calls does not fill the memory."""
    calls = BatchedCalls(Doubling(), LIMIT, reactor, late)
    results = [start(calls, 1) for _ in range(MAX_QUEUED)]
    with pytest.raises(TimedOut):
        await calls.run(1)
    assert [await result for result in results] == [2] * MAX_QUEUED


def test_the_end_of_the_process() -> None:
    """The end of the process does not wait for a call that hangs."""
    program = """
import time
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from shiftergw.auth.batched import BatchedCalls

def hang(_):
    reactor.callFromThread(reactor.stop)
    time.sleep(1000)

calls = BatchedCalls(hang, 1000, reactor, RuntimeError)
reactor.callWhenRunning(lambda: Deferred.fromCoroutine(calls.run(1)))
reactor.run()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=patient(30))
