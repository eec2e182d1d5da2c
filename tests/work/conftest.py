"""What the tests of queues share: worker machines, and assertions that show their values."""

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
from shiftergw.work.pool import WorkerPool
from tests.rabbitmq import RabbitMQ
from tests.work.pools import WORKERS, Make
from tests.work.waiting import alive

pytest.register_assert_rewrite("tests.work.contract")

from tests.work.machines import Start, WorkerMachine  # noqa: E402 - it imports what is rewritten


@pytest.fixture
def system() -> str:
    """Return a system of this test alone: its queue is empty."""
    return f"system-{uuid4().hex[:8]}"


@pytest.fixture
def start(broker: RabbitMQ, system: str, tmp_path: Path) -> Iterator[Start]:
    """Return what starts machines of one slot; traces of their jobs lie in `tmp_path/NAME`."""
    machines: list[WorkerMachine] = []

    def start(
        name: str,
        kind: str = "group-polite",
        *options: str,
        called: str = "",
        systems: str = "",
        slots: int = 1,
    ) -> WorkerMachine:
        traces = tmp_path / name
        traces.mkdir()
        env = {"BROKER": broker.url, "TRACES": str(traces), "KIND": kind, "SYSTEMS": system}
        log = tmp_path / f"{name}.log"
        machine = WorkerMachine(
            f"{called or name}-{system}", systems or system, slots, log, env, options=options
        )
        machines.append(machine)
        return machine

    yield start
    for machine in machines:
        machine.kill()
    for trace in tmp_path.glob("*/sleep*"):
        pid = int(trace.read_text())
        if alive(pid):
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
    """Return what sends messages, without a look at who is free."""
    sender = MessageSender(make_app(broker.url))
    yield sender
    sender.close()


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """Return where jobs leave their traces."""
    return tmp_path


@pytest.fixture
def make(traces: Path) -> Iterator[Make]:
    """Return what makes running pools."""
    pools: list[WorkerPool] = []

    def make(
        kind: str = "good", size: int = 2, jobs_per_worker: int = 50, warm: int = 0
    ) -> WorkerPool:
        argv = [sys.executable, str(WORKERS), kind, str(traces)]
        env = {"PATH": os.environ["PATH"]}
        made = WorkerPool(reactor, argv, env, size, jobs_per_worker, warm)
        made.startService()
        pools.append(made)
        return made

    yield make
    for made in pools:
        if made.running:
            pytest_twisted.blockon(made.stopService())
        assert made._workers == []


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Return the lines that are logged."""
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: dict[str, Any]) -> None:
        lines.append(str(event.get("log_format", "")).format(**event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)
