"""A broker that is down, frozen or restarted blocks no request and ends no job."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_twisted
from kombu.connection import Connection
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.errors import Unavailable
from shiftergw.work.celery import broker_connections
from shiftergw.work.celery import queue as celery_queue
from shiftergw.work.celery.app import make_app
from shiftergw.work.celery.broker_connections import MessageSender
from shiftergw.work.celery.queue import CeleryQueue
from tests.patience import patient
from tests.rabbitmq import RabbitMQ
from tests.wiretap import Wiretap
from tests.work.keys import key_of
from tests.work.machines import WorkerMachine
from tests.work.waiting import until

START_SECONDS = 40


@pytest.fixture
def machine(broker: RabbitMQ, system: str, tmp_path: Path) -> Iterator[WorkerMachine]:
    """Return a worker machine with one slot."""
    env = {"BROKER": broker.url, "TRACES": str(tmp_path)}
    machine = WorkerMachine("away", system, 1, tmp_path / "machine.log", env)
    yield machine
    machine.kill()


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_a_broker_that_restarts(
    broker: RabbitMQ, queue: CeleryQueue, machine: WorkerMachine, system: str, tmp_path: Path
) -> None:
    """During the restart no slot is free, and jobs continue; later a busy machine has no free slot.

    It takes no message, although its connection is new.
    """
    await until(lambda: queue.slots(system) == 1, START_SECONDS)
    await queue.offer(key_of("sleep-1"), system)
    await until((tmp_path / "sleep-1").exists)
    with broker.outage():
        await until(queue.trouble)
        assert queue.slots(system) == 0
        with pytest.raises(Unavailable):
            await queue.offer(key_of("short-2"), system)
        await queue.cancel(key_of("sleep-1"))
    await until(lambda: queue.trouble() is None, START_SECONDS)
    restarted_at = time.time()
    await until(
        lambda: any(status.heard > restarted_at for status in queue.machines()), START_SECONDS
    )
    assert queue.slots(system) == 0
    # A killed broker may still have the message: it writes acknowledgements to disk in batches.
    with Connection(broker.url) as connection:
        connection.default_channel.queue_purge(system)
    await queue.cancel(key_of("sleep-1"))
    await until(lambda: queue.slots(system) == 1)
    await queue.offer(key_of("short-3"), system)
    await until((tmp_path / "short-3").exists)
    assert not (tmp_path / "short-2").exists()


@pytest_twisted.ensureDeferred
async def test_a_frozen_broker(
    broker: RabbitMQ,
    queue: CeleryQueue,
    machine: WorkerMachine,
    system: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An offer fails within its time limit, and later offers reach the machine again."""
    await until(lambda: queue.slots(system) == 1, START_SECONDS)
    monkeypatch.setattr(celery_queue, "SEND_SECONDS", 1.0)
    with broker.suspension():
        started_at = time.monotonic()
        for name in ("short-1", "short-2"):
            with pytest.raises(Unavailable):
                await queue.offer(key_of(name), system)
        assert time.monotonic() - started_at < patient(3)
    monkeypatch.undo()
    monkeypatch.setattr(celery_queue, "REFUSED_SECONDS", 0.0)
    await until(lambda: queue.slots(system) == 1, START_SECONDS)
    await queue.offer(key_of("short-3"), system)
    await until((tmp_path / "short-3-done").exists)


@pytest_twisted.ensureDeferred
async def test_a_stop_during_an_offer_to_a_frozen_broker(
    broker: RabbitMQ, queue: CeleryQueue, machine: WorkerMachine, system: str, tmp_path: Path
) -> None:
    """The queue stops without waiting for the time limit of the offer."""
    await until(lambda: queue.slots(system) == 1, START_SECONDS)
    await queue.offer(key_of("short-1"), system)
    await until(lambda: queue.slots(system) == 1)
    with broker.suspension():
        offer = Deferred.fromCoroutine(queue.offer(key_of("short-2"), system))
        offer.addErrback(lambda failure: failure.trap(CancelledError, Unavailable))
        await until(lambda: queue._send_lock.locked)
        offer.cancel()
        started_at = time.monotonic()
        await queue.stopService()
        assert time.monotonic() - started_at < patient(4)


@pytest_twisted.ensureDeferred
async def test_a_broker_that_never_runs(system: str) -> None:
    """The queue starts and stops without it, has no slots, and does not show the password."""
    queue = CeleryQueue(reactor, "amqp://nobody:secret@127.0.0.1:1//")
    queue.startService()
    await until(lambda: "refused" in str(queue.trouble()))
    assert "secret" not in str(queue.trouble())
    assert queue.slots(system) == 0
    await queue.stopService()


@pytest_twisted.ensureDeferred
async def test_a_connection_that_was_idle_for_long(
    broker: RabbitMQ, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle connection may be broken, so the next message uses a new connection, and arrives."""
    with Wiretap(broker.port) as wire:
        sender = MessageSender(make_app(broker.url.replace(f":{broker.port}/", f":{wire.port}/")))
        sender.offer(str(uuid4()), key_of("first"), system)
        monkeypatch.setattr(broker_connections, "IDLE_SECONDS", 0.0)
        wire.mute()
        sender.offer(str(uuid4()), key_of("second"), system)
        sender.close()
    with Connection(broker.url) as connection:
        queue = connection.default_channel.queue_declare(system, passive=True)
        assert queue.message_count == 2
