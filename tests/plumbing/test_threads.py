"""`Threads`: results, errors, cancellation, the end of the pool."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from shiftergw.errors import Unavailable
from shiftergw.plumbing.threads import Threads
from tests.plumbing import ends_of

real: Any = reactor


@pytest_twisted.async_yield_fixture
async def threads() -> AsyncIterator[Threads]:
    """Two threads."""
    pool = Threads(real, 2, "test")
    pool.startService()
    yield pool
    await pool.stopService()


@pytest_twisted.ensureDeferred
async def test_a_result_comes_back(threads: Threads) -> None:
    """The function runs in another thread, with its arguments, and its result is returned."""
    ident, number = await threads.run(lambda n, add: (threading.get_ident(), n + add), 1, add=2)
    assert ident != threading.get_ident()
    assert number == 3


@pytest_twisted.ensureDeferred
async def test_an_error_comes_back(threads: Threads) -> None:
    """What the function raises is raised here."""
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)


@pytest_twisted.ensureDeferred
async def test_no_thread_outlives_a_cancelled_caller(threads: Threads) -> None:
    """A cancelled caller hears of it only when the function has ended."""
    release, ended = threading.Event(), threading.Event()

    def work() -> None:
        release.wait(10)
        time.sleep(0.05)
        ended.set()

    running = Deferred.fromCoroutine(threads.run(work))
    ends = ends_of(running)
    running.cancel()
    await deferLater(real, 0.05)
    assert ends == []
    running.cancel()
    release.set()
    with pytest.raises(CancelledError):
        await running
    assert ended.is_set()


@pytest_twisted.ensureDeferred
async def test_cancelling_tells_the_function_once(threads: Threads) -> None:
    """`on_cancel` is called once, and an error it provokes does not hide the cancellation."""
    stop = threading.Event()
    told: list[None] = []

    def on_cancel() -> None:
        told.append(None)
        stop.set()

    def work() -> None:
        stop.wait(10)
        raise ValueError("stopped")

    running = Deferred.fromCoroutine(threads.run_until(on_cancel, work))
    await deferLater(real, 0.02)
    running.cancel()
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    assert told == [None]


@pytest_twisted.ensureDeferred
async def test_a_cancellation_inside_is_the_functions_own(threads: Threads) -> None:
    """A function that itself raises `CancelledError` has merely failed."""

    def work() -> None:
        raise CancelledError

    told: list[None] = []
    with pytest.raises(CancelledError):
        await threads.run_until(lambda: told.append(None), work)
    assert told == []


@pytest_twisted.ensureDeferred
async def test_no_more_than_its_size_at_once(threads: Threads) -> None:
    """A pool of two runs two functions at once and the rest after them."""
    together, most = threading.Semaphore(0), []
    busy: set[int] = set()

    def work(number: int) -> None:
        busy.add(number)
        most.append(len(busy))
        together.acquire(timeout=0.05)
        busy.discard(number)

    running = [Deferred.fromCoroutine(threads.run(work, n)) for n in range(6)]
    for one in running:
        await one
    assert max(most) == 2


@pytest_twisted.ensureDeferred
async def test_a_stopped_pool_says_so() -> None:
    """Stopping waits for what runs; later work is refused instead of waiting for ever."""
    pool = Threads(real, 1, "test")
    pool.startService()
    ended = threading.Event()

    def work() -> None:
        time.sleep(0.1)
        ended.set()

    running = Deferred.fromCoroutine(pool.run(work))
    await pool.stopService()
    assert ended.is_set()
    await running
    with pytest.raises(Unavailable):
        await pool.run(lambda: None)
