"""`Threads`: results, errors, cancellation, the end of the pool."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from shiftergw.errors import Unavailable
from shiftergw.plumbing.threads import Threads
from tests.patience import patient
from tests.plumbing import ends_of
from tests.thread_pools import running_threads

real: Any = reactor


@pytest_twisted.ensureDeferred
async def test_a_result_comes_back(threads: Threads) -> None:
    """The function runs in another thread, with its arguments, and its result is returned."""
    ident, number = await threads.run(lambda n, add: (threading.get_ident(), n + add), 1, add=2)
    assert ident != threading.get_ident()
    assert number == 3


@pytest_twisted.ensureDeferred
async def test_an_error_comes_back(threads: Threads) -> None:
    """An error of the function is raised in the caller."""
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)


@pytest_twisted.ensureDeferred
async def test_no_thread_outlives_a_cancelled_caller(threads: Threads) -> None:
    """The cancellation is raised only when the function has ended."""
    release, has_ended = threading.Event(), threading.Event()

    def work() -> None:
        release.wait(patient(10))
        time.sleep(0.05)
        has_ended.set()

    running = Deferred.fromCoroutine(threads.run(work))
    ends = ends_of(running)
    running.cancel()
    await deferLater(real, 0.05)
    assert ends == []
    running.cancel()
    release.set()
    with pytest.raises(CancelledError):
        await running
    assert has_ended.is_set()


@pytest_twisted.ensureDeferred
async def test_on_cancel_is_called_once(threads: Threads) -> None:
    """`on_cancel` is called once; an error that it causes does not hide the cancellation."""
    stop = threading.Event()
    cancellations: list[None] = []

    def on_cancel() -> None:
        cancellations.append(None)
        stop.set()

    def work() -> None:
        stop.wait(patient(10))
        raise ValueError("stopped")

    running = Deferred.fromCoroutine(threads.run_until(on_cancel, work))
    await deferLater(real, 0.02)
    running.cancel()
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    assert cancellations == [None]


@pytest_twisted.ensureDeferred
async def test_a_function_may_raise_cancelled_error(threads: Threads) -> None:
    """`CancelledError` of the function itself is an ordinary error."""

    def work() -> None:
        raise CancelledError

    cancellations: list[None] = []
    with pytest.raises(CancelledError):
        await threads.run_until(lambda: cancellations.append(None), work)
    assert cancellations == []


@pytest_twisted.ensureDeferred
async def test_no_more_than_its_size_at_once() -> None:
    """A pool of two threads runs two functions at a time."""
    semaphore, counts = threading.Semaphore(0), []
    busy: set[int] = set()

    def work(number: int) -> None:
        busy.add(number)
        counts.append(len(busy))
        semaphore.acquire(timeout=0.05)
        busy.discard(number)

    async with running_threads(2) as threads:
        running = [Deferred.fromCoroutine(threads.run(work, n)) for n in range(6)]
        for result in running:
            await result
    assert max(counts) == 2


@pytest_twisted.ensureDeferred
async def test_a_stopped_pool_says_so() -> None:
    """The stop waits for running work; later work raises an error, and a second stop is none."""
    pool = Threads(real, 1, "test")
    pool.startService()
    has_ended = threading.Event()

    def work() -> None:
        time.sleep(0.1)
        has_ended.set()

    running = Deferred.fromCoroutine(pool.run(work))
    await pool.stopService()
    assert has_ended.is_set()
    await running
    with pytest.raises(Unavailable):
        await pool.run(lambda: None)
    await pool.stopService()


def test_a_process_ends_although_a_thread_hangs() -> None:
    """Nobody waits for the stop of the pool: neither the reactor nor the interpreter."""
    code = """
from threading import Event
from twisted.internet import reactor
from shiftergw.plumbing.threads import Threads

pool = Threads(reactor, 1, "test")
pool.startService()
pool.begin(Event().wait)
reactor.callLater(0, pool.stopService)
reactor.callLater(0.05, reactor.stop)
reactor.run()
"""
    subprocess.run([sys.executable, "-c", code], timeout=patient(60), check=True)
