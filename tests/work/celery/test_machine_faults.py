"""Worker machines that are cut off, started twice or for nobody; and what brokers refuse."""

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
from tests.patience import scaled
from tests.rabbitmq import RabbitMQ
from tests.work.contract import key_of
from tests.work.machines import StartMachine, WorkerMachine, send, wait_until_ready
from tests.work.waiting import is_alive, until

START_SECONDS = 40


@pytest_twisted.ensureDeferred
async def test_two_machines_of_one_name(
    system: str, start_machine: StartMachine, queue: CeleryQueue, tmp_path: Path
) -> None:
    """Both work, their slots add up, and a job is stopped on whichever it runs."""
    start_machine("one", hostname="twin")
    start_machine("two", hostname="twin")
    await until(lambda: queue.slots(system) == 2, START_SECONDS)
    assert len(queue.machines()) >= 2
    await queue.offer(key_of("sleep-1"), system)
    await queue.offer(key_of("sleep-2"), system)

    def traces() -> list[Path]:
        return list(tmp_path.glob("*/sleep-*"))

    await until(lambda: len(traces()) == 2)
    ran = [(one.parent.name, one.name) for one in traces()]
    assert sorted(name for name, _ in ran) == ["one", "two"]
    for name in ("sleep-1", "sleep-2"):
        await queue.cancel(key_of(name))
    assert not any(is_alive(int((tmp_path / name / one).read_text())) for name, one in ran)
    await until(lambda: queue.slots(system) == 2)


@pytest_twisted.ensureDeferred
async def test_a_message_that_comes_again(
    system: str,
    start_machine: StartMachine,
    queue: CeleryQueue,
    sender: MessageSender,
    tmp_path: Path,
) -> None:
    """Its acknowledgement was lost with a connection: its job keeps its slot, and runs once."""
    start_machine("one", slots=2)
    await until(lambda: queue.slots(system) == 2, START_SECONDS)
    message = str(uuid4())
    sender.offer(message, key_of("sleep-1"), system)
    traces = tmp_path / "one"
    await until((traces / "sleep-1").exists)
    sender.offer(message, key_of("short-1"), system)
    send(sender, system, "short-2")
    await until((traces / "short-2-done").exists)
    await until(lambda: any(message in one.jobs for one in queue._crew.machines(time.time())))
    assert not (traces / "short-1").exists()
    await until(lambda: queue.slots(system) == 1)


@pytest_twisted.ensureDeferred
async def test_a_system_that_does_not_exist(start_machine: StartMachine, system: str) -> None:
    """A machine for it, or for the queue that Celery takes by itself, does not start."""
    machine = start_machine("one", systems="misspelt")
    await until(lambda: machine.has_ended, START_SECONDS)
    assert "no Platforms of the configuration: misspelt" in machine.log.read_text()
    assert system in machine.log.read_text()


@pytest_twisted.ensureDeferred
async def test_lines_that_break(
    broker: RabbitMQ, system: str, start_machine: StartMachine, queue: CeleryQueue, tmp_path: Path
) -> None:
    """The line on which a machine tells is opened again, while its job goes on; so are all."""
    machine = start_machine("one")
    await until(lambda: queue.slots(system) == 1, START_SECONDS)
    listed = (await broker.control("list_connections", "pid", "client_properties")).decode()
    (line,) = [one for one in listed.splitlines() if f"tells of one-{system}" in one]
    await queue.offer(key_of("sleep-1"), system)
    await until((tmp_path / "one" / "sleep-1").exists)
    await broker.control("close_connection", line.partition("\t")[0], "an admin does not like it")
    closed = time.time()
    await until(lambda: any(one.heard > closed + STATUS_SECONDS for one in queue.machines()), 15)
    await broker.control("close_all_connections", "an admin likes nobody")
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
    """A job that hangs is killed at its limit although the connection was lost meanwhile."""
    began = time.monotonic()
    await broker.control("list_connections")
    # The job has to outlive the next command, which takes as long as this one.
    limit = scaled(5) + 2 * (time.monotonic() - began)
    machine = start_machine("one", "group-polite", option, f"{limit:.0f}")
    await wait_until_ready(machine)
    send(sender, system, "sleep-1")
    await until((tmp_path / "one" / "sleep-1").exists)
    await broker.control("close_all_connections", "an admin likes nobody")
    job = int((tmp_path / "one" / "sleep-1").read_text())
    assert is_alive(job)
    await until(lambda: not is_alive(job), limit + 20)
    sender.renew()
    send(sender, system, "short-1")
    await until((tmp_path / "one" / "short-1-done").exists)


@pytest_twisted.ensureDeferred
async def test_what_rabbitmq_4_refuses(broker: RabbitMQ, tmp_path: Path) -> None:
    """No limit is set for a whole channel; no queue is neither durable nor anybody's own.

    The queues of systems are quorum queues here, which have always refused such limits.
    """
    await broker.control("add_vhost", "four", "--default-queue-type", "quorum")
    await broker.control("set_permissions", "-p", "four", broker.user, ".*", ".*", ".*")
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
        listed = await broker.control("list_queues", "-p", "four", *names, "--formatter", "json")
        kinds = {one["name"]: one["type"] for one in json.loads(listed)}
        assert (kinds["alpha"], kinds["beta"]) == ("quorum", "quorum")
        assert all(one["durable"] or one["exclusive"] for one in json.loads(listed))
        listed = await broker.control(
            "list_channels", "-p", "four", "global_prefetch_count", "--formatter", "json"
        )
        assert {one["global_prefetch_count"] for one in json.loads(listed)} == {0}
    finally:
        machine.kill()
        await queue.stopService()


class Timer:
    """Celery's, which calls again and again."""

    def __init__(self) -> None:
        self.running = 0

    def call_repeatedly(self, *_: Any) -> Timer:
        """Begin."""
        self.running += 1
        return self

    def cancel(self) -> None:
        """End."""
        self.running -= 1


class Line:
    """The part of a consumer that a gate uses."""

    def __init__(self, name: str) -> None:
        self.app = self.task_consumer = self.pool = self.qos = self
        self.hostname, self.num_processes, self.value = "celery@x", 1, 0
        self.timer = Timer()
        self.shiftergw_slot_gate = SlotGate()
        self.name = name
        self.queues = [self]
        self.closed: list[str] = []

    def set(self, value: int) -> None:
        """Set a limit."""

    def cancel_by_queue(self, name: str) -> None:
        """Consume from it no more."""
        self.closed.append(name)

    def connection_for_write(self, **_: Any) -> None:
        """Never come."""
        raise OSError


def test_a_message_that_had_not_begun() -> None:
    """When the connection is lost, its slot is free again: it comes once more."""
    line = Line("alpha")
    gate = line.shiftergw_slot_gate
    gate.connected(line)
    gate.take("m1", key_of("x"))
    assert (gate.is_full(), line.closed) == (True, ["alpha"])
    assert not state.active_requests
    gate.connected(line)
    assert not gate.is_full()


def test_one_timer_however_often_it_connects() -> None:
    """What a connection has begun ends with it."""
    line = Line("alpha")
    step = SlotGateStep(line)
    for _ in range(3):
        step.start(line)
        step.stop(line)
    assert line.timer.running == 1
