"""Jobs that die on worker machines, and machines on which no worker can start."""

from __future__ import annotations

import pickle
import signal
import socket
import sys
from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.ports import JobEnd, runner_name
from shiftergw.work import subprocess_job
from shiftergw.work.celery.queue import CeleryQueue
from shiftergw.work.subprocess_job import JobLimits, JobLost, StartLimit, SubprocessJob
from tests.work.keys import key_of
from tests.work.machines import StartMachine
from tests.work.pools import WORKERS, pid_of
from tests.work.waiting import until

START_SECONDS = 40
KEY = key_of("x")


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("job", "how"),
    [
        ("crash", "was killed by signal 9, perhaps because the machine ran out of memory"),
        ("fail", "ended with exit code 3"),
        ("leave", "ended with exit code 0"),
    ],
)
async def test_a_job_death_is_reported(
    system: str, start_machine: StartMachine, queue: CeleryQueue, tmp_path: Path, job: str, how: str
) -> None:
    """The gateway gets the end once and at once, and the machine takes the next job."""
    start_machine("one")
    ends: list[JobEnd] = []
    queue.on_end = ends.append
    await until(lambda: queue.slots(system) == 1, START_SECONDS)
    await queue.offer(key_of(job), system)
    await until(lambda: ends)
    name = runner_name(socket.gethostname(), pid_of(tmp_path / "one" / job))
    assert ends == [JobEnd(key_of(job), name, how, died=True)]
    await until(lambda: queue.slots(system) == 1)
    assert queue.trouble(system) is None
    await queue.offer(key_of("short-1"), system)
    await until(lambda: len(ends) == 2)
    assert ends[1] == JobEnd(key_of("short-1"))


@pytest_twisted.ensureDeferred
async def test_no_worker_can_start_on_a_machine(
    system: str, start_machine: StartMachine, queue: CeleryQueue, tmp_path: Path
) -> None:
    """The machine takes no job for a while and reports the reason; a successful start ends this."""
    machine = start_machine("one", slots=2)
    (tmp_path / "one" / "sick").touch()
    ends: list[JobEnd] = []
    queue.on_end = ends.append
    await until(lambda: queue.slots(system) == 2, START_SECONDS)
    await queue.offer(key_of("short-1"), system)
    await until(lambda: ends)
    assert (ends[0].key, ends[0].loss, ends[0].died) == (
        key_of("short-1"),
        "ended with exit code 1",
        False,
    )
    trouble = queue.trouble(system)
    assert trouble is not None
    assert "No worker can start on the worker machines" in trouble.what
    assert "exit code 1" in trouble.detail
    assert (queue.slots(system), queue.machines()[0].slots) == (0, 0)
    assert "A worker ended with exit code 1; the next one starts in 1 s" in machine.log.read_text()
    await until(lambda: queue.slots(system) == 1)
    await queue.offer(key_of("short-2"), system)
    await until(lambda: len(ends) == 2)
    (tmp_path / "one" / "sick").unlink()
    await until(lambda: queue.slots(system) == 1)
    await queue.offer(key_of("short-3"), system)
    await until(lambda: len(ends) == 3)
    assert ends[2] == JobEnd(key_of("short-3"))
    await until(lambda: queue.slots(system) == 2)
    assert queue.trouble(system) is None


@pytest_twisted.ensureDeferred
async def test_no_machine_serves_a_system(
    system: str, start_machine: StartMachine, queue: CeleryQueue
) -> None:
    """The queue is in trouble for this system, and for no other."""
    machine = start_machine("one")
    await until(lambda: queue.slots(system) == 1, START_SECONDS)
    await until(lambda: queue.trouble("elsewhere"))
    assert "No worker machine serves elsewhere" in str(queue.trouble("elsewhere"))
    assert queue.trouble(system) is None
    assert queue.trouble() is None
    machine.send_signal(signal.SIGTERM)
    await until(lambda: "No worker machine serves" in str(queue.trouble(system)), 20)


def make_job(tmp_path: Path, kind: str, start_limit: StartLimit | None = None) -> SubprocessJob:
    """Return a job that runs a worker of a kind."""
    return SubprocessJob(
        [sys.executable, str(WORKERS), kind, str(tmp_path)], JobLimits(), start_limit
    )


def test_a_start_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start has twice the time, up to a limit."""
    monkeypatch.setattr(subprocess_job, "START_SECONDS", 0.1)
    monkeypatch.setattr(subprocess_job, "LONGEST_START", 0.3)
    start_limit = StartLimit()
    for seconds in ("0.1", "0.2", "0.3", "0.3"):
        with pytest.raises(JobLost) as caught:
            make_job(tmp_path, "mute", start_limit).run(KEY)
        end = caught.value.end
        assert (end.loss, end.died) == (f"did not get ready within {seconds} s", False)


def test_a_missing_worker_program(tmp_path: Path) -> None:
    """The loss is a failed start, not a death at the job."""
    with pytest.raises(JobLost, match="cannot be started: No such file") as caught:
        SubprocessJob([str(tmp_path / "none")], JobLimits()).run(KEY)
    assert not caught.value.end.died


def test_a_loss_between_processes(tmp_path: Path) -> None:
    """A pickled `JobLost`, as Celery sends it to its main process, keeps its end and its text."""
    with pytest.raises(JobLost) as caught:
        make_job(tmp_path, "fleeting").run(KEY)
    loss = pickle.loads(pickle.dumps(caught.value))
    assert loss.end == caught.value.end
    assert (loss.end.loss, loss.end.died) == ("ended with exit code 1", True)
    assert str(loss) == f"worker {loss.end.runner} of record {KEY} ended with exit code 1"
