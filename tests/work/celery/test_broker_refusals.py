"""A broker that takes no messages, or not ours: the reason is reported, and work resumes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from tests.configurations import load_config
from tests.patience import patient
from tests.rabbitmq import RabbitMQ
from tests.work.keys import key_of
from tests.work.machines import WorkerMachine
from tests.work.waiting import until

START_SECONDS = 40
SYSTEM = "full"
SECOND_SYSTEM = "second"


@pytest.fixture(scope="module")
def trace_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory in which jobs leave their traces."""
    return tmp_path_factory.mktemp("full")


@pytest.fixture(scope="module")
def machine(broker: RabbitMQ, trace_directory: Path) -> Iterator[WorkerMachine]:
    """Return a worker machine with two slots for two systems."""
    env = {"BROKER": broker.url, "TRACES": str(trace_directory)}
    machine = WorkerMachine("full", f"{SYSTEM},{SECOND_SYSTEM}", 2, trace_directory / "log", env)
    yield machine
    machine.kill()


@pytest.fixture
def queue(broker: RabbitMQ, machine: WorkerMachine) -> Iterator[CeleryQueue]:
    """Return a running queue."""
    queue = CeleryQueue(reactor, broker.url)
    queue.startService()
    yield queue
    pytest_twisted.blockon(queue.stopService())


async def offer_jobs(queue: CeleryQueue) -> None:
    """Offer short jobs, one after another."""
    for number in range(20):
        await queue.offer(key_of(f"short-a{number}"), SYSTEM)
        await until(lambda: queue.slots(SYSTEM) == 2)


@contextmanager
def alarm(broker: RabbitMQ) -> Iterator[None]:
    """Raise the broker's memory alarm for a while."""
    broker.set_memory_limit(0.00001)
    try:
        yield
    finally:
        broker.set_memory_limit(0.4)


async def check_broker(url: str, **platforms: object) -> dict[str, Finding]:
    """Return the findings of `shiftergw check`, by name."""
    changes = {"MongoDBURI": "mongodb://localhost/", "MongoDB": "images", "BrokerURL": url}
    config = load_config(changes | platforms).config
    return {finding.name: finding for finding in await findings(config, reactor)}


@pytest_twisted.ensureDeferred
async def test_a_memory_alarm(
    broker: RabbitMQ, queue: CeleryQueue, machine: WorkerMachine, trace_directory: Path
) -> None:
    """The queue reports the alarm before any offer, the running job continues, and work resumes."""
    await until(lambda: queue.slots(SYSTEM) == 2, START_SECONDS)
    await queue.offer(key_of("sleep-1"), SYSTEM)
    await until((trace_directory / "sleep-1").exists)
    with alarm(broker):
        await until(queue.trouble)
        assert "short of memory or disk" in str(queue.trouble())
        assert "rabbitmq-diagnostics alarms" in str(queue.trouble())
        started_at = time.monotonic()
        assert queue.slots(SECOND_SYSTEM) == 0
        with pytest.raises(Unavailable) as caught:
            await queue.offer(key_of("never"), SECOND_SYSTEM)
        assert "short of memory" in caught.value.detail
        assert time.monotonic() - started_at < patient(2)
        by_name = await check_broker(broker.url)
        assert by_name["BrokerURL"].level == "failure"
        assert "short of memory or disk" in by_name["BrokerURL"].text
    await until(lambda: queue.trouble() is None)
    await until(lambda: queue.slots(SECOND_SYSTEM) == 1)
    await queue.offer(key_of("short-2"), SECOND_SYSTEM)
    await until((trace_directory / "short-2-done").exists)
    await queue.cancel(key_of("sleep-1"))
    assert "Connection to broker lost" not in machine.log.read_text()


