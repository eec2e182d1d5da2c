"""Pauses, timeouts and cancellation, with a clock that the test advances."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from shiftergw.errors import TimedOut
from shiftergw.plumbing.timing import pause, shield, ticking, wait_to_end, within


def late() -> BaseException:
    """Return the error of a timeout."""
    return TimedOut("Too late.")


def test_a_pause_lasts_its_seconds() -> None:
    """A pause ends after its seconds and not before."""
    clock = Clock()
    waiting = Deferred.fromCoroutine(pause(3, clock))
    clock.advance(2.9)
    assert not waiting.called
    clock.advance(0.1)
    assert waiting.called


@pytest_twisted.ensureDeferred
async def test_a_pause_can_be_cancelled() -> None:
    """A cancelled pause ends at once and leaves nothing on the clock."""
    clock = Clock()
    waiting = Deferred.fromCoroutine(pause(3, clock))
    waiting.cancel()
    with pytest.raises(CancelledError):
        await waiting
    assert clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_work_in_time() -> None:
    """Work that ends in time gives its result, be it a Deferred or a coroutine."""
    clock = Clock()
    work: Deferred[int] = Deferred()

    async def inside() -> int:
        return await within(5, clock, work, late)

    running = Deferred.fromCoroutine(within(5, clock, inside(), late))
    work.callback(7)
    assert await running == 7
    assert clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_work_that_fails_in_time() -> None:
    """Work that fails in time raises its own error."""
    work: Deferred[int] = Deferred()
    running = Deferred.fromCoroutine(within(5, Clock(), work, late))
    work.errback(KeyError("own"))
    with pytest.raises(KeyError):
        await running


@pytest_twisted.ensureDeferred
async def test_work_that_is_late() -> None:
    """Work that takes too long is cancelled, and the error of `late` is raised."""
    clock = Clock()
    cancelled_work: list[Any] = []
    work: Deferred[int] = Deferred(cancelled_work.append)
    running = Deferred.fromCoroutine(within(5, clock, work, late))
    clock.advance(5)
    with pytest.raises(TimedOut):
        await running
    assert cancelled_work == [work]


@pytest_twisted.ensureDeferred
async def test_being_cancelled_is_not_being_late() -> None:
    """A cancellation from outside cancels the work and stays a cancellation."""
    clock = Clock()
    cancelled_work: list[Any] = []
    work: Deferred[int] = Deferred(cancelled_work.append)
    running = Deferred.fromCoroutine(within(5, clock, work, late))
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    assert cancelled_work == [work]
    assert clock.getDelayedCalls() == []


def test_a_shield_takes_the_cancellation() -> None:
    """Cancelling the shield ends the waiting and leaves the work alone; its result stays."""
    inner: Deferred[int] = Deferred()
    first = shield(inner)
    results: list[Any] = []
    first.addErrback(lambda failure: results.append(failure.type))
    first.cancel()
    assert results == [CancelledError]
    second = shield(inner)
    inner.callback(4)
    second.addCallback(results.append)
    assert results == [CancelledError, 4]


def test_ticks_come_while_the_block_lives() -> None:
    """A block is ticked at its interval, and not after it, also when it raises."""
    clock = Clock()
    ticks: list[float] = []
    with ticking(2, clock, lambda: ticks.append(clock.seconds())):
        clock.pump([1] * 5)
    assert ticks == [2, 4]
    with pytest.raises(KeyError), ticking(2, clock, lambda: ticks.append(0)):
        raise KeyError
    assert clock.getDelayedCalls() == []


def test_the_end_of_work_is_waited_for_despite_cancellation() -> None:
    """The first cancellation asks the work to stop; it is raised once the work has ended."""
    work: Deferred[int] = Deferred()
    stops: list[str] = []
    failures: list[Any] = []
    waiting = Deferred.fromCoroutine(wait_to_end(work, lambda: stops.append("stop")))
    waiting.addErrback(lambda failure: failures.append(failure.type))
    waiting.cancel()
    waiting.cancel()
    assert (stops, failures) == (["stop"], [])
    work.errback(KeyError("dropped"))
    assert failures == [CancelledError]


@pytest_twisted.ensureDeferred
async def test_work_that_ends_by_itself_is_not_stopped() -> None:
    """Results and errors of work are passed on; `on_cancel` is not called."""
    stops: list[str] = []
    done: Deferred[int] = Deferred()
    done.callback(3)
    assert await wait_to_end(done, lambda: stops.append("stop")) == 3
    failing: Deferred[int] = Deferred()
    failing.errback(KeyError("own"))
    with pytest.raises(KeyError):
        await wait_to_end(failing, lambda: stops.append("stop"))
    assert stops == []
