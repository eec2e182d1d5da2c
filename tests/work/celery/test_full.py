"""A broker that takes no messages, or not ours: nothing hangs, it is said why, and work goes on."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import pytest
import pytest_twisted
from kombu.connection import Connection
from kombu.entity import Queue
from twisted.internet import reactor

from shiftergw.app.checkup.finding import Finding
from shiftergw.app.checkup.machines import broker as findings
from shiftergw.errors import Unavailable
from shiftergw.work.celery import broker_connections, worker_registry
from shiftergw.work.celery import queue as celery_queue
from shiftergw.work.celery.queue import CeleryQueue
from tests.configurations import loaded
from tests.patience import patient
from tests.rabbitmq import RabbitMQ
from tests.work.contract import key_of
from tests.work.machines import WorkerMachine
from tests.work.waiting import until

START_SECONDS = 40
SYSTEM = "full"
OTHER = "other"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where jobs leave their traces."""
    return tmp_path_factory.mktemp("full")


@pytest.fixture(scope="module")
def machine(broker: RabbitMQ, place: Path) -> Iterator[WorkerMachine]:
    """Return a machine with two slots for two systems."""
    env = {"BROKER": broker.url, "TRACES": str(place)}
    machine = WorkerMachine("full", f"{SYSTEM},{OTHER}", 2, place / "log", env)
    yield machine
    machine.kill()


@pytest.fixture
def queue(broker: RabbitMQ, machine: WorkerMachine) -> Iterator[CeleryQueue]:
    """Return a running queue."""
    queue = CeleryQueue(reactor, broker.url)
    queue.startService()
    yield queue
    pytest_twisted.blockon(queue.stopService())


async def offer_again_and_again(queue: CeleryQueue) -> None:
    """Offer short jobs, each when the one before has ended."""
    for n in range(20):
        await queue.offer(key_of(f"short-a{n}"), SYSTEM)
        await until(lambda: queue.slots(SYSTEM) == 2)


@asynccontextmanager
async def alarm(broker: RabbitMQ) -> AsyncIterator[None]:
    """Have the broker take itself for short of memory."""
    await broker.control("set_vm_memory_high_watermark", "0.00001")
    try:
        yield
    finally:
        await broker.control("set_vm_memory_high_watermark", "0.4")


async def look(url: str, **platforms: object) -> dict[str, Finding]:
    """Return what `shiftergw check` finds, by name."""
    changes = {"MongoDBURI": "mongodb://localhost/", "MongoDB": "images", "BrokerURL": url}
    return {one.name: one for one in await findings(loaded(changes | platforms).config, reactor)}


@pytest_twisted.ensureDeferred
async def test_an_alarm(
    broker: RabbitMQ, queue: CeleryQueue, machine: WorkerMachine, place: Path
) -> None:
    """It is known before anybody asks for something; a job goes on; afterwards all is as before."""
    await until(lambda: queue.slots(SYSTEM) == 2, START_SECONDS)
    await queue.offer(key_of("sleep-1"), SYSTEM)
    await until((place / "sleep-1").exists)
    async with alarm(broker):
        await until(queue.trouble)
        assert "short of memory or disk" in str(queue.trouble())
        assert "rabbitmq-diagnostics alarms" in str(queue.trouble())
        began = time.monotonic()
        assert queue.slots(OTHER) == 0
        with pytest.raises(Unavailable) as caught:
            await queue.offer(key_of("never"), OTHER)
        assert "short of memory" in caught.value.detail
        assert time.monotonic() - began < patient(0.5)
        found = await look(broker.url)
        assert found["BrokerURL"].level == "failure"
        assert "short of memory or disk" in found["BrokerURL"].text
    await until(lambda: queue.trouble() is None)
    await until(lambda: queue.slots(OTHER) == 1)
    await queue.offer(key_of("short-2"), OTHER)
    await until((place / "short-2-done").exists)
    await queue.cancel(key_of("sleep-1"))
    assert "Connection to broker lost" not in machine.log.read_text()


