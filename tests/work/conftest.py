"""Fixtures for the tests of job queues: pools, worker machines, and their connections."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.logger import ILogObserver, globalLogPublisher
from zope.interface import implementer

from shiftergw.work.celery.app import make_app
from shiftergw.work.celery.broker_connections import MessageSender
from shiftergw.work.celery.queue import CeleryQueue
from shiftergw.work.pool import PoolOptions, WorkerPool
from tests.rabbitmq import RabbitMQ
from tests.work.machines import StartMachine, WorkerMachine
from tests.work.pools import WORKERS, StartPool
from tests.work.waiting import is_alive

# Its assertions show their values, as those of test modules do.
pytest.register_assert_rewrite("tests.work.contract")


@pytest.fixture
def system() -> str:
    """Return a system that only this test uses, so that its queue on the broker is empty."""
    return f"system-{uuid4().hex[:8]}"


@pytest.fixture
def start_machine(broker: RabbitMQ, system: str, tmp_path: Path) -> Iterator[StartMachine]:
    """Return a function that starts machines; traces of their jobs lie in `tmp_path/NAME`."""
    machines: list[WorkerMachine] = []

    def start_machine(
        name: str,
        kind: str = "group-polite",
        *options: str,
        hostname: str = "",
        systems: str = "",
        slots: int = 1,
    ) -> WorkerMachine:
        traces = tmp_path / name
        traces.mkdir()
        env = {"BROKER": broker.url, "TRACES": str(traces), "KIND": kind, "SYSTEMS": system}
        log = tmp_path / f"{name}.log"
        machine = WorkerMachine(
            f"{hostname or name}-{system}", systems or system, slots, log, env, options=options
        )
        machines.append(machine)
        return machine

    yield start_machine
    for machine in machines:
        machine.kill()
    for trace in tmp_path.glob("*/sleep*"):
        pid = int(trace.read_text())
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def queue(broker: RabbitMQ) -> Iterator[CeleryQueue]:
    """Return a running queue."""
    queue = CeleryQueue(reactor, broker.url)
    queue.startService()
    yield queue
    if queue.running:
        pytest_twisted.blockon(queue.stopService())


@pytest.fixture
def sender(broker: RabbitMQ) -> Iterator[MessageSender]:
    """Return a sender of messages, which does not look for free slots."""
    sender = MessageSender(make_app(broker.url))
    yield sender
    sender.close()


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """Return the directory in which jobs leave their traces."""
    return tmp_path


@pytest.fixture
def start_pool(traces: Path) -> Iterator[StartPool]:
    """Return a function that starts pools; they are stopped after the test."""
    pools: list[WorkerPool] = []

    def start_pool(
        kind: str = "good", size: int = 2, jobs_per_worker: int = 50, warm: int = 0
    ) -> WorkerPool:
        argv = [sys.executable, str(WORKERS), kind, str(traces)]
        env = {"PATH": os.environ["PATH"]}
        pool = WorkerPool(reactor, argv, env, PoolOptions(size, jobs_per_worker, warm))
        pool.startService()
        pools.append(pool)
        return pool

    yield start_pool
    for pool in pools:
        if pool.running:
            pytest_twisted.blockon(pool.stopService())
        assert pool._workers == []


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Return a list to which each line of the log is added."""
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: dict[str, Any]) -> None:
        lines.append(str(event.get("log_format", "")).format(**event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)
