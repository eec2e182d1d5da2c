"""A worker machine takes what it can do now, from a broker that anybody may write to."""

from __future__ import annotations

import json
import signal
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_twisted
from kombu.connection import Connection
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from shiftergw.work.celery.app import CANCEL, TASK, make_app
from shiftergw.work.celery.broker_connections import MessageSender
from shiftergw.work.celery.faults import explained
from shiftergw.work.celery.queue import LINES_A_MINUTE, TELLINGS, CeleryQueue
from tests.rabbitmq import RabbitMQ
from tests.work.celery.test_worker_registry import TOLD
from tests.work.contract import key_of
from tests.work.machines import StartMachine, send, wait_until_ready
from tests.work.waiting import is_alive, until


def ready(broker: RabbitMQ, system: str) -> int:
    """Return how many messages no machine has got."""
    with Connection(broker.url) as connection, closing(connection.channel()) as channel:
        count: int = channel.queue_declare(system, passive=True).message_count
        return count


@pytest_twisted.ensureDeferred
async def test_the_free_one_gets_the_next_job(
    broker: RabbitMQ,
    system: str,
    start_machine: StartMachine,
    sender: MessageSender,
    tmp_path: Path,
) -> None:
    """A busy machine reserves nothing; what has begun is acknowledged, and runs nowhere else."""
    busy = start_machine("busy")
    await wait_until_ready(busy)
    send(sender, system, "sleep-1")
    await until((tmp_path / "busy" / "sleep-1").exists)
    send(sender, system, "next-1", "next-2")
    assert ready(broker, system) == 2
    await wait_until_ready(start_machine("free"))
    await until(lambda: len(list((tmp_path / "free").glob("next-*"))) == 2)
    busy.kill()
    send(sender, system, "next-3")
    await until((tmp_path / "free" / "next-3").exists)
    assert ready(broker, system) == 0
    assert not (tmp_path / "free" / "sleep-1").exists()
    assert [one.name for one in (tmp_path / "busy").iterdir()] == ["sleep-1"]


@pytest_twisted.ensureDeferred
async def test_the_slot_is_free_again(
    broker: RabbitMQ,
    system: str,
    start_machine: StartMachine,
    sender: MessageSender,
    tmp_path: Path,
) -> None:
    """After a job that ended, was cancelled, or died, however often; nothing is lost meanwhile."""
    await wait_until_ready(start_machine("one"))
    send(sender, system, "short-1", "crash-1", "sleep-1", "fail-1", "short-2")
    await until((tmp_path / "one" / "sleep-1").exists)
    assert ready(broker, system) == 2
    sender.cancel(key_of("sleep-1"))
    await until((tmp_path / "one" / "short-2-done").exists)
    assert not is_alive(int((tmp_path / "one" / "sleep-1").read_text()))
    assert ready(broker, system) == 0


@pytest_twisted.ensureDeferred
async def test_one_of_two_jobs_on_a_record_is_cancelled(
    system: str, start_machine: StartMachine, sender: MessageSender, tmp_path: Path
) -> None:
    """The other one is a new attempt on another machine, which goes on."""

    async def run(message: str, machine: str) -> int:
        """Return the process of a job on the record on a machine of its own."""
        trace = tmp_path / machine / "sleep-1"
        await wait_until_ready(start_machine(machine))
        sender.offer(message, key_of("sleep-1"), system)
        await until(lambda: trace.exists() and trace.stat().st_size)
        return int(trace.read_text())

    hung, new = await run("1", "hung"), await run("2", "new")
    sender.cancel(key_of("sleep-1"), "1")
    await until(lambda: not is_alive(hung))
    assert is_alive(new)
    sender.cancel(key_of("sleep-1"))
    await until(lambda: not is_alive(new))


