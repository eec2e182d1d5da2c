"""Short calls that are made together in one thread."""

from __future__ import annotations

import subprocess
import sys
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from shiftergw.auth.batched import MOST_TOGETHER, MOST_WAITING, BatchedCalls
from shiftergw.errors import TimedOut
from shiftergw.plumbing.timing import pause
from tests.patience import patient

reactor: Any = global_reactor

LIMIT = 5.0


class Turns(Clock):
    """A reactor whose turns and time the test makes, and whose threads report to the real one."""

    def __init__(self) -> None:
        """Count the reports."""
        super().__init__()
        self.reports = 0

    def callFromThread(self, function: Any) -> None:
        """Call it soon."""
        self.reports += 1
        reactor.callFromThread(function)


class Doubling:
    """A call that doubles numbers, refuses 0, and can be held up."""

    def __init__(self) -> None:
        """Let calls through."""
        self.go = Event()
        self.go.set()
        self.begun = Event()
        self.made: list[int] = []

    def __call__(self, number: int) -> int:
        """Return twice the number."""
        self.begun.set()
        assert self.go.wait(20)
        self.made.append(number)
        if number == 0:
            raise ZeroDivisionError
        return 2 * number

    async def holds(self) -> None:
        """Wait until a call has begun."""
        assert await deferToThread(self.begun.wait, 20)


def late() -> TimedOut:
    """Return what those hear who have waited too long."""
    return TimedOut("late")


def start(batched: BatchedCalls[int, int], number: int) -> Deferred[int]:
    """Begin a call."""
    return Deferred.fromCoroutine(batched.run(number))


@pytest_twisted.ensureDeferred
async def test_each_gets_his_own_result() -> None:
    """Each caller gets his own result, or his own error, and all are called in their order."""
    doubling = Doubling()
    batched = BatchedCalls(doubling, LIMIT, reactor, late)
    running = [start(batched, number) for number in range(40)]
    with pytest.raises(ZeroDivisionError):
        await running[0]
    assert [await one for one in running[1:]] == [2 * number for number in range(1, 40)]
    assert doubling.made == list(range(40))
    assert await batched.run(21) == 42


@pytest_twisted.ensureDeferred
async def test_calls_that_come_together_are_made_together() -> None:
    """The reactor is woken once for many calls, those of several turns, too."""
    doubling, turns = Doubling(), Turns()
    batched = BatchedCalls(doubling, LIMIT, turns, late)
    running = [start(batched, number) for number in (1, 2)]
    turns.callLater(0, lambda: running.append(start(batched, 3)))
    turns.advance(0)
    assert [await one for one in running] == [2, 4, 6]
    assert turns.reports == 1


@pytest_twisted.ensureDeferred
async def test_a_batch_has_an_end() -> None:
    """What is too much for one batch is made in the next; the first ones do not wait for it."""
    doubling, turns = Doubling(), Turns()
    batched = BatchedCalls(doubling, LIMIT, turns, late)
    running = [start(batched, 1) for _ in range(MOST_TOGETHER + 1)]
    turns.advance(0)
    assert [await one for one in running[:-1]] == [2] * MOST_TOGETHER
    assert not running[-1].called
    await pause(0, reactor)  # until all have their results
    turns.advance(0)
    assert await running[-1] == 2
    assert turns.reports == 2


@pytest_twisted.ensureDeferred
async def test_one_that_hangs() -> None:
    """All who wait are let go at the limit, the next at once; then all is well again."""
    doubling, turns = Doubling(), Turns()
    batched = BatchedCalls(doubling, LIMIT, turns, late)
    doubling.go.clear()
    running = [start(batched, 1) for _ in range(2)]
    turns.advance(0)
    running += [start(batched, 1) for _ in range(2 * MOST_TOGETHER)]
    turns.advance(LIMIT - 0.1)
    assert not any(one.called for one in running)
    turns.advance(0.1)
    for one in running:
        with pytest.raises(TimedOut):
            await one
    with pytest.raises(TimedOut):
        await batched.run(1)
    doubling.go.set()
    while batched._hangs:
        await pause(0.01, reactor)
    served = start(batched, 3)
    turns.advance(0)
    assert await served == 6
    assert len(doubling.made) <= 2  # nothing was done for those who had left


@pytest_twisted.ensureDeferred
async def test_the_wait_for_others_counts() -> None:
    """The limit is on the whole of a wait, also where the batch before took most of it."""
    doubling, turns = Doubling(), Turns()
    batched = BatchedCalls(doubling, LIMIT, turns, late)
    doubling.go.clear()
    first = start(batched, 1)
    turns.advance(0)
    second = start(batched, 2)
    turns.advance(LIMIT - 1)
    doubling.go.set()
    assert await first == 2
    await pause(0, reactor)  # until the first batch has ended
    doubling.go.clear()
    doubling.begun.clear()
    turns.advance(0)
    await doubling.holds()
    assert not second.called
    turns.advance(1)
    with pytest.raises(TimedOut):
        await second
    doubling.go.set()


@pytest_twisted.ensureDeferred
async def test_callers_who_go_away() -> None:
    """They are let go at once; the call of one is not made if it has not begun."""
    doubling = Doubling()
    batched = BatchedCalls(doubling, LIMIT, reactor, late)
    doubling.go.clear()
    running = [start(batched, number) for number in range(1, 5)]
    running[3].cancel()
    await doubling.holds()
    running[0].cancel()
    running[1].cancel()
    doubling.go.set()
    for gone in (0, 1, 3):
        with pytest.raises(CancelledError):
            await running[gone]
    assert await running[2] == 6
    assert doubling.made == [1, 3]


@pytest_twisted.ensureDeferred
async def test_too_many_waiting_are_refused() -> None:
    """A flood of calls does not fill the memory."""
    batched = BatchedCalls(Doubling(), LIMIT, reactor, late)
    running = [start(batched, 1) for _ in range(MOST_WAITING)]
    with pytest.raises(TimedOut):
        await batched.run(1)
    assert [await one for one in running] == [2] * MOST_WAITING


def test_the_end_of_the_process() -> None:
    """It does not wait for a call that hangs."""
    program = """
import time
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from shiftergw.auth.batched import BatchedCalls

def hang(_):
    reactor.callFromThread(reactor.stop)
    time.sleep(1000)

batched = BatchedCalls(hang, 1000, reactor, RuntimeError)
reactor.callWhenRunning(lambda: Deferred.fromCoroutine(batched.run(1)))
reactor.run()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=patient(30))
