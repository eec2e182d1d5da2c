"""Worker machines that lose connections, share a name, or serve no system; RabbitMQ 4."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_twisted
from celery.worker import state
from twisted.internet import reactor

from shiftergw.work.celery.broker_connections import MessageSender
from shiftergw.work.celery.queue import CeleryQueue
from shiftergw.work.celery.slot_gate import SlotGate, SlotGateStep
from shiftergw.work.celery.worker_registry import STATUS_SECONDS
from tests.patience import stretch
from tests.rabbitmq import RabbitMQ
from tests.work.keys import key_of
from tests.work.machines import StartMachine, WorkerMachine, send, wait_until_ready
from tests.work.pools import pid_of
from tests.work.waiting import is_alive, until

START_SECONDS = 40


@pytest_twisted.ensureDeferred
async def test_two_machines_of_the_same_name(
    system: str, start_machine: StartMachine, queue: CeleryQueue, tmp_path: Path
) -> None:
    """The slots add up, and a job is cancelled on the machine that runs it."""
    start_machine("one", hostname="twin")
    start_machine("two", hostname="twin")
    await until(lambda: queue.slots(system) == 2, START_SECONDS)
    assert len(queue.machines()) >= 2
    await queue.offer(key_of("sleep-1"), system)
    await queue.offer(key_of("sleep-2"), system)

    def traces() -> list[Path]:
        return list(tmp_path.glob("*/sleep-*"))

    await until(lambda: len(traces()) == 2)
    jobs = traces()
    assert sorted(trace.parent.name for trace in jobs) == ["one", "two"]
    for name in ("sleep-1", "sleep-2"):
        await queue.cancel(key_of(name))
    assert not any(is_alive(pid_of(trace)) for trace in jobs)
    await until(lambda: queue.slots(system) == 2)


@pytest_twisted.ensureDeferred
async def test_a_message_that_is_delivered_again(
    system: str,
    start_machine: StartMachine,
    queue: CeleryQueue,
    sender: MessageSender,
    tmp_path: Path,
) -> None:
    """The acknowledgement was lost with a connection; the job keeps the slot and runs once."""
    start_machine("one", slots=2)
    await until(lambda: queue.slots(system) == 2, START_SECONDS)
    message = str(uuid4())
    sender.offer(message, key_of("sleep-1"), system)
    traces = tmp_path / "one"
    await until((traces / "sleep-1").exists)
    sender.offer(message, key_of("short-1"), system)
    send(sender, system, "short-2")
    await until((traces / "short-2-done").exists)
    await until(
        lambda: any(message in status.jobs for status in queue._registry.machines(time.time()))
    )
    assert not (traces / "short-1").exists()
    await until(lambda: queue.slots(system) == 1)


@pytest_twisted.ensureDeferred
async def test_an_unknown_system(start_machine: StartMachine, system: str) -> None:
    """A machine for it does not start, and the message lists the systems that exist."""
    machine = start_machine("one", systems="misspelt")
    await until(lambda: machine.has_ended, START_SECONDS)
    assert "no Platforms of the configuration: misspelt" in machine.log.read_text()
    assert system in machine.log.read_text()


@pytest_twisted.ensureDeferred
async def test_connections_that_break(
    broker: RabbitMQ, system: str, start_machine: StartMachine, queue: CeleryQueue, tmp_path: Path
) -> None:
    """A machine opens them again, that of its statuses and that of its jobs, while its job runs."""
    machine = start_machine("one")
    await until(lambda: queue.slots(system) == 1, START_SECONDS)
    await queue.offer(key_of("sleep-1"), system)
    await until((tmp_path / "one" / "sleep-1").exists)
    closed_connections = broker.evaluate(
        '[rabbit_networking:close_connection(Pid, "an admin does not like it") '
        "|| [{pid, Pid}, {client_properties, Properties}] "
        "<- rabbit_networking:connection_info_all([pid, client_properties]), "
        f'lists:keymember(<<"shiftergw tells of one-{system}">>, 3, Properties)]'
    )
    assert closed_connections == "[ok]"
    deadline = time.time() + STATUS_SECONDS
    await until(lambda: any(status.heard > deadline for status in queue.machines()), 15)
    broker.close_connections("an admin likes nobody")
    await until(lambda: queue.trouble() is not None)
    await until(lambda: queue.trouble() is None, 20)
    assert queue.slots(system) == 0
    await queue.cancel(key_of("sleep-1"))
    await until(lambda: queue.slots(system) == 1)
    assert "an admin likes nobody" in machine.log.read_text()


@pytest.mark.slow
@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("option", ["--time-limit", "--soft-time-limit"])
async def test_time_limits_outlive_the_connection(
    broker: RabbitMQ,
    system: str,
    start_machine: StartMachine,
    sender: MessageSender,
    tmp_path: Path,
    option: str,
) -> None:
    """A job that hangs is killed at its limit although the connection broke meanwhile."""
    limit = stretch(2)
    machine = start_machine("one", "group-polite", option, f"{limit:.0f}")
    await wait_until_ready(machine)
    send(sender, system, "sleep-1")
    await until((tmp_path / "one" / "sleep-1").exists)
    broker.close_connections("an admin likes nobody")
    job = int((tmp_path / "one" / "sleep-1").read_text())
    assert is_alive(job)
    await until(lambda: not is_alive(job), limit + 20)
    sender.renew()
    send(sender, system, "short-1")
    await until((tmp_path / "one" / "short-1-done").exists)


@pytest_twisted.ensureDeferred
@pytest.mark.slow
async def test_no_option_that_rabbitmq_4_refuses(broker: RabbitMQ, tmp_path: Path) -> None:
    """No channel has a global prefetch limit, and each queue is durable or exclusive.

    The queues of systems are quorum queues here, which always refuse a global limit.
    """
    queue_type = '#{default_queue_type => <<"quorum">>}'
    broker.evaluate(f'rabbit_vhost:add(<<"four">>, {queue_type}, <<"tests">>)')
    broker.set_permissions(broker.user, ".*", "four")
    url = f"{broker.url[:-1]}four"
    env = {"BROKER": url, "TRACES": str(tmp_path)}
    machine = WorkerMachine("four", "alpha,beta", 2, tmp_path / "log", env)
    queue = CeleryQueue(reactor, url)
    queue.startService()
    try:
        await until(lambda: queue.slots("alpha") == 2, START_SECONDS)
        for name, system in (("short-1", "alpha"), ("short-2", "beta")):
            await queue.offer(key_of(name), system)
        await until((tmp_path / "short-1-done").exists)
        await until((tmp_path / "short-2-done").exists)
        names = ("name", "type", "durable", "exclusive")
        listing = await broker.control("list_queues", "-p", "four", *names, "--formatter", "json")
        kinds = {queue["name"]: queue["type"] for queue in json.loads(listing)}
        assert (kinds["alpha"], kinds["beta"]) == ("quorum", "quorum")
        assert all(queue["durable"] or queue["exclusive"] for queue in json.loads(listing))
        listing = await broker.control(
            "list_channels", "-p", "four", "global_prefetch_count", "--formatter", "json"
        )
        assert {channel["global_prefetch_count"] for channel in json.loads(listing)} == {0}
    finally:
        machine.kill()
        await queue.stopService()


class FakeTimer:
    """Celery's timer, which counts the calls that are active."""

    def __init__(self) -> None:
        self.running = 0

    def call_repeatedly(self, *_: Any) -> FakeTimer:
        """Begin a call."""
        self.running += 1
        return self

    def cancel(self) -> None:
        """End the call."""
        self.running -= 1


