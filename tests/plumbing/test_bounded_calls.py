"""Blocking calls run in a bounded number of threads and never outlast their timeout."""

from __future__ import annotations

from threading import Event

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from shiftergw.errors import TimedOut
from shiftergw.plumbing import bounded_calls
from shiftergw.plumbing.bounded_calls import BoundedThreadCalls
from shiftergw.plumbing.threads import Threads
from tests.patience import patient


class Hanging:
    """A call that hangs until `end` is set."""

    def __init__(self) -> None:
        """Prepare to hang."""
        self.end = Event()

    def __call__(self) -> str:
        """Return once `end` is set."""
        assert self.end.wait(patient(30))
        return "done"


def late() -> TimedOut:
    """Return the error of a call that exceeds its timeout."""
    return TimedOut("late")


@pytest_twisted.ensureDeferred
async def test_results_and_errors_are_passed_on(threads: Threads) -> None:
    """The caller gets the result or the error of its call, and the slot is free again."""
    calls_pool = BoundedThreadCalls(threads, 1, 5, Clock(), late)
    for _ in range(3):
        assert await calls_pool.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await calls_pool.run(divmod, 7, 0)


@pytest_twisted.ensureDeferred
async def test_calls_time_out_and_hanging_calls_keep_their_slots(threads: Threads) -> None:
    """Late callers fail, new ones fail at once while all slots hang, later ones succeed."""
    clock, hanging = Clock(), Hanging()
    calls_pool = BoundedThreadCalls(threads, 2, 5, clock, late)
    calls = [Deferred.fromCoroutine(calls_pool.run(hanging)) for _ in range(3)]
    clock.advance(5)
    for call in calls:
        with pytest.raises(TimedOut):
            await call
    with pytest.raises(TimedOut):
        await calls_pool.run(int)
    hanging.end.set()
    while calls_pool._start_times:
        await threads.run(int)
    assert await calls_pool.run(int) == 0


@pytest_twisted.ensureDeferred
async def test_a_caller_waits_for_a_free_slot(threads: Threads) -> None:
    """A caller without a slot waits while the running calls are not late."""
    hanging = Hanging()
    calls_pool = BoundedThreadCalls(threads, 1, 5, Clock(), late)
    first = Deferred.fromCoroutine(calls_pool.run(hanging))
    second = Deferred.fromCoroutine(calls_pool.run(int))
    hanging.end.set()
    assert (await first, await second) == ("done", 0)


@pytest_twisted.ensureDeferred
async def test_the_queue_is_bounded(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers beyond the limit of the queue fail at once."""
    monkeypatch.setattr(bounded_calls, "QUEUE_LIMIT", 2)
    hanging = Hanging()
    calls_pool = BoundedThreadCalls(threads, 1, 5, Clock(), late)
    calls = [Deferred.fromCoroutine(calls_pool.run(hanging)) for _ in range(3)]
    with pytest.raises(TimedOut):
        await calls_pool.run(int)
    hanging.end.set()
    assert [await call for call in calls] == ["done"] * 3


@pytest.mark.parametrize("cancelled_index", [0, 1])
@pytest_twisted.ensureDeferred
async def test_a_cancelled_caller_does_not_block_others(
    threads: Threads, cancelled_index: int
) -> None:
    """Its slot is free once its call has ended; the other calls are unaffected."""
    hanging = Hanging()
    calls_pool = BoundedThreadCalls(threads, 1, 5, Clock(), late)
    calls = [Deferred.fromCoroutine(calls_pool.run(hanging)) for _ in range(2)]
    calls[cancelled_index].cancel()
    with pytest.raises(CancelledError):
        await calls[cancelled_index]
    hanging.end.set()
    assert await calls[1 - cancelled_index] == "done"
    assert await calls_pool.run(int) == 0


@pytest_twisted.ensureDeferred
async def test_late_errors_are_dropped(threads: Threads) -> None:
    """An error that a call raises after its caller was cancelled is not logged as unhandled."""
    end = Event()

    def fail() -> None:
        assert end.wait(patient(30))
        raise ValueError

    calls_pool = BoundedThreadCalls(threads, 1, 5, Clock(), late)
    call = Deferred.fromCoroutine(calls_pool.run(fail))
    call.cancel()
    with pytest.raises(CancelledError):
        await call
    end.set()
    assert await calls_pool.run(int) == 0
