"""The local worker pool keeps the contract, and leaves no process behind."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogLevel, globalLogPublisher
from zope.interface import implementer

from shiftergw.errors import Unavailable
from shiftergw.ports import JobEnd
from shiftergw.work import pool, process
from shiftergw.work.pool import WorkerPool
from shiftergw.work.process import LineSplitter
from tests.patience import patient
from tests.work.contract import QueueContract
from tests.work.pools import WORKERS, Make, pid_of
from tests.work.waiting import alive, until


@pytest.fixture
def queue(make: Make) -> WorkerPool:
    """Return a pool of two."""
    return make()


class TestWorkerPool(QueueContract):
    """The contract, on local processes."""


@pytest_twisted.ensureDeferred
async def test_drain_waits(queue: WorkerPool, traces: Path) -> None:
    """A drained pool has let its jobs end, and takes no more."""
    await queue.offer("short-1")
    await queue.drain(20)
    assert (traces / "short-1-done").exists()
    assert queue._workers == []
    assert queue.slots() == 0
    with pytest.raises(Unavailable):
        await queue.offer("short-2")


@pytest_twisted.ensureDeferred
async def test_drain_has_a_limit(queue: WorkerPool, traces: Path) -> None:
    """A job that does not end within the limit is stopped."""
    await queue.offer("sleep-1")
    await until((traces / "sleep-1").exists)
    await queue.drain(0.1)
    assert queue._workers == []


@pytest_twisted.ensureDeferred
async def test_workers_are_kept(make: Make, traces: Path) -> None:
    """Workers start when there is work, and the next job goes to one that is there."""
    queue = make()
    assert queue._workers == []
    for name in ("a", "b"):
        await queue.offer(name)
        await until(lambda: queue.slots() == 2)
    assert pid_of(traces / "a") == pid_of(traces / "b")
    assert len(queue._workers) == 1


@pytest_twisted.ensureDeferred
async def test_one_worker_is_warm(make: Make, traces: Path) -> None:
    """It is there before any job, takes the first one, and is replaced when it leaves."""
    queue = make(jobs_per_worker=1, warm=1)
    (warm,) = queue._workers
    await queue.offer("a")
    assert warm.job == "a"
    await until(lambda: queue._workers not in ([], [warm]))
    assert len(queue._workers) == 1
    assert queue.slots() == 2


@pytest_twisted.ensureDeferred
async def test_workers_are_replaced(make: Make, traces: Path) -> None:
    """After its number of jobs a worker leaves, and another takes its place without delay."""
    queue = make(size=1, jobs_per_worker=2)
    woken: list[int] = []
    queue.on_idle = lambda: woken.append(queue.slots())
    for name in ("a", "b", "c"):
        await until(lambda: queue.slots() == 1)
        await queue.offer(name)
    await until(lambda: queue.slots() == 1)
    pids = [pid_of(traces / name) for name in ("a", "b", "c")]
    assert pids[0] == pids[1] != pids[2]
    assert not alive(pids[0])
    assert woken == [1, 1, 1]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("words", ["to the log", r"\x1b[31mred", "not json", "[]", '{"done": 1}'])
async def test_noise_goes_to_the_log(make: Make, log: list[str], words: str) -> None:
    """What a worker says besides its answers is logged, printable and cut."""
    queue = make()
    await queue.offer("noise")
    await until(lambda: any(line.endswith(f": {words}") for line in log))
    await until(lambda: queue.slots() == 2)
    assert max(len(line) for line in log) < process.LINE_LIMIT + 100


@pytest_twisted.ensureDeferred
async def test_a_line_of_a_workers_log_keeps_its_level(make: Make, log: list[str]) -> None:
    """A warning of a worker is one in the gateway's log, where the level may leave out the rest."""
    levels = []

    @implementer(ILogObserver)
    def observe(event: dict[str, Any]) -> None:
        levels.append((event["log_level"], event.get("line")))

    globalLogPublisher.addObserver(observe)
    queue = make()
    await queue.offer("noise")
    await until(lambda: any(line.endswith(": a.b: trouble") for line in log))
    globalLogPublisher.removeObserver(observe)
    assert (LogLevel.warn, "a.b: trouble") in levels
    await until(lambda: queue.slots() == 2)


@pytest_twisted.ensureDeferred
async def test_a_flood_does_not(make: Make, log: list[str]) -> None:
    """Of a worker that says too much, a bounded number of lines is logged for each job."""
    queue = make()
    for _ in range(2):
        log.clear()
        await queue.offer("flood")
        await until(lambda: queue.slots() == 2)
        await until(lambda: any("says too much" in line for line in log))
        assert sum(line.endswith("again") for line in log) == process.LINES_LOGGED