class FakeConsumer:
    """The parts of Celery's consumer that a slot gate uses; it is its own queue."""

    def __init__(self, name: str) -> None:
        self.app = self.task_consumer = self.pool = self.qos = self
        self.hostname, self.num_processes, self.value = "celery@x", 1, 0
        self.timer = FakeTimer()
        self.shiftergw_slot_gate = SlotGate()
        self.name = name
        self.queues = [self]
        self.cancelled_queues: list[str] = []

    def set(self, value: int) -> None:
        """Ignore a prefetch limit."""

    def cancel_by_queue(self, name: str) -> None:
        """Record that a queue is no longer consumed."""
        self.cancelled_queues.append(name)

    def connection_for_write(self, **_: Any) -> None:
        """Fail to connect."""
        raise OSError


def test_a_message_that_was_not_acknowledged() -> None:
    """The slot is free after a new connection, since the broker delivers the message again."""
    consumer = FakeConsumer("alpha")
    gate = consumer.shiftergw_slot_gate
    gate.open(consumer)
    gate.take("m1", key_of("x"))
    assert (gate.is_full(), consumer.cancelled_queues) == (True, ["alpha"])
    assert not state.active_requests
    gate.open(consumer)
    assert not gate.is_full()


def test_a_new_connection_replaces_the_timer() -> None:
    """After several connections a single timer runs."""
    consumer = FakeConsumer("alpha")
    step = SlotGateStep(consumer)
    for _ in range(3):
        step.start(consumer)
        step.stop(consumer)
    assert consumer.timer.running == 1
