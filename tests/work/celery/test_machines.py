"""A worker machine takes a message only for a free slot, and nothing but valid messages."""

from __future__ import annotations

import json
import signal
from contextlib import closing
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
import pytest_twisted
from kombu.connection import Connection
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from shiftergw.work.celery.app import CANCEL, TASK, make_app
from shiftergw.work.celery.broker_connections import MessageSender
from shiftergw.work.celery.broker_errors import describe_error
from shiftergw.work.celery.queue import CANCEL_POLLS, LINES_A_MINUTE, CeleryQueue
from tests.rabbitmq import RabbitMQ
from tests.work.celery.test_worker_registry import STATUS
from tests.work.keys import key_of
from tests.work.machines import StartMachine, send, wait_until_ready
from tests.work.waiting import is_alive, until


def count_messages(broker: RabbitMQ, system: str) -> int:
    """Return how many messages of a system no machine has taken."""
    with Connection(broker.url) as connection, closing(connection.channel()) as channel:
        count: int = channel.queue_declare(system, passive=True).message_count
        return count


@pytest_twisted.ensureDeferred
async def test_the_idle_machine_gets_the_next_job(
    broker: RabbitMQ,
    system: str,
    start_machine: StartMachine,
    sender: MessageSender,
    tmp_path: Path,
) -> None:
    """A busy machine takes no message, and a job that has begun is not delivered again."""
    busy = start_machine("busy")
    await wait_until_ready(busy)
    send(sender, system, "sleep-1")
    await until((tmp_path / "busy" / "sleep-1").exists)
    send(sender, system, "next-1", "next-2")
    assert count_messages(broker, system) == 2
    await wait_until_ready(start_machine("idle"))
    await until(lambda: len(list((tmp_path / "idle").glob("next-*"))) == 2)
    busy.kill()
    send(sender, system, "next-3")
    await until((tmp_path / "idle" / "next-3").exists)
    assert count_messages(broker, system) == 0
    assert not (tmp_path / "idle" / "sleep-1").exists()
    assert [trace.name for trace in (tmp_path / "busy").iterdir()] == ["sleep-1"]


@pytest_twisted.ensureDeferred
async def test_each_end_of_a_job_frees_its_slot(
    broker: RabbitMQ,
    system: str,
    start_machine: StartMachine,
    sender: MessageSender,
    tmp_path: Path,
) -> None:
    """A job that was done, cancelled, or died: the next message is taken, and none is lost."""
    await wait_until_ready(start_machine("one"))
    send(sender, system, "short-1", "crash-1", "sleep-1", "fail-1", "short-2")
    await until((tmp_path / "one" / "sleep-1").exists)
    assert count_messages(broker, system) == 2
    sender.cancel(key_of("sleep-1"))
    await until((tmp_path / "one" / "short-2-done").exists)
    assert not is_alive(int((tmp_path / "one" / "sleep-1").read_text()))
    assert count_messages(broker, system) == 0


@pytest_twisted.ensureDeferred
async def test_one_of_two_jobs_on_a_record_is_cancelled(
    system: str, start_machine: StartMachine, sender: MessageSender, tmp_path: Path
) -> None:
    """The order names the message of the hung job; the new attempt on another machine goes on."""

    async def run(message: str, machine: str) -> int:
        """Run a job on the record on a new machine; return the id of its process."""
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
    """After the soft limit a job is asked to stop; if it goes on, its process group is killed."""
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
async def test_sigterm_drains_a_machine(
    broker: RabbitMQ,
    system: str,
    start_machine: StartMachine,
    sender: MessageSender,
    tmp_path: Path,
) -> None:
    """The machine finishes its job, takes no message and exits; a second SIGTERM does nothing.

    Nor does the signal that switches debug messages in other processes.
    """
    machine = start_machine("one")
    await wait_until_ready(machine)
    send(sender, system, "short-1")
    await until((tmp_path / "one" / "short-1").exists)
    machine.send_signal(signal.SIGUSR2)
    machine.send_signal(signal.SIGTERM)
    send(sender, system, "short-2")
    await until(lambda: "Warm shutdown" in machine.log.read_text())
    machine.send_signal(signal.SIGTERM)
    await until(lambda: machine.has_ended, 20)
    assert (tmp_path / "one" / "short-1-done").exists()
    assert not (tmp_path / "one" / "short-2").exists()
    assert count_messages(broker, system) == 1


def message(arguments: Any, **options: Any) -> str:
    """Return the body of a task's message as Celery encodes it."""
    return json.dumps([arguments, options.pop("named", {}), options])


GOOD = key_of("good")
INVALID_MESSAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "no record": (message([]), {}),
    "a path": (message(["../../../../etc/passwd"]), {}),
    "a number": (message([24]), {}),
    "an object": (message([{"record": GOOD}]), {}),
    "a newline": (message([GOOD + "\n"]), {}),
    "two records": (message([GOOD, GOOD]), {}),
    "no list": (json.dumps(3), {}),
    "a shell word": (message(["$(touch x)"]), {}),
    "no JSON": ("{", {}),
    "no identifier": (message([GOOD]), {"id": "x\n../y"}),
    "another task": (message([GOOD]), {"task": "celery.chain"}),
    "a table for a task": (message([GOOD]), {"task": {"x": 1}}),
    "protocol 1, an object for a task": ('{"task": {}, "id": "x"}', {"task": None}),
    "a pickle": (
        "cos\nsystem\n(S'touch x'\ntR.",
        {"content_type": "application/x-python-serialize"},
    ),
}


