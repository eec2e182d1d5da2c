"""Worker machines: the messages of the present version, and those of an earlier one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.golden import program, wire
from tests.golden.records import check, mask
from tests.golden.state import STATES
from tests.installed_reactor import reactor
from tests.patience import patient
from tests.running_service import SYSTEM
from tests.work.waiting import until

MASKS = {
    "origin": "sender",
    "pid": "pid",
    "clock": "clock",
    "run": "run",
    "version": "version",
    "timestamp": "time",
    "utcoffset": "hours",
}


@pytest.fixture(params=sorted(path.name for path in STATES.iterdir()))
def earlier_version(request: pytest.FixtureRequest) -> Any:
    """Return the messages of a gateway and of a worker machine of an earlier version."""
    return json.loads((STATES / request.param / "wire.json").read_text(encoding="utf-8"))


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Return the directory in which jobs leave their traces."""
    yield tmp_path
    for trace in tmp_path.glob("sleep-1"):
        assert not Path("/proc", trace.read_text()).exists()


def _own(message: wire.Message) -> Any:
    """Return a message without the parts that vary, and without Celery's own headers."""
    headers = {name: message["headers"].get(name) for name in ("task", "id", "hostname")}
    return mask({**message, "headers": headers}, MASKS)


def _states(messages: list[wire.Message]) -> list[Any]:
    """Return the statuses of a machine, each of them once."""
    states: list[Any] = []
    for message in messages:
        state = _own(message)
        losses = state["body"]["lost"]
        state["body"]["lost"] = {
            name: [key, "<host:pid>", *rest] for name, (key, _, *rest) in losses.items()
        }
        if state not in states:
            states.append(state)
    return states


def test_messages_of_the_gateway() -> None:
    """Offers and orders to stop a job are the recorded messages."""
    messages = wire.gateway_messages()
    check("celery-gateway", {name: _own(message) for name, message in messages.items()})


@pytest.mark.slow
def test_an_earlier_gateway(earlier_version: Any, directory: Path) -> None:
    """The present machine runs the offers of an earlier gateway, and publishes what is recorded."""
    file = directory / "messages.json"
    file.write_text(json.dumps(earlier_version["gateway"]), encoding="utf-8")
    messages, declarations = wire.machine_messages(file, directory)
    check(
        "celery-machine",
        {"declarations": dict(sorted(declarations.items())), "states": _states(messages)},
    )


def _has_slots(queue: Any, free: int) -> bool:
    return bool(queue.slots(wire.QUEUE) == free)


@pytest_twisted.ensureDeferred
async def test_an_earlier_machine(earlier_version: Any) -> None:
    """The present gateway reads the status of an earlier machine: slots, jobs, deaths."""
    app = program.broker_app(wire.BROKER)
    ends: list[Any] = []
    queue = program.broker_queue(reactor, wire.BROKER)
    queue.on_end = ends.append
    with wire.record_declarations() as declarations:
        queue.startService()
        try:
            await until(lambda: queue.trouble() is None)
            for message in earlier_version["machine"]:
                wire.publish(message, app)
                body = message["body"]
                free = 0 if body["leaving"] else body["slots"] - len(body["jobs"])
                await until(partial(_has_slots, queue, free))
            (machine,) = queue.machines()
        finally:
            await queue.stopService()
    facts = [machine.name, machine.systems, machine.slots, machine.jobs, machine.leaving]
    assert facts == ["celery@node1", (wire.QUEUE,), 1, (), True]
    (key, _, loss, is_death) = next(iter(earlier_version["machine"][-1]["body"]["lost"].values()))
    (end,) = [end for end in ends if end.died]
    assert (end.key, end.loss, end.died) == (key, loss, is_death)
    check("celery-gateway-declarations", dict(sorted(declarations.items())))


def test_the_application(tmp_path: Path) -> None:
    """`celery -A shiftergw.work.celery` finds the application by `$GWCONFIG`, and its settings."""
    config = tmp_path / "imagemanager.json"
    document = {
        "Authentication": "mock",
        "DefaultImageLocation": "registry.example.com",
        "CacheDirectory": "/images/cache",
        "ExpandDirectory": "/images/expand",
        "Locations": {"registry.example.com": {"remotetype": "dockerv2"}},
        "Platforms": {SYSTEM: {"accesstype": "local", "local": {"imageDir": "/images"}}},
        "MongoDBURI": "mongodb://db/",
        "MongoDB": "images",
        "BrokerURL": "amqp://broker/",
        "WorkerThreads": 3,
    }
    config.write_text(json.dumps(document))
    celery = Path(sys.executable).with_name("celery")
    run = subprocess.run(
        [celery, "-A", "shiftergw.work.celery", "report"],
        env={**os.environ, "GWCONFIG": str(config)},
        capture_output=True,
        text=True,
        timeout=patient(30),
        check=True,
        cwd=tmp_path,
    )
    names = (
        "accept_content", "broker_heartbeat", "event_queue_ttl", "event_serializer",
        "task_acks_late", "task_serializer", "worker_concurrency",
        "worker_enable_remote_control", "worker_prefetch_multiplier",
    )  # fmt: skip
    lines = [line for line in run.stdout.splitlines() if line.startswith(names)]
    check("celery-settings", sorted(lines))
