"""`gather_or_cancel`: results in order; one failure or cancellation takes all down."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.plumbing.gather import cancel_all, gather_or_cancel
from tests.plumbing import ends_of


class Task:
    """A coroutine that waits to be told how to end, and counts how often it was cancelled."""

    def __init__(self) -> None:
        """Make the Deferreds it waits for: one for its work, one for its clean-up."""
        self.work: Deferred[Any] = Deferred()
        self.clean_up: Deferred[None] = Deferred()
        self.cancelled = 0

    async def run(self) -> Any:
        """Wait; when cancelled, wait for the clean-up too."""
        try:
            return await self.work
        except CancelledError:
            self.cancelled += 1
            try:
                await self.clean_up
            except CancelledError:
                self.cancelled += 1
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
    """No coroutines, no results."""
    assert await gather_or_cancel([]) == []


@pytest_twisted.ensureDeferred
async def test_a_failure_cancels_the_others() -> None:
    """The first failure is raised as it is, once the others have cleaned up."""
    first, second = Task(), Task()
    running = Deferred.fromCoroutine(gather_or_cancel([first.run(), second.run()]))
    ends = ends_of(running)
    reason = KeyError("cause")
    error = ValueError("mine")
    error.__cause__ = reason
    first.work.errback(error)
    assert second.cancelled == 1
    assert ends == []
    second.clean_up.callback(None)
    with pytest.raises(ValueError, match="mine") as caught:
        await running
    assert caught.value is error
    assert caught.value.__cause__ is reason


@pytest_twisted.ensureDeferred
async def test_later_failures_are_not_heard() -> None:
    """What goes wrong in the clean-up of the others does not replace the first failure."""
    first, second = Task(), Task()
    running = Deferred.fromCoroutine(gather_or_cancel([first.run(), second.run()]))
    first.work.errback(ValueError("first"))
    second.clean_up.errback(KeyError("second"))
    with pytest.raises(ValueError, match="first"):
        await running


@pytest_twisted.ensureDeferred
async def test_cancelling_cancels_each_once() -> None:
    """A cancelled caller's coroutines are cancelled once: their clean-up is not disturbed."""
    first, second = Task(), Task()
    running = Deferred.fromCoroutine(gather_or_cancel([first.run(), second.run()]))
    ends = ends_of(running)
    running.cancel()
    assert (first.cancelled, second.cancelled) == (1, 1)
    assert ends == []
    first.clean_up.callback(None)
    second.clean_up.callback(None)
    with pytest.raises(CancelledError):
        await running
    assert (first.cancelled, second.cancelled) == (1, 1)


@pytest_twisted.ensureDeferred
async def test_a_failure_at_once() -> None:
    """A coroutine that fails before it waits takes those after it down too."""

    async def fails() -> Any:
        raise ValueError("at once")

    other = Task()
    other.clean_up.callback(None)
    with pytest.raises(ValueError, match="at once"):
        await gather_or_cancel([fails(), other.run()])
    assert other.cancelled == 1


def test_unneeded_work_is_cancelled_without_a_word() -> None:
    """`cancel_all` cancels what still runs; no result or error of it is reported."""
    cancelled: list[object] = []
    running: Deferred[int] = Deferred(cancelled.append)
    failed: Deferred[int] = Deferred()
    failed.errback(KeyError("unheard"))
    cancel_all([running, failed])
    assert cancelled == [running]
