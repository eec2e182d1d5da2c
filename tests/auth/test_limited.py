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
from shiftergw.auth.limited import Limited
from shiftergw.errors import TimedOut
from shiftergw.plumbing.threads import Threads

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
