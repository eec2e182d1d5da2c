"""Workers of the local pool that die, or cannot start: what is told at once, and what goes on."""

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
from shiftergw.work.pool import WorkerPool
from tests.work.pools import WORKERS, Make, pid_of
from tests.work.waiting import alive, until


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
async def test_a_worker_that_dies(make: Make, key: str, how: str) -> None:
    """The end of its job is reported at once, with the worker's name; its slot is free again."""
    queue = make(size=1)
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
async def test_one_image_that_kills_workers_slows_nobody_down(make: Make, log: list[str]) -> None:
    """As many deaths as one image may cause cause no wait; more in a row do."""
    queue = make(size=1)
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
async def test_a_worker_that_is_killed_without_a_job(make: Make, traces: Path) -> None:
    """No job ends, and the next offer is taken."""
    queue = make(size=1)
    ends: list[JobEnd] = []
    queue.on_end = ends.append
    await queue.offer("a")
    await until(lambda: ends)
    os.kill(pid_of(traces / "a"), signal.SIGKILL)
    await until(lambda: queue._workers == [])
    assert (len(ends), queue.slots()) == (1, 1)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("young", [True, False])
async def test_a_warm_worker_that_is_killed(
    make: Make, monkeypatch: pytest.MonkeyPatch, young: bool
) -> None:
    """It is replaced at once, and no trouble, unless it had only just started."""
    if not young:
        monkeypatch.setattr(pool, "YOUNG_SECONDS", 0.0)
    queue = make(warm=1)
    (warm,) = queue._workers
    await until(lambda: warm.ready)
    os.kill(warm.pid, signal.SIGKILL)
    await until(lambda: warm not in queue._workers)
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
async def test_workers_that_cannot_live(
    make: Make, kind: str, why: str, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are no slots, a reason is told, the job was lost without a death; starts go on rarely.

    As soon as one succeeds all is well again.
    """
    waits: list[float] = []
    queue = make(kind, size=3, warm=int(kind == "fleeting"))
    monkeypatch.setattr(queue, "_reactor", _Impatient(waits))  # waits are noted, and over at once
    ends: list[JobEnd] = []
    queue.on_end = ends.append
    woken: list[int] = []
    queue.on_idle = lambda: woken.append(queue.slots())
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
    woken.clear()
    await until(lambda: queue.trouble() is None)
    assert (queue.slots(), woken[-1], queue.machines()[0].slots) == (3, 3, 3)
    assert any("can start again" in line for line in log)


@pytest_twisted.ensureDeferred
async def test_one_worker_that_cannot_start_is_no_trouble(make: Make, traces: Path) -> None:
    """As long as another one works."""
    queue = make(size=2)
    await queue.offer("sleep-1")
    await until((traces / "sleep-1").exists)
    queue._argv = [*queue._argv[:2], "stillborn", queue._argv[3]]
    await queue.offer("a")
    await until(lambda: len(queue._workers) == 1)
    assert queue.trouble() is None
    assert queue.slots() == 0
    os.kill(pid_of(traces / "sleep-1"), signal.SIGKILL)
    await until(queue.trouble)


class _Impatient:
    """The reactor, but with the waits between two starts cut short and noted."""

    def __init__(self, waits: list[float]) -> None:
        self._waits = waits

    def callLater(self, seconds: float, act: Callable[..., Any], *arguments: Any) -> Any:
        real: Any = reactor
        if act.__name__ == "_go_on":
            self._waits.append(seconds)
            return real.callLater(0, act, *arguments)
        return real.callLater(seconds, act, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


@pytest_twisted.ensureDeferred
async def test_a_program_that_is_missing(traces: Path) -> None:
    """A worker that cannot be started at all is an `Unavailable`; once it is there all is well."""
    program = traces / "program"
    queue = WorkerPool(reactor, [str(program), str(WORKERS), "good", str(traces)], {}, 2, 50)
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
async def test_a_worker_that_never_gets_ready(
    make: Make, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    """It is killed, which is told; each one after it has twice as long, up to a limit."""
    monkeypatch.setattr(pool, "START_SECONDS", 0.1)
    monkeypatch.setattr(pool, "LONGEST_START", 0.4)
    waits: list[float] = []
    queue = make("mute")
    monkeypatch.setattr(queue, "_reactor", _Impatient(waits))
    await queue.offer("a")
    await until(lambda: len(waits) == 4)
    for seconds in ("0.1", "0.2", "0.4"):
        assert any(f"did not get ready within {seconds} s" in line for line in log)
    assert "within 0.4 s" in str(queue.trouble())


@pytest_twisted.ensureDeferred
async def test_a_start_that_is_slow(
    make: Make, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A word is had while it lasts, and the limit grows until the worker gets ready within it."""
    monkeypatch.setattr(pool, "START_SECONDS", 0.5)
    monkeypatch.setattr(pool, "SLOW_SECONDS", 0.1)
    queue = make("slow")
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
async def test_a_worker_that_the_kernel_holds(
    make: Make, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop does not wait for what not even SIGKILL ends; its job has ended for the queue."""
    monkeypatch.setattr(process, "KILL_SECONDS", 0.1)
    monkeypatch.setattr(process, "GONE_SECONDS", 0.1)
    queue = make("deaf")
    ends: list[JobEnd] = []
    queue.on_end = ends.append
    await queue.offer("sleep")
    await until((traces / "sleep").exists)
    (worker,) = queue._workers
    monkeypatch.setattr(worker, "_signal", lambda _: None)  # nothing reaches it
    await queue.cancel("sleep")
    assert [(end.loss, end.died) for end in ends] == [("hangs in the kernel", False)]
    os.kill(pid_of(traces / "sleep"), signal.SIGKILL)
    await until(lambda: not alive(pid_of(traces / "sleep")))


@pytest_twisted.ensureDeferred
async def test_a_worker_that_is_slow_to_stop(
    make: Make, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken for one that is slow to start."""
    monkeypatch.setattr(pool, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(process, "KILL_SECONDS", 0.3)
    queue = make("deaf")
    await queue.offer("sleep")
    await until((traces / "sleep").exists)
    stopping = Deferred.fromCoroutine(queue.cancel("sleep"))
    assert not stopping.called
    assert queue.trouble() is None
    await stopping


@pytest_twisted.ensureDeferred
async def test_a_child_that_holds_the_pipes(make: Make, traces: Path) -> None:
    """A dead worker is noticed although a child of its keeps its output open."""
    queue = make("good")
    ends: list[JobEnd] = []
    queue.on_end = ends.append
    await queue.offer("heir")
    await until(lambda: ends)
    os.kill(pid_of(traces / "child"), signal.SIGKILL)