@pytest_twisted.ensureDeferred
async def test_time_limits(
    broker: RabbitMQ,
    system: str,
    start_machine: StartMachine,
    sender: MessageSender,
    tmp_path: Path,
) -> None:
    """At the soft limit a job is told to stop, at the hard one it is killed with its children."""
    machine = start_machine("one", "group", "--soft-time-limit", "1", "--time-limit", "3")
    await wait_until_ready(machine)
    send(sender, system, "child-1")
    child = tmp_path / "one" / "child"
    await until(lambda: child.exists() and child.stat().st_size)
    await until(lambda: not is_alive(int(child.read_text())))
    await until(lambda: not is_alive(int((tmp_path / "one" / "child-1").read_text())))
    send(sender, system, "short-1")
    await until((tmp_path / "one" / "short-1-done").exists)


@pytest_twisted.ensureDeferred
async def test_it_leaves_when_its_job_is_done(
    broker: RabbitMQ,
    system: str,
    start_machine: StartMachine,
    sender: MessageSender,
    tmp_path: Path,
) -> None:
    """SIGTERM drains a machine, however often: it ends its job, and takes no more."""
    machine = start_machine("one")
    await wait_until_ready(machine)
    send(sender, system, "short-1")
    await until((tmp_path / "one" / "short-1").exists)
    machine.send_signal(signal.SIGTERM)
    send(sender, system, "short-2")
    await until(lambda: "Warm shutdown" in machine.log.read_text())
    machine.send_signal(signal.SIGTERM)
    await until(lambda: machine.has_ended, 20)
    assert (tmp_path / "one" / "short-1-done").exists()
    assert not (tmp_path / "one" / "short-2").exists()
    assert ready(broker, system) == 1


def message(arguments: Any, **embedded: Any) -> str:
    """Return the body of a message as Celery writes it."""
    return json.dumps([arguments, embedded.pop("named", {}), embedded])


GOOD = key_of("good")
FORGED: dict[str, tuple[str, dict[str, Any]]] = {
    "no record": (message([]), {}),
    "a path": (message(["../../../../etc/passwd"]), {}),
    "a number": (message([24]), {}),
    "an object": (message([{"record": GOOD}]), {}),
    "a line more": (message([GOOD + "\n"]), {}),
    "two records": (message([GOOD, GOOD]), {}),
    "no list": (json.dumps(3), {}),
    "a shell word": (message(["$(touch x)"]), {}),
    "no JSON": ("{", {}),
    "no identifier": (message([GOOD]), {"id": "x\n../y"}),
    "another task": (message([GOOD]), {"task": "celery.chain"}),
    "a table for a task": (message([GOOD]), {"task": {"x": 1}}),
    "of old, an object for a task": ('{"task": {}, "id": "x"}', {"task": None}),
    "a pickle": (
        "cos\nsystem\n(S'touch x'\ntR.",
        {"content_type": "application/x-python-serialize"},
    ),
}


@pytest_twisted.ensureDeferred
async def test_forged_messages(
    broker: RabbitMQ,
    system: str,
    start_machine: StartMachine,
    sender: MessageSender,
    tmp_path: Path,
) -> None:
    """Whatever is not exactly a record's key starts nothing, and stops nothing."""
    await wait_until_ready(start_machine("one"))
    with Connection(broker.url) as connection, connection.Producer() as to:
        for body, changes in FORGED.values():
            headers = {"lang": "py", "task": TASK, "id": str(uuid4())} | changes
            if headers["task"] is None:
                del headers["task"]
            kind = headers.pop("content_type", "application/json")
            options = {"content_type": kind, "content_encoding": "utf-8", "headers": headers}
            to.publish(body.encode(), routing_key=system, **options)
        # What a message asks for besides is not heard: neither when, nor how long, nor what next.
        headers = {
            "lang": "py",
            "task": TASK,
            "id": str(uuid4()),
            "eta": "2099-01-01T00:00:00+00:00",
            "timelimit": [0.01, 0.01],
            "retries": "many",
        }
        then = {"task": TASK, "args": [key_of("then")], "kwargs": {}, "options": {"queue": system}}
        body = message([key_of("short-1")], named={"key": GOOD}, callbacks=[then])
        options = {"content_type": "application/json", "content_encoding": "utf-8"}
        to.publish(body.encode(), routing_key=system, headers=headers, **options)
    await until((tmp_path / "one" / "short-1-done").exists)
    send(sender, system, "last")
    await until((tmp_path / "one" / "last").exists)
    names = {one.name for one in (tmp_path / "one").iterdir()}
    assert {name for name in names if not name.startswith("left-")} == {
        "short-1",
        "short-1-done",
        "last",
    }
    assert ready(broker, system) == 0


