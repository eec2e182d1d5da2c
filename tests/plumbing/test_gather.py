"""`gather_or_cancel` returns results in order, and cancels all coroutines on a failure."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.plumbing.gather import cancel_all, gather_or_cancel
from tests.plumbing import ends_of


class Task:
    """A coroutine that the test ends; it counts its cancellations."""

    def __init__(self) -> None:
        """Create one Deferred for the work and one for the clean-up."""
        self.work: Deferred[Any] = Deferred()
        self.clean_up: Deferred[None] = Deferred()
        self.cancel_count = 0

    async def run(self) -> Any:
        """Wait for the work; when cancelled, wait for the clean-up."""
        try:
            return await self.work
        except CancelledError:
            self.cancel_count += 1
            try:
                await self.clean_up
            except CancelledError:
                self.cancel_count += 1
            raise


@pytest_twisted.ensureDeferred
async def test_results_in_order() -> None:
    """Results come in the order of the coroutines, whichever ends first."""
    first, second = Task(), Task()
    running = Deferred.fromCoroutine(gather_or_cancel([first.run(), second.run()]))
    second.work.callback(2)
    first.work.callback(1)
    assert await running == [1, 2]


@pytest_twisted.ensureDeferred
async def test_nothing_to_wait_for() -> None:
    """Without coroutines the list of results is empty."""
    assert await gather_or_cancel([]) == []


@pytest_twisted.ensureDeferred
async def test_a_failure_cancels_the_others() -> None:
    """The first error is raised unchanged, after the clean-up of the other coroutines."""
    first, second = Task(), Task()
    running = Deferred.fromCoroutine(gather_or_cancel([first.run(), second.run()]))
    ends = ends_of(running)
    reason = KeyError("cause")
    error = ValueError("mine")
    error.__cause__ = reason
    first.work.errback(error)
    assert second.cancel_count == 1
    assert ends == []
    second.clean_up.callback(None)
    with pytest.raises(ValueError, match="mine") as excinfo:
        await running
    assert excinfo.value is error
    assert excinfo.value.__cause__ is reason


@pytest_twisted.ensureDeferred
async def test_later_failures_are_dropped() -> None:
    """An error during the clean-up does not replace the first error."""
    first, second = Task(), Task()
    running = Deferred.fromCoroutine(gather_or_cancel([first.run(), second.run()]))
    first.work.errback(ValueError("first"))
    second.clean_up.errback(KeyError("second"))
    with pytest.raises(ValueError, match="first"):
        await running


@pytest_twisted.ensureDeferred
async def test_cancelling_cancels_each_once() -> None:
    """Cancelling the caller cancels each coroutine once, so clean-up is not disturbed."""
    first, second = Task(), Task()
    running = Deferred.fromCoroutine(gather_or_cancel([first.run(), second.run()]))
    ends = ends_of(running)
    running.cancel()
    assert (first.cancel_count, second.cancel_count) == (1, 1)
    assert ends == []
    first.clean_up.callback(None)
    second.clean_up.callback(None)
    with pytest.raises(CancelledError):
        await running
    assert (first.cancel_count, second.cancel_count) == (1, 1)


@pytest_twisted.ensureDeferred
async def test_an_immediate_failure() -> None:
    """A coroutine that fails before its first wait cancels the later ones, too."""

    async def fails() -> Any:
        raise ValueError("at once")

    second = Task()
    second.clean_up.callback(None)
    with pytest.raises(ValueError, match="at once"):
        await gather_or_cancel([fails(), second.run()])
    assert second.cancel_count == 1


def test_unneeded_work_is_cancelled_silently() -> None:
    """`cancel_all` cancels what still runs; no result or error of it is reported."""
    cancelled_work: list[object] = []
    running: Deferred[int] = Deferred(cancelled_work.append)
    failure_result: Deferred[int] = Deferred()
    failure_result.errback(KeyError("unheard"))
    cancel_all([running, failure_result])
    assert cancelled_work == [running]