@pytest_twisted.ensureDeferred
async def test_an_alarm_that_nobody_has_told_yet(
    broker: RabbitMQ, queue: CeleryQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An offer that is made just then fails within its limit, and says why."""
    await until(lambda: queue.slots(SYSTEM) == 2, START_SECONDS)
    monkeypatch.setattr(broker_connections, "CONFIRM_SECONDS", 0.5)
    # The line on which the gateway hears of alarms is deaf, and nobody misses the worker machine,
    # which cannot report during an alarm.
    monkeypatch.setattr(broker_connections.StatusListener, "_block", lambda *_: None)
    monkeypatch.setattr(broker_connections, "ECHO_SECONDS", patient(60))
    monkeypatch.setattr(worker_registry, "SILENT_SECONDS", patient(60))
    async with alarm(broker):
        assert queue.trouble() is None
        with pytest.raises(Unavailable) as caught:
            await queue.offer(key_of("never"), SYSTEM)
    assert "short of memory" in caught.value.detail


@pytest_twisted.ensureDeferred
async def test_a_queue_that_is_full(
    broker: RabbitMQ, queue: CeleryQueue, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An offer is refused, with the reason; others have their turn; later it is tried again."""
    await until(lambda: queue.slots(SYSTEM) == 2, START_SECONDS)
    policy = '{"max-length":0,"overflow":"reject-publish"}'
    await broker.control("set_policy", "--apply-to", "queues", "none", f"^{SYSTEM}$", policy)
    try:
        with pytest.raises(Unavailable) as caught:
            await offer_again_and_again(queue)  # a policy takes a moment
        assert "as long as it may be" in caught.value.detail
        assert (queue.slots(SYSTEM), queue.slots(OTHER)) == (0, 2)
        assert queue.trouble() is None
    finally:
        await broker.control("clear_policy", "none")
    await queue.offer(key_of("short-b"), OTHER)
    monkeypatch.setattr(celery_queue, "REFUSED_SECONDS", 0.1)
    await until(lambda: queue.slots(SYSTEM) == 2)
    await queue.offer(key_of("short-c"), SYSTEM)
    await until((place / "short-c-done").exists)


@pytest_twisted.ensureDeferred
async def test_a_queue_that_somebody_else_has_made(broker: RabbitMQ, tmp_path: Path) -> None:
    """With other arguments: check says so, so does its machine, which works once it is gone."""
    name = f"mine-{uuid4().hex[:8]}"
    with Connection(broker.url) as connection:
        Queue(name, durable=True, max_length=5)(connection.default_channel).declare()
        found = await look(broker.url, **{f"Platforms/{name}": PLATFORM})
        assert found["BrokerURL"].level == "ok"
        assert "made by somebody else" in found[f"queue of {name}"].text
        assert "Delete it" in found[f"queue of {name}"].remedy
        env = {"BROKER": broker.url, "TRACES": str(tmp_path)}
        machine = WorkerMachine("late", name, 1, tmp_path / "log", env)
        queue = CeleryQueue(reactor, broker.url)
        queue.startService()
        try:
            await until(lambda: "made by somebody else" in machine.log.read_text(), START_SECONDS)
            connection.default_channel.queue_delete(name)
            await until(lambda: queue.slots(name) == 1, START_SECONDS)
            await queue.offer(key_of("short-1"), name)
            await until((tmp_path / "short-1-done").exists)
        finally:
            machine.kill()
            await queue.stopService()


PLATFORM = {"accesstype": "local", "local": {"imageDir": "/two"}}


@pytest_twisted.ensureDeferred
async def test_a_user_without_rights(broker: RabbitMQ) -> None:
    """Neither on the virtual host, nor on what lies in it, nor on one that does not exist."""
    user = f"user-{uuid4().hex[:8]}"
    await broker.control("add_user", user, "guess-me")
    url = broker.url.replace(f"{broker.user}:{broker.password}", f"{user}:guess-me")
    queue = CeleryQueue(reactor, url)
    queue.startService()
    try:
        await until(lambda: "no rights" in str(queue.trouble()))
        await broker.control("set_permissions", user, "^none$", "^none$", "^none$")
        found = await look(url)
        assert "no rights" in found["BrokerURL"].text
        assert "set_permissions" in found["BrokerURL"].remedy
        nowhere = await look(f"{url[:-1]}{quote('no where')}")
        assert "no such virtual host" in nowhere["BrokerURL"].text
        await broker.control("set_permissions", user, ".*", ".*", ".*")
        await until(lambda: queue.trouble() is None, 20)
        assert "guess-me" not in str(found) + str(nowhere)
    finally:
        await queue.stopService()


@pytest_twisted.ensureDeferred
async def test_a_broker_that_is_frozen_for_long(
    broker: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is noticed although its connections stay; the queue stops all the same, and soon."""
    queue = CeleryQueue(reactor, broker.url)
    queue.startService()
    try:
        await until(lambda: queue.trouble() is None)
        monkeypatch.setattr(broker_connections, "ECHO_SECONDS", 2.5)
        with broker.suspended():
            await until(queue.trouble)
            assert "does not answer in time" in str(queue.trouble())
            began = time.monotonic()
            await queue.stopService()
            assert time.monotonic() - began < patient(2)
    finally:
        if queue.running:
            await queue.stopService()
