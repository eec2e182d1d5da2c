"""Places for calls that may hang."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from shiftergw.auth import limited as limited_module
from shiftergw.auth.limited import MOST_WAITING, Batched, Limited
from shiftergw.errors import TimedOut
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause

reactor: Any = global_reactor


class Hanging:
    """A call that hangs until it is told to end."""

    def __init__(self) -> None:
        """Hang."""
        self.end = Event()

    def __call__(self) -> str:
        """Return once `end` is set."""
        assert self.end.wait(30)
        return "done"


@pytest.fixture
def threads() -> Iterator[Threads]:
    """Give a pool of threads that runs while the test does."""
    pool = Threads(reactor, 8, "test")
    pool.startService()
    yield pool
    pytest_twisted.blockon(pool.stopService())


def late() -> TimedOut:
    """Return what those hear who have waited too long."""
    return TimedOut("late")


@pytest_twisted.ensureDeferred
async def test_results_and_errors(threads: Threads) -> None:
    """What a call returns or raises comes back, and its place is free again."""
    limited = Limited(threads, 1, 5, Clock(), late)
    for _ in range(3):
        assert await limited.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await limited.run(divmod, 7, 0)


@pytest_twisted.ensureDeferred
async def test_late(threads: Threads) -> None:
    """Who waits too long hears it, and at once while all places hang; then all is well."""
    clock, hanging = Clock(), Hanging()
    limited = Limited(threads, 2, 5, clock, late)
    calls = [Deferred.fromCoroutine(limited.run(hanging)) for _ in range(3)]
    clock.advance(5)
    for call in calls:
        with pytest.raises(TimedOut):
            await call
    with pytest.raises(TimedOut):
        await limited.run(int)
    hanging.end.set()
    while limited._begun:
        await threads.run(int)
    assert await limited.run(int) == 0


@pytest_twisted.ensureDeferred
async def test_waiting_for_a_place(threads: Threads) -> None:
    """Who finds no place waits for one, as long as those before him are not late."""
    hanging = Hanging()
    limited = Limited(threads, 1, 5, Clock(), late)
    first = Deferred.fromCoroutine(limited.run(hanging))
    second = Deferred.fromCoroutine(limited.run(int))
    hanging.end.set()
    assert (await first, await second) == ("done", 0)


@pytest_twisted.ensureDeferred
async def test_too_many_wait(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue before the places has an end."""
    monkeypatch.setattr(limited_module, "MOST_WAITING", 2)
    hanging = Hanging()
    limited = Limited(threads, 1, 5, Clock(), late)
    calls = [Deferred.fromCoroutine(limited.run(hanging)) for _ in range(3)]
    with pytest.raises(TimedOut):
        await limited.run(int)
    hanging.end.set()
    assert [await call for call in calls] == ["done"] * 3


@pytest.mark.parametrize("which", [0, 1])
@pytest_twisted.ensureDeferred
async def test_a_caller_who_goes_away(threads: Threads, which: int) -> None:
    """His place is free once his call has ended, and nobody else is held up for his sake."""
    hanging = Hanging()
    limited = Limited(threads, 1, 5, Clock(), late)
    calls = [Deferred.fromCoroutine(limited.run(hanging)) for _ in range(2)]
    calls[which].cancel()
    with pytest.raises(CancelledError):
        await calls[which]
    hanging.end.set()
    assert await calls[1 - which] == "done"
    assert await limited.run(int) == 0


@pytest_twisted.ensureDeferred
async def test_an_error_that_nobody_hears(threads: Threads) -> None:
    """What a call raises after its caller has gone is no failure of the program."""
    end = Event()

    def broken() -> None:
        assert end.wait(30)
        raise ValueError

    limited = Limited(threads, 1, 5, Clock(), late)
    call = Deferred.fromCoroutine(limited.run(broken))
    call.cancel()
    with pytest.raises(CancelledError):
        await call
    end.set()
    assert await limited.run(int) == 0


class Doubling:
    """A call that doubles numbers, refuses 0, and can be held up."""

    def __init__(self) -> None:
        """Let calls through."""
        self.go = Event()
        self.go.set()
        self.calls = 0

    def __call__(self, number: int) -> int:
        """Return twice the number."""
        self.go.wait(20)
        self.calls += 1
        if number == 0:
            raise ZeroDivisionError
        return 2 * number


@pytest_twisted.ensureDeferred
async def test_calls_that_come_together_are_made_together(threads: Threads) -> None:
    """Each caller gets his own result, or his own error, and all are called."""
    doubling = Doubling()
    batched = Batched(doubling, Limited(threads, 1, 5, reactor, late), 1)
    doubling.go.clear()
    running = [Deferred.fromCoroutine(batched.run(number)) for number in range(40)]
    running[5].cancel()
    doubling.go.set()
    for number, one in enumerate(running):
        if number == 0:
            with pytest.raises(ZeroDivisionError):
                await one
        elif number == 5:
            with pytest.raises(CancelledError):
                await one
        else:
            assert await one == 2 * number
    assert doubling.calls == 40
    assert await batched.run(21) == 42


@pytest_twisted.ensureDeferred
async def test_a_batch_that_hangs_is_late_for_all(threads: Threads) -> None:
    """Nobody waits longer than the limit for a batch; what comes next is served again."""
    doubling = Doubling()
    limited = Limited(threads, 2, 0.2, reactor, late)
    batched = Batched(doubling, limited, 1)
    doubling.go.clear()
    running = [Deferred.fromCoroutine(batched.run(number)) for number in (1, 2)]
    for one in running:
        with pytest.raises(TimedOut):
            await one
    doubling.go.set()
    while limited._begun:
        await pause(0.01, reactor)
    assert await batched.run(3) == 6


@pytest_twisted.ensureDeferred
async def test_too_many_waiting_are_refused(threads: Threads) -> None:
    """A flood of calls does not fill the memory."""
    doubling = Doubling()
    batched = Batched(doubling, Limited(threads, 1, 5, reactor, late), 1)
    doubling.go.clear()
    running = [Deferred.fromCoroutine(batched.run(1)) for _ in range(MOST_WAITING + 1)]
    with pytest.raises(TimedOut):
        await batched.run(1)
    doubling.go.set()
    assert [await one for one in running] == [2] * (MOST_WAITING + 1)
