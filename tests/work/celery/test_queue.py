"""The queue of worker machines keeps the contract of job queues, on a real broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from shiftergw.work.celery.queue import CeleryQueue
from tests.rabbitmq import RabbitMQ
from tests.work.contract import SYSTEM, QueueContract
from tests.work.machines import WorkerMachine
from tests.work.waiting import until

START_SECONDS = 40


@pytest.fixture(scope="module")
def base_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory whose entry `traces` links to the traces of the current test."""
    return tmp_path_factory.mktemp("celery")


@pytest.fixture(scope="module")
def machine(broker: RabbitMQ, base_directory: Path) -> Iterator[WorkerMachine]:
    """Return a worker machine with two slots."""
    env = {"BROKER": broker.url, "TRACES": str(base_directory / "traces")}
    machine = WorkerMachine("first", SYSTEM, 2, base_directory / "log", env)
    yield machine
    machine.kill()


@pytest.fixture
def traces(base_directory: Path, tmp_path: Path) -> Path:
    """Return the directory in which jobs leave their traces."""
    link = base_directory / "traces"
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path)
    return tmp_path


def wait(condition: object, seconds: float = START_SECONDS) -> None:
    """Return once a condition holds; for fixtures."""
    pytest_twisted.blockon(Deferred.fromCoroutine(until(condition, seconds)))  # type: ignore[arg-type]


@pytest.fixture
def queue(broker: RabbitMQ, machine: WorkerMachine, traces: Path) -> Iterator[CeleryQueue]:
    """Return a running queue with two slots."""
    queue = CeleryQueue(reactor, broker.url)
    queue.startService()
    wait(lambda: queue.slots(SYSTEM) == 2)
    yield queue
    if not queue.running:
        return
    for status in queue.machines():
        for key in status.jobs:
            pytest_twisted.blockon(Deferred.fromCoroutine(queue.cancel(key)))
    wait(lambda: not any(status.jobs for status in queue.machines()))
    pytest_twisted.blockon(queue.stopService())


class TestCelery(QueueContract):
    """Run the contract on a worker machine."""
