"""Workers of the local pool that die or cannot start: reports, and how work continues."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from shiftergw.errors import Unavailable
from shiftergw.ports import JobEnd, runner_name
from shiftergw.work import pool, process
from shiftergw.work.pool import PoolOptions, WorkerPool
from tests.patience import LEAST, patient
from tests.work.pools import WORKERS, StartPool, pid_of
from tests.work.waiting import is_alive, until


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("key", "how"),
    [
        ("crash", "was killed by signal 9, perhaps because the machine ran out of memory"),
        ("abort", "was killed by signal 6"),
        ("fail", "ended with exit code 3"),
        ("leave", "ended by itself with exit code 0"),
    ],
)
async def test_the_death_of_a_worker_ends_its_job(
    start_pool: StartPool, key: str, how: str
) -> None:
    """The end is reported at once, with the worker's name and the cause; the slot is free again."""
    queue = start_pool(size=1)
    ends: list[JobEnd] = []
    queue.on_end = ends.append
    await queue.offer(key)
    name = runner_name(socket.gethostname(), queue._workers[0].pid)
    await until(lambda: ends)
    assert ends == [JobEnd(key, name, how, died=True)]
    assert queue.slots() == 1
    assert queue.trouble() is None
    await queue.offer("a")
    await until(lambda: len(ends) == 2)
    assert (ends[1].key, ends[1].loss, ends[1].died) == ("a", "", False)


@pytest_twisted.ensureDeferred
async def test_an_image_that_kills_workers_delays_no_other(
    start_pool: StartPool, log: list[str]
) -> None:
    """`JOB_DEATHS` deaths in a row, which one image may cause, delay no start; one more does."""
    queue = start_pool(size=1)
    for n in range(pool.JOB_DEATHS):
        await until(lambda: queue.slots() == 1)
        await queue.offer(f"crash-{n}")
        await until(lambda: queue._workers == [])
    assert queue.slots() == 1
    assert not any("next one starts" in line for line in log)
    await queue.offer("crash-more")
    await until(lambda: any("next one starts in 1 s" in line for line in log))
    assert queue.slots() == 0
    await until(lambda: queue.slots() == 1)
    await queue.offer("a")
    await until(lambda: queue._job_deaths == 0)


@pytest_twisted.ensureDeferred
async def test_an_idle_worker_that_is_killed(start_pool: StartPool, traces: Path) -> None:
    """The death of an idle worker ends no job, and the next offer is accepted."""
    queue = start_pool(size=1)
    ends: list[JobEnd] = []
    queue.on_end = ends.append
    await queue.offer("a")
    await until(lambda: ends)
    os.kill(pid_of(traces / "a"), signal.SIGKILL)
    await until(lambda: queue._workers == [])
    assert (len(ends), queue.slots()) == (1, 1)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("young", [True, False])