@pytest_twisted.ensureDeferred
async def test_cancel_is_no_crash(make: Make, traces: Path, log: list[str]) -> None:
    """After a cancelled job the slot is free at once, and its process is gone."""
    queue = make(size=1)
    await queue.offer("sleep")
    await until((traces / "sleep").exists)
    await queue.cancel("sleep")
    assert queue.slots() == 1
    assert not alive(pid_of(traces / "sleep"))
    assert not any("next one" in line for line in log)


@pytest_twisted.ensureDeferred
async def test_a_worker_that_is_deaf(
    make: Make, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that ignores SIGTERM is killed, however often it is told to stop."""
    monkeypatch.setattr(process, "KILL_SECONDS", 0.3)
    queue = make("deaf")
    await queue.offer("sleep")
    await until((traces / "sleep").exists)
    twice = [Deferred.fromCoroutine(queue.cancel("sleep")) for _ in range(2)]
    for one in twice:
        await one
    assert not alive(pid_of(traces / "sleep"))


@pytest_twisted.ensureDeferred
async def test_an_idle_worker_that_will_not_leave(
    make: Make, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that stays after the end of its input is stopped."""
    monkeypatch.setattr(process, "LEAVE_SECONDS", 0.2)
    queue = make("stubborn", jobs_per_worker=1)
    await queue.offer("a")
    await until(lambda: queue._workers == [] and (traces / "a").exists())
    assert not alive(pid_of(traces / "a"))
    await queue.offer("b")
    await queue.drain(20)
    assert not alive(pid_of(traces / "b"))


@pytest_twisted.ensureDeferred
async def test_a_worker_and_its_children(
    make: Make, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that leads a process group takes its children with it, even when it is killed."""
    monkeypatch.setattr(process, "KILL_SECONDS", 0.2)
    queue = make("group")
    await queue.offer("child")
    await until(lambda: (traces / "child").exists() and (traces / "child").stat().st_size)
    child = pid_of(traces / "child")
    assert alive(child)
    await queue.cancel("child")
    await until(lambda: not alive(child))


@pytest_twisted.ensureDeferred
async def test_stop(make: Make, traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping lets idle workers leave by themselves and stops what does not end."""
    monkeypatch.setattr(pool, "STOP_SECONDS", 0.5)
    queue = make()
    await queue.offer("a")
    await until(lambda: queue.slots() == 2)
    await queue.offer("b")
    await queue.offer("sleep")
    await until(lambda: (traces / "sleep").exists() and (traces / "b").exists())
    ends: list[JobEnd] = []
    queue.on_end = ends.append
    started = time.monotonic()
    await queue.stopService()
    assert time.monotonic() - started < patient(5)
    assert [(end.key, end.died) for end in ends] == [("sleep", False)]
    assert (traces / f"left-{pid_of(traces / 'b')}").exists()
    assert not alive(pid_of(traces / "sleep"))


@pytest_twisted.ensureDeferred
async def test_stop_while_a_worker_starts(make: Make) -> None:
    """A worker that has just been started does its job and leaves."""
    queue = make()
    await queue.offer("a")
    await queue.drain(20)
    assert queue._workers == []


@pytest_twisted.ensureDeferred
async def test_a_closed_pool_offers_nothing() -> None:
    """Before its start a pool has no slots."""
    queue = WorkerPool(Clock(), ["x"], {}, 2, 50)
    assert queue.slots() == 0
    with pytest.raises(Unavailable):
        await queue.offer("a")


@pytest_twisted.ensureDeferred
async def test_workers_end_with_a_killed_gateway(traces: Path) -> None:
    """When the gateway is killed its workers see the end of their input and leave."""
    code = f"""
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from shiftergw.work.pool import WorkerPool
pool = WorkerPool(reactor, [{sys.executable!r}, {str(WORKERS)!r}, "good", {str(traces)!r}],
                  {{}}, 2, 50)
def go():
    pool.startService()
    for key in ("a", "b"):
        Deferred.fromCoroutine(pool.offer(key))
reactor.callWhenRunning(go)
reactor.run()
"""
    gateway = subprocess.Popen([sys.executable, "-c", code])  # noqa: ASYNC220
    await until(lambda: (traces / "a").exists() and (traces / "b").exists())
    gateway.kill()
    gateway.wait()
    for name in ("a", "b"):
        await until(lambda name=name: not alive(pid_of(traces / name)))  # type: ignore[misc]


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_lines(size: int) -> None:
    """Lines are the same however the stream is cut; a very long one comes in pieces."""
    lines: list[bytes] = []
    cutter = LineSplitter(lines.append)
    stream = b"one\n\nthree\n"
    for start in range(0, len(stream), size):
        cutter.feed(stream[start : start + size])
    assert lines == [b"one", b"", b"three"]
    cutter.feed(b"x" * 5000)
    cutter.feed(b"y\n")
    assert lines[3:] == [b"x" * 5000, b"y"]
