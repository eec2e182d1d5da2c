"""The local worker pool keeps the contract of job queues and leaves no process behind."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogLevel, globalLogPublisher
from zope.interface import implementer

from shiftergw.errors import Unavailable
from shiftergw.ports import JobEnd
from shiftergw.work import pool, process, worker_protocol
from shiftergw.work.pool import PoolOptions, WorkerPool
from shiftergw.work.process import WorkerProcess
from shiftergw.work.worker_protocol import LineSplitter
from tests.patience import patient
from tests.work.contract import QueueContract
from tests.work.pools import WORKERS, StartPool, pid_of
from tests.work.waiting import is_alive, until


@pytest.fixture
def queue(start_pool: StartPool) -> WorkerPool:
    """Return a running pool of two workers."""
    return start_pool()


class TestWorkerPool(QueueContract):
    """Run the contract on local worker processes."""


@pytest_twisted.ensureDeferred
async def test_stop_waits_for_jobs(
    queue: WorkerPool, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop returns only after running jobs have ended: they would die with the gateway."""
    monkeypatch.setattr(pool, "STOP_SECONDS", 20.0)
    await queue.offer("short-1")
    await queue.stopService()
    assert (traces / "short-1-done").exists()
    assert queue._workers == []


@pytest_twisted.ensureDeferred
async def test_stop_has_a_time_limit(
    queue: WorkerPool, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that does not end within the limit is stopped."""
    monkeypatch.setattr(pool, "STOP_SECONDS", 0.1)
    await queue.offer("sleep-1")
    await until((traces / "sleep-1").exists)
    await queue.stopService()
    assert queue._workers == []


@pytest_twisted.ensureDeferred
async def test_workers_are_reused(start_pool: StartPool, traces: Path) -> None:
    """The first offer starts a worker, and the next job goes to the same worker."""
    queue = start_pool()
    assert queue._workers == []
    for name in ("a", "b"):
        await queue.offer(name)
        await until(lambda: queue.slots() == 2)
    assert pid_of(traces / "a") == pid_of(traces / "b")
    assert len(queue._workers) == 1


@pytest_twisted.ensureDeferred
async def test_a_warm_worker_takes_the_first_job(start_pool: StartPool, traces: Path) -> None:
    """A warm worker is started before any job, and replaced by a new one when it leaves."""
    queue = start_pool(jobs_per_worker=1, warm=1)
    (warm_worker,) = queue._workers
    await queue.offer("a")
    assert warm_worker.job == "a"
    await until(lambda: queue._workers not in ([], [warm_worker]))
    assert len(queue._workers) == 1
    assert queue.slots() == 2


@pytest_twisted.ensureDeferred
async def test_workers_are_replaced_after_their_jobs(start_pool: StartPool, traces: Path) -> None:
    """After `jobs_per_worker` jobs a worker leaves, and the next job starts another at once."""
    queue = start_pool(size=1, jobs_per_worker=2)
    idle_slots: list[int] = []
    queue.on_idle = lambda: idle_slots.append(queue.slots())
    for name in ("a", "b", "c"):
        await until(lambda: queue.slots() == 1)
        await queue.offer(name)
    await until(lambda: queue.slots() == 1)
    pids = [pid_of(traces / name) for name in ("a", "b", "c")]
    assert pids[0] == pids[1] != pids[2]
    assert not is_alive(pids[0])
    assert idle_slots == [1, 1, 1]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("words", ["to the log", r"\x1b[31mred", "not json", "[]", '{"done": 1}'])
async def test_other_output_of_a_worker_is_logged(
    start_pool: StartPool, log: list[str], words: str
) -> None:
    """Each line that is not an answer is logged, made printable and cut to a length."""
    queue = start_pool()
    await queue.offer("noise")
    await until(lambda: any(line.endswith(f": {words}") for line in log))
    await until(lambda: queue.slots() == 2)
    assert max(len(line) for line in log) < worker_protocol.LINE_LIMIT + 100


@pytest_twisted.ensureDeferred
async def test_measurements_of_workers(start_pool: StartPool) -> None:
    """What a worker measures is passed on under a name of its own, and so is its end."""
    reports: list[object] = []
    queue = start_pool(size=1, jobs_per_worker=1)
    queue.on_metrics = lambda name, entries: reports.append((name, entries))
    queue.on_metrics_end = reports.append
    for key in ("measure a", "measure b"):
        await until(lambda: queue.slots() == 1)
        await queue.offer(key)
        await until(lambda: queue.slots() == 1)
    entries = [["name", [], [1]]]
    await until(lambda: len(reports) == 4)
    assert reports == [("worker 1", entries), "worker 1", ("worker 2", entries), "worker 2"]


@pytest_twisted.ensureDeferred
async def test_a_line_of_a_workers_log_keeps_its_level(
    start_pool: StartPool, log: list[str]
) -> None:
    """A worker's warning is a warning in the gateway's log, so that log levels filter it."""
    levels = []

    @implementer(ILogObserver)
    def observe(event: dict[str, Any]) -> None:
        levels.append((event["log_level"], event.get("line")))

    globalLogPublisher.addObserver(observe)
    queue = start_pool()
    await queue.offer("noise")
    await until(lambda: any(line.endswith(": a.b: trouble") for line in log))
    globalLogPublisher.removeObserver(observe)
    assert (LogLevel.warn, "a.b: trouble") in levels
    await until(lambda: queue.slots() == 2)


@pytest_twisted.ensureDeferred
async def test_a_flood_of_output_is_cut(start_pool: StartPool, log: list[str]) -> None:
    """For each job at most `LINES_LOGGED` lines of its worker are logged."""
    queue = start_pool()
    for _ in range(2):
        log.clear()
        await queue.offer("flood")
        await until(lambda: queue.slots() == 2)
        await until(lambda: any("says too much" in line for line in log))
        assert sum(line.endswith("again") for line in log) == process.LINES_LOGGED


@pytest_twisted.ensureDeferred
async def test_a_cancelled_job_is_not_a_crash(
    start_pool: StartPool, traces: Path, log: list[str]
) -> None:
    """When `cancel` returns, the slot is free, the process has ended, and no start is delayed."""
    queue = start_pool(size=1)
    await queue.offer("sleep")
    await until((traces / "sleep").exists)
    await queue.cancel("sleep")
    assert queue.slots() == 1
    assert not is_alive(pid_of(traces / "sleep"))
    assert not any("next one" in line for line in log)


@pytest_twisted.ensureDeferred
async def test_a_worker_that_ignores_sigterm_is_killed(
    start_pool: StartPool, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second `cancel` does not prolong the time until SIGKILL."""
    monkeypatch.setattr(process, "KILL_SECONDS", 0.3)
    queue = start_pool("deaf")
    await queue.offer("sleep")
    await until((traces / "sleep").exists)
    cancels = [Deferred.fromCoroutine(queue.cancel("sleep")) for _ in range(2)]
    for cancel in cancels:
        await cancel
    assert not is_alive(pid_of(traces / "sleep"))


@pytest_twisted.ensureDeferred
async def test_an_idle_worker_that_does_not_leave_is_stopped(
    start_pool: StartPool, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that stays alive after the end of its input gets SIGTERM."""
    monkeypatch.setattr(process, "LEAVE_SECONDS", 0.2)
    queue = start_pool("stubborn", jobs_per_worker=1)
    await queue.offer("a")
    await until(lambda: queue._workers == [] and (traces / "a").exists())
    assert not is_alive(pid_of(traces / "a"))
    await queue.offer("b")
    await queue.stopService()
    assert not is_alive(pid_of(traces / "b"))


@pytest_twisted.ensureDeferred
async def test_the_children_of_a_killed_worker_die(
    start_pool: StartPool, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process group of a worker is killed when the worker ends, even by SIGKILL."""
    monkeypatch.setattr(process, "KILL_SECONDS", 0.2)
    queue = start_pool("group")
    await queue.offer("child")
    await until(lambda: (traces / "child").exists() and (traces / "child").stat().st_size)
    child = pid_of(traces / "child")
    assert is_alive(child)
    await queue.cancel("child")
    await until(lambda: not is_alive(child))


@pytest_twisted.ensureDeferred
async def test_stop_ends_idle_and_busy_workers(
    start_pool: StartPool, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle workers leave by themselves; the job that does not end is stopped and reported."""
    monkeypatch.setattr(pool, "STOP_SECONDS", 0.5)
    queue = start_pool()
    await queue.offer("a")
    await until(lambda: queue.slots() == 2)
    await queue.offer("b")
    await queue.offer("sleep")
    await until(lambda: (traces / "sleep").exists() and (traces / "b").exists())
    ends: list[JobEnd] = []
    queue.on_end = ends.append
    started_at = time.monotonic()
    await queue.stopService()
    assert time.monotonic() - started_at < patient(5)
    assert [(end.key, end.died) for end in ends] == [("sleep", False)]
    assert (traces / f"left-{pid_of(traces / 'b')}").exists()
    assert not is_alive(pid_of(traces / "sleep"))


@pytest_twisted.ensureDeferred
async def test_stop_while_a_worker_starts(start_pool: StartPool, traces: Path) -> None:
    """A worker that was started a moment ago does its job and leaves."""
    queue = start_pool()
    await queue.offer("a")
    await queue.stopService()
    assert (traces / "a").exists()
    assert queue._workers == []


@pytest_twisted.ensureDeferred
async def test_a_pool_has_no_slots_before_its_start() -> None:
    """An offer raises `Unavailable` until the service runs."""
    queue = WorkerPool(cast("Any", Clock()), ["x"], {}, PoolOptions(2, 50))
    assert queue.slots() == 0
    with pytest.raises(Unavailable):
        await queue.offer("a")


@pytest_twisted.ensureDeferred
async def test_workers_end_with_a_killed_gateway(traces: Path) -> None:
    """When the gateway is killed, its workers read the end of their input and leave."""
    code = f"""
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from shiftergw.work.pool import PoolOptions, WorkerPool
from shiftergw.work.process import WorkerProcess
pool = WorkerPool(reactor, [{sys.executable!r}, {str(WORKERS)!r}, "good", {str(traces)!r}],
                  {{}}, PoolOptions(2, 50))
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
        await until(lambda name=name: not is_alive(pid_of(traces / name)))  # type: ignore[misc]


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_a_stream_is_split_into_lines(size: int) -> None:
    """The size of the pieces does not change the lines; a very long line is split."""
    lines: list[bytes] = []
    splitter = LineSplitter(lines.append)
    stream = b"one\n\nthree\n"
    for start in range(0, len(stream), size):
        splitter.feed(stream[start : start + size])
    assert lines == [b"one", b"", b"three"]
    splitter.feed(b"x" * 5000)
    splitter.feed(b"y\n")
    assert lines[3:] == [b"x" * 5000, b"y"]


@pytest_twisted.ensureDeferred
async def test_debug_messages(queue: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All workers are told to log debug messages, also those that start later."""
    orders: list[tuple[WorkerProcess, bool]] = []
    monkeypatch.setattr(
        WorkerProcess, "set_debug", lambda worker, is_on: orders.append((worker, is_on))
    )
    await queue.offer("sleep-1")
    queue.set_debug(True)
    await queue.offer("sleep-2")
    queue.set_debug(False)
    first, second = queue._workers
    assert orders == [(first, True), (second, True), (first, False), (second, False)]