NOISE = {
    "no JSON": (b"{", "application/json"),
    "no object": (b"3", "application/json"),
    "no record": (b'{"key": ["x"]}', "application/json"),
    "a pickle": (b"N.", "application/x-python-serialize"),
    "deep": (b"[" * 100_000, "application/json"),
}


@pytest_twisted.ensureDeferred
async def test_noise_on_the_lines_of_all(
    broker: RabbitMQ, system: str, start_machine: StartMachine, queue: CeleryQueue, tmp_path: Path
) -> None:
    """No machine that listens for orders, and no gateway that listens for machines, minds it."""
    machine = start_machine("one")
    await until(lambda: queue.slots(system) == 1, 40)
    await queue.offer(key_of("sleep-1"), system)
    await until((tmp_path / "one" / "sleep-1").exists)
    changes: list[Any] = []
    queue._listener._changed = changes.append
    with Connection(broker.url) as connection, connection.Producer() as to:
        for body, kind in NOISE.values():
            options = {"content_type": kind, "content_encoding": "utf-8"}
            to.publish(body, exchange=CANCEL.name, **options)
            to.publish(body, exchange="celeryev", routing_key="worker.shiftergw", **options)
    await queue.cancel(key_of("sleep-1"))
    await until(lambda: queue.slots(system) == 1)
    assert changes == []
    said = machine.log.read_text()
    assert "Traceback" not in said
    assert not machine.has_ended


def test_a_new_attempt_is_not_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another gateway may have offered the record again before its hung job has ended."""
    queue = CeleryQueue(clock := Clock(), "amqp://nobody@127.0.0.1:1//")
    queue._away, key = None, key_of("sleep-1")
    orders: list[tuple[str, ...]] = []

    async def send(_: Any, *arguments: str) -> None:
        orders.append(arguments)

    monkeypatch.setattr(queue, "_send", send)
    hung = TOLD | {"run": "1", "hostname": "node1"}
    queue._told(hung | {"jobs": {"m1": key}})
    stopping = Deferred.fromCoroutine(queue.cancel(key))
    queue._told(TOLD | {"run": "2", "hostname": "node2", "jobs": {"m2": key}})
    clock.pump([0.1] * (TELLINGS + 1))
    waits = not stopping.called
    queue._told(hung | {"jobs": {}})
    clock.advance(0.1)
    assert (waits, stopping.called) == (True, True)
    assert orders == [(key, "m1")] * 2


def test_whoever_tells_much_does_not_fill_the_log() -> None:
    """Of nonsense, and of ever new machines, a minute has so many lines, and one that says so."""
    queue = CeleryQueue(clock := Clock(), "amqp://nobody@127.0.0.1:1//")
    with capturedLogs() as events:
        for n in range(3 * LINES_A_MINUTE):
            queue._told("nonsense")
            queue._told(TOLD | {"run": str(n)})
        lines = [formatEvent(one) for one in events]
        assert len(lines) == LINES_A_MINUTE + 1
        assert "nonsense" in lines[0]
        assert "worker machine celery@node1" in lines[1]
        assert "more than" in lines[-1]
        clock.advance(60)
        queue._told("nonsense")
        assert len(events) == len(lines) + 1


def test_a_password_that_is_badly_written() -> None:
    """No part of it is told either, whatever characters are in it."""
    assert "word" not in explained(OSError("cannot reach amqp://me:pass@word@host/where"))


def test_passwords_are_not_told(broker: RabbitMQ) -> None:
    """Neither an error's detail nor the set-up shows what stands in the broker's URL."""
    wrong = make_app(broker.url.replace(broker.password, "guessed-wrong"))
    sender = MessageSender(wrong)
    with pytest.raises(Exception, match="does not answer") as caught:
        sender.offer(str(uuid4()), GOOD, "alpha")
    assert "guessed-wrong" not in repr(caught.value) + str(getattr(caught.value, "detail", ""))