@pytest_twisted.ensureDeferred
async def test_invalid_messages(
    broker: RabbitMQ,
    system: str,
    start_machine: StartMachine,
    sender: MessageSender,
    tmp_path: Path,
) -> None:
    """A message that is not exactly a record's key starts no job and stops no machine."""
    await wait_until_ready(start_machine("one"))
    with Connection(broker.url) as connection, connection.Producer() as to:
        for body, changes in INVALID_MESSAGES.values():
            headers = {"lang": "py", "task": TASK, "id": str(uuid4())} | changes
            if headers["task"] is None:
                del headers["task"]
            kind = headers.pop("content_type", "application/json")
            options = {"content_type": kind, "content_encoding": "utf-8", "headers": headers}
            to.publish(body.encode(), routing_key=system, **options)
        # A valid message with a time, time limits and a callback, all of which are ignored.
        headers = {
            "lang": "py",
            "task": TASK,
            "id": str(uuid4()),
            "eta": "2099-01-01T00:00:00+00:00",
            "timelimit": [0.01, 0.01],
            "retries": "many",
        }
        callback = {
            "task": TASK,
            "args": [key_of("callback")],
            "kwargs": {},
            "options": {"queue": system},
        }
        body = message([key_of("short-1")], named={"key": GOOD}, callbacks=[callback])
        options = {"content_type": "application/json", "content_encoding": "utf-8"}
        to.publish(body.encode(), routing_key=system, headers=headers, **options)
    await until((tmp_path / "one" / "short-1-done").exists)
    send(sender, system, "last")
    await until((tmp_path / "one" / "last").exists)
    names = {trace.name for trace in (tmp_path / "one").iterdir()}
    assert {name for name in names if not name.startswith("left-")} == {
        "short-1",
        "short-1-done",
        "last",
    }
    assert count_messages(broker, system) == 0


INVALID_BROADCASTS = {
    "no JSON": (b"{", "application/json"),
    "no object": (b"3", "application/json"),
    "no record": (b'{"key": ["x"]}', "application/json"),
    "a pickle": (b"N.", "application/x-python-serialize"),
    "deep": (b"[" * 100_000, "application/json"),
}


@pytest_twisted.ensureDeferred
async def test_invalid_broadcasts_are_ignored(
    broker: RabbitMQ, system: str, start_machine: StartMachine, queue: CeleryQueue, tmp_path: Path
) -> None:
    """Machines keep listening for orders, and gateways for statuses, and neither reconnects."""
    machine = start_machine("one")
    await until(lambda: queue.slots(system) == 1, 40)
    await queue.offer(key_of("sleep-1"), system)
    await until((tmp_path / "one" / "sleep-1").exists)
    changes: list[Any] = []
    queue._listener._on_change = changes.append
    with Connection(broker.url) as connection, connection.Producer() as to:
        for body, kind in INVALID_BROADCASTS.values():
            options = {"content_type": kind, "content_encoding": "utf-8"}
            to.publish(body, exchange=CANCEL.name, **options)
            to.publish(body, exchange="celeryev", routing_key="worker.shiftergw", **options)
    await queue.cancel(key_of("sleep-1"))
    await until(lambda: queue.slots(system) == 1)
    assert changes == []
    assert "Traceback" not in machine.log.read_text()
    assert not machine.has_ended


def test_a_new_attempt_is_not_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another gateway may offer the record again before its hung job has ended."""
    queue = CeleryQueue(clock := cast("Any", Clock()), "amqp://nobody@127.0.0.1:1//")
    queue._broker_fault, key = None, key_of("sleep-1")
    orders: list[tuple[str, ...]] = []

    async def send(_: Any, *arguments: str) -> None:
        orders.append(arguments)

    monkeypatch.setattr(queue, "_send", send)
    hung = STATUS | {"run": "1", "hostname": "node1"}
    queue._record_status(hung | {"jobs": {"m1": key}})
    stopping = Deferred.fromCoroutine(queue.cancel(key))
    queue._record_status(STATUS | {"run": "2", "hostname": "node2", "jobs": {"m2": key}})
    clock.pump([0.1] * (CANCEL_POLLS + 1))
    is_waiting = not stopping.called
    queue._record_status(hung | {"jobs": {}})
    clock.advance(0.1)
    assert (is_waiting, stopping.called) == (True, True)
    assert orders == [(key, "m1")] * 2


def test_a_flood_of_statuses_does_not_fill_the_log() -> None:
    """Invalid statuses and new machines are logged up to a number of lines in each minute."""
    queue = CeleryQueue(clock := cast("Any", Clock()), "amqp://nobody@127.0.0.1:1//")
    with capturedLogs() as events:
        for number in range(3 * LINES_A_MINUTE):
            queue._record_status("nonsense")
            queue._record_status(STATUS | {"run": str(number)})
        lines = [formatEvent(event) for event in events]
        assert len(lines) == LINES_A_MINUTE + 1
        assert "invalid status" in lines[0]
        assert "worker machine celery@node1" in lines[1]
        assert "not logged" in lines[-1]
        clock.advance(60)
        queue._record_status("nonsense")
        assert len(events) == len(lines) + 1


def test_a_password_with_special_characters() -> None:
    """No part of it appears in the text of an error, even if it is not quoted as in a URL."""
    assert "word" not in describe_error(OSError("cannot reach amqp://me:pass@word@host/where"))


def test_errors_do_not_show_the_password(broker: RabbitMQ) -> None:
    """Neither the text nor the detail of an error has the password of the broker's URL."""
    app = make_app(broker.url.replace(broker.password, "guessed-wrong"))
    sender = MessageSender(app)
    with pytest.raises(Exception, match="does not answer") as caught:
        sender.offer(str(uuid4()), GOOD, "alpha")
    assert "guessed-wrong" not in repr(caught.value) + str(getattr(caught.value, "detail", ""))