@pytest_twisted.ensureDeferred
async def test_an_offer_before_the_alarm_is_noticed(
    broker: RabbitMQ, queue: CeleryQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The offer fails within its time limit, and the error names the alarm."""
    await until(lambda: queue.slots(SYSTEM) == 2, START_SECONDS)
    monkeypatch.setattr(broker_connections, "CONFIRM_SECONDS", 0.5)
    # The listener ignores alarms, and the machine, which publishes no status during an alarm, does
    # not count as silent.
    monkeypatch.setattr(broker_connections.StatusListener, "_note_blocked", lambda *_: None)
    monkeypatch.setattr(broker_connections, "ECHO_SECONDS", patient(60))
    monkeypatch.setattr(worker_registry, "SILENT_SECONDS", patient(60))
    with alarm(broker):
        assert queue.trouble() is None
        with pytest.raises(Unavailable) as caught:
            await queue.offer(key_of("never"), SYSTEM)
    assert "short of memory" in caught.value.detail


@pytest_twisted.ensureDeferred
async def test_a_queue_that_is_full(
    broker: RabbitMQ, queue: CeleryQueue, trace_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The offer is refused with the reason; other systems still get offers, later this one too."""
    await until(lambda: queue.slots(SYSTEM) == 2, START_SECONDS)
    policy = '[{<<"max-length">>, 0}, {<<"overflow">>, <<"reject-publish">>}]'
    broker.evaluate(
        f'rabbit_policy:set(<<"/">>, <<"none">>, <<"^{SYSTEM}$">>, {policy}, 0, <<"queues">>, '
        '<<"tests">>)'
    )
    try:
        with pytest.raises(Unavailable) as caught:
            await offer_jobs(queue)  # a policy takes effect after a moment
        assert "as long as it may be" in caught.value.detail
        assert (queue.slots(SYSTEM), queue.slots(SECOND_SYSTEM)) == (0, 2)
        assert queue.trouble() is None
    finally:
        broker.evaluate('rabbit_policy:delete(<<"/">>, <<"none">>, <<"tests">>)')
    await queue.offer(key_of("short-b"), SECOND_SYSTEM)
    monkeypatch.setattr(celery_queue, "REFUSED_SECONDS", 0.1)
    await until(lambda: queue.slots(SYSTEM) == 2)
    await queue.offer(key_of("short-c"), SYSTEM)
    await until((trace_directory / "short-c-done").exists)


@pytest_twisted.ensureDeferred
async def test_a_queue_with_other_options(broker: RabbitMQ, tmp_path: Path) -> None:
    """`check` and the worker machine report it; once it is deleted, the machine works."""
    name = f"limited-{uuid4().hex[:8]}"
    with Connection(broker.url) as connection:
        Queue(name, durable=True, max_length=5)(connection.default_channel).declare()
        by_name = await check_broker(broker.url, **{f"Platforms/{name}": PLATFORM})
        assert by_name["BrokerURL"].level == "ok"
        assert "made by somebody else" in by_name[f"queue of {name}"].text
        assert "Delete it" in by_name[f"queue of {name}"].remedy
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
    """The trouble of the queue and `check` name the missing rights, or the missing virtual host."""
    user = f"user-{uuid4().hex[:8]}"
    broker.evaluate(
        f'rabbit_auth_backend_internal:add_user(<<"{user}">>, <<"guess-me">>, <<"tests">>)'
    )
    url = broker.url.replace(f"{broker.user}:{broker.password}", f"{user}:guess-me")
    queue = CeleryQueue(reactor, url)
    queue.startService()
    try:
        await until(lambda: "no rights" in str(queue.trouble()))
        broker.set_permissions(user, "^none$")
        by_name = await check_broker(url)
        assert "no rights" in by_name["BrokerURL"].text
        assert "set_permissions" in by_name["BrokerURL"].remedy
        missing_host = await check_broker(f"{url[:-1]}{quote('no where')}")
        assert "no such virtual host" in missing_host["BrokerURL"].text
        broker.set_permissions(user, ".*")
        await until(lambda: queue.trouble() is None, 20)
        assert "guess-me" not in str(by_name) + str(missing_host)
    finally:
        await queue.stopService()


@pytest_twisted.ensureDeferred
async def test_a_broker_that_is_frozen_for_long(
    broker: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue reports it although its connections stay open, and still stops at once."""
    queue = CeleryQueue(reactor, broker.url)
    queue.startService()
    try:
        await until(lambda: queue.trouble() is None)
        monkeypatch.setattr(broker_connections, "ECHO_SECONDS", 2.5)
        with broker.suspension():
            await until(queue.trouble)
            assert "does not answer in time" in str(queue.trouble())
            started_at = time.monotonic()
            await queue.stopService()
            assert time.monotonic() - started_at < patient(2)
    finally:
        if queue.running:
            await queue.stopService()