async def test_a_killed_warm_worker_is_replaced(
    start_pool: StartPool, monkeypatch: pytest.MonkeyPatch, young: bool
) -> None:
    """A new one starts at once; only the death of a worker that has just started is a trouble."""
    if not young:
        monkeypatch.setattr(pool, "YOUNG_SECONDS", 0.0)
    queue = start_pool(warm=1)
    (worker,) = queue._workers
    await until(lambda: worker.ready_at is not None)
    os.kill(worker.pid, signal.SIGKILL)
    await until(lambda: worker not in queue._workers)
    assert (queue.trouble() is not None) is young
    assert len(queue._workers) == int(not young)
    await until(lambda: queue.trouble() is None)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("stillborn", "A worker ended with exit code 1: ModuleNotFoundError: No module named 'x'."),
        ("fleeting", "A worker ended with exit code 1."),
    ],
)
async def test_no_worker_can_start(
    start_pool: StartPool, kind: str, why: str, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool has no slots, reports the reason, and tries again after growing waits.

    The job of a worker that never got ready ends without a death. The trouble ends once a start
    succeeds; then all slots are free.
    """
    waits: list[float] = []
    # On a busy machine a worker that exits at once takes long to end.
    monkeypatch.setattr(pool, "SETTLED_SECONDS", patient(pool.SETTLED_SECONDS / LEAST))
    queue = start_pool(kind, size=3, warm=int(kind == "fleeting"))
    monkeypatch.setattr(queue, "_reactor", _FastReactor(waits))
    ends: list[JobEnd] = []
    queue.on_end = ends.append
    idle_slots: list[int] = []
    queue.on_idle = lambda: idle_slots.append(queue.slots())
    if kind == "stillborn":
        await queue.offer("a")
    await until(queue.trouble)
    trouble = queue.trouble()
    assert trouble is not None
    assert "No worker can start" in trouble.what
    assert trouble.detail == why
    assert trouble.grave
    assert (queue.slots(), queue.machines()[0].slots) == (0, 0)
    assert any(why[len("A worker ") : -1] in line for line in log)
    with pytest.raises(Unavailable):
        await queue.offer("b")
    await until(lambda: len(waits) >= 8)
    assert waits[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert [(end.key, end.died) for end in ends] == [("a", False)] * (kind == "stillborn")
    assert queue.trouble() is not None
    queue._argv = [*queue._argv[:2], "good", queue._argv[3]]
    idle_slots.clear()
    await until(lambda: queue.trouble() is None)
    assert (queue.slots(), idle_slots[-1], queue.machines()[0].slots) == (3, 3, 3)
    assert any("can start again" in line for line in log)


@pytest_twisted.ensureDeferred
async def test_a_failed_start_beside_a_live_worker(start_pool: StartPool, traces: Path) -> None:
    """A failed start is no trouble of the queue as long as another worker lives."""
    queue = start_pool(size=2)
    await queue.offer("sleep-1")
    await until((traces / "sleep-1").exists)
    queue._argv = [*queue._argv[:2], "stillborn", queue._argv[3]]
    await queue.offer("a")
    await until(lambda: len(queue._workers) == 1)
    assert queue.trouble() is None
    assert queue.slots() == 0
    os.kill(pid_of(traces / "sleep-1"), signal.SIGKILL)
    await until(queue.trouble)


class _FastReactor:
    """The reactor, except that backoffs between two starts end at once and are recorded."""

    def __init__(self, waits: list[float]) -> None:
        self._waits = waits

    def callLater(self, seconds: float, act: Callable[..., Any], *arguments: Any) -> Any:
        real: Any = reactor
        if act.__name__ == "_end_backoff":
            self._waits.append(seconds)
            return real.callLater(0, act, *arguments)
        return real.callLater(seconds, act, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


@pytest_twisted.ensureDeferred
async def test_a_missing_worker_program(traces: Path) -> None:
    """An offer raises `Unavailable`; once the program exists, the trouble ends by itself."""
    program = traces / "program"
    queue = WorkerPool(
        reactor, [str(program), str(WORKERS), "good", str(traces)], {}, PoolOptions(2, 50)
    )
    queue.startService()
    with pytest.raises(Unavailable):
        await queue.offer("a")
    assert queue.slots() == 0
    assert "cannot be started: No such file or directory" in str(queue.trouble())
    program.symlink_to(sys.executable)
    await until(lambda: queue.trouble() is None)
    await queue.offer("a")
    await until((traces / "a").exists)
    await queue.stopService()


@pytest_twisted.ensureDeferred
async def test_a_worker_that_does_not_get_ready_is_killed(
    start_pool: StartPool, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    """The log reports it, and each further start has twice the time, up to a limit."""
    monkeypatch.setattr(pool, "START_SECONDS", 0.1)
    monkeypatch.setattr(pool, "LONGEST_START", 0.4)
    waits: list[float] = []
    queue = start_pool("mute")
    monkeypatch.setattr(queue, "_reactor", _FastReactor(waits))
    await queue.offer("a")
    await until(lambda: len(waits) == 4)
    for seconds in ("0.1", "0.2", "0.4"):
        assert any(f"did not get ready within {seconds} s" in line for line in log)
    assert "within 0.4 s" in str(queue.trouble())


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_a_slow_start(
    start_pool: StartPool, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue reports it meanwhile, and the limit grows until the worker gets ready in time."""
    monkeypatch.setattr(pool, "START_SECONDS", 0.5)
    monkeypatch.setattr(pool, "SLOW_SECONDS", 0.1)
    queue = start_pool("slow")
    await queue.offer("a")
    await until(queue.trouble)
    trouble = queue.trouble()
    assert trouble is not None
    assert "take long to start" in trouble.what
    assert not trouble.grave
    await until(lambda: "did not get ready" in str(queue.trouble()))
    await until(lambda: queue.trouble() is None, 30)
    await queue.offer("a")
    await until((traces / "a").exists)


@pytest_twisted.ensureDeferred
async def test_a_worker_that_hangs_in_the_kernel(
    start_pool: StartPool, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cancel` does not wait for a process that survives SIGKILL; its job counts as ended."""
    monkeypatch.setattr(process, "KILL_SECONDS", 0.1)
    monkeypatch.setattr(process, "LEAVE_AFTER", 0.1)
    queue = start_pool("deaf")
    ends: list[JobEnd] = []
    queue.on_end = ends.append
    await queue.offer("sleep")
    await until((traces / "sleep").exists)
    (worker,) = queue._workers
    monkeypatch.setattr(worker, "_signal", lambda _: None)  # no signal reaches the process
    await queue.cancel("sleep")
    assert [(end.loss, end.died) for end in ends] == [("hangs in the kernel", False)]
    os.kill(pid_of(traces / "sleep"), signal.SIGKILL)
    await until(lambda: not is_alive(pid_of(traces / "sleep")))


@pytest_twisted.ensureDeferred
async def test_a_worker_that_stops_slowly(
    start_pool: StartPool, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue does not report it as a slow start."""
    monkeypatch.setattr(pool, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(process, "KILL_SECONDS", 0.3)
    queue = start_pool("deaf")
    await queue.offer("sleep")
    await until((traces / "sleep").exists)
    stopping = Deferred.fromCoroutine(queue.cancel("sleep"))
    assert not stopping.called
    assert queue.trouble() is None
    await stopping


@pytest_twisted.ensureDeferred
async def test_a_child_that_holds_the_output_open(start_pool: StartPool, traces: Path) -> None:
    """The death of a worker is reported although a child of its keeps its output open."""
    queue = start_pool("good")
    ends: list[JobEnd] = []
    queue.on_end = ends.append
    await queue.offer("heir")
    await until(lambda: ends)
    os.kill(pid_of(traces / "child"), signal.SIGKILL)
