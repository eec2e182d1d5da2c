"""A broker that is away, frozen or back costs nobody a request, and no machine its job."""

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
from tests.work.contract import key_of
from tests.work.machines import WorkerMachine
from tests.work.waiting import until

START_SECONDS = 40


@pytest.fixture
def system() -> str:
    """Return a system of this test alone: its queue is empty."""
    return f"system-{uuid4().hex[:8]}"


@pytest.fixture
def machine(broker: RabbitMQ, system: str, tmp_path: Path) -> Iterator[WorkerMachine]:
    """Return a machine with one slot."""
    env = {"BROKER": broker.url, "TRACES": str(tmp_path)}
    machine = WorkerMachine("away", system, 1, tmp_path / "machine.log", env)
    yield machine
    machine.kill()


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_a_broker_that_restarts(
    broker: RabbitMQ, queue: CeleryQueue, machine: WorkerMachine, system: str, tmp_path: Path
) -> None:
    """While it is away nothing is offered and jobs go on; when it is back, their slots are theirs.

    A machine that is busy takes nothing although its connection is new.
    """
    await until(lambda: queue.slots(system) == 1, START_SECONDS)
    await queue.offer(key_of("sleep-1"), system)
    await until((tmp_path / "sleep-1").exists)
    with broker.away():
        await until(queue.trouble)
        assert queue.slots(system) == 0
        with pytest.raises(Unavailable):
            await queue.offer(key_of("short-2"), system)
        await queue.cancel(key_of("sleep-1"))
    await until(lambda: queue.trouble() is None, START_SECONDS)
    back = time.time()
    await until(lambda: any(one.heard > back for one in queue.machines()), START_SECONDS)
    assert queue.slots(system) == 0
    # A broker that was killed may have the message still: acknowledgements are written in batches.
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
    """An offer to it fails within its limit, the reactor goes on, and so does work afterwards."""
    await until(lambda: queue.slots(system) == 1, START_SECONDS)
    monkeypatch.setattr(celery_queue, "SEND_SECONDS", 1.0)
    with broker.suspended():
        began = time.monotonic()
        for name in ("short-1", "short-2"):
            with pytest.raises(Unavailable):
                await queue.offer(key_of(name), system)
        assert time.monotonic() - began < patient(3)
    monkeypatch.undo()
    monkeypatch.setattr(celery_queue, "REFUSED_SECONDS", 0.0)
    await until(lambda: queue.slots(system) == 1, START_SECONDS)
    await queue.offer(key_of("short-3"), system)
    await until((tmp_path / "short-3-done").exists)


@pytest_twisted.ensureDeferred
async def test_a_stop_during_an_offer_to_a_frozen_broker(
    broker: RabbitMQ, queue: CeleryQueue, machine: WorkerMachine, system: str, tmp_path: Path
) -> None:
    """The queue stops soon: it does not wait until the offer has failed."""
    await until(lambda: queue.slots(system) == 1, START_SECONDS)
    await queue.offer(key_of("short-1"), system)
    await until(lambda: queue.slots(system) == 1)
    with broker.suspended():
        offer = Deferred.fromCoroutine(queue.offer(key_of("short-2"), system))
        offer.addErrback(lambda failure: failure.trap(CancelledError, Unavailable))
        await until(lambda: queue._turn.locked)
        offer.cancel()
        began = time.monotonic()
        await queue.stopService()
        assert time.monotonic() - began < patient(4)


@pytest_twisted.ensureDeferred
async def test_a_broker_that_was_never_there(system: str) -> None:
    """The queue starts and stops without it, and has no slots."""
    queue = CeleryQueue(reactor, "amqp://nobody:secret@127.0.0.1:1//")
    queue.startService()
    await until(lambda: "refused" in str(queue.trouble()))
    assert "secret" not in str(queue.trouble())
    assert queue.slots(system) == 0
    await queue.stopService()


@pytest_twisted.ensureDeferred
async def test_a_line_that_was_idle_for_long(
    broker: RabbitMQ, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be cut by then, and nobody has noticed: what is sent next is not lost for that."""
    with Wiretap(broker.port) as wire:
        sender = MessageSender(make_app(broker.url.replace(f":{broker.port}/", f":{wire.port}/")))
        sender.offer(str(uuid4()), key_of("first"), system)
        monkeypatch.setattr(broker_connections, "IDLE_SECONDS", 0.0)
        wire.mute()
        sender.offer(str(uuid4()), key_of("second"), system)
        sender.close()
    with Connection(broker.url) as connection:
        declared = connection.default_channel.queue_declare(system, passive=True)
        assert declared.message_count == 2
