"""The messages between gateway and worker machines, on a broker in the memory of a process.

A message is recorded as JSON: exchange, routing key, headers, properties, and the decoded body.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from kombu.transport import virtual

from tests.golden import program
from tests.patience import patient

BROKER = "memory://"

QUEUE = "near"
"""The queue of the machine, which has the name of its system."""

JOBS = {
    "offer": ("short-1", "00000000-0000-4000-8000-000000000001"),
    "offer of a job that dies": ("crash-1", "00000000-0000-4000-8000-000000000002"),
    "offer of a long job": ("sleep-1", "00000000-0000-4000-8000-000000000003"),
}
"""The offers: the job, which the worker reads from the key, and the message's identifier."""

Message = dict[str, Any]

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAMES = ("content-type", "content-encoding", "headers")
_PROPERTIES = ("correlation_id", "delivery_mode", "expiration", "priority")


def key_of(job: str) -> str:
    """Return a record's key that makes the worker of `tests.work.workers` do `job`."""
    return job.ljust(12).encode().hex()


@contextmanager
def record_messages() -> Iterator[list[Message]]:
    """Yield a list to which each message that this process publishes is added."""
    messages: list[Message] = []
    publish = virtual.Channel.basic_publish

    def basic_publish(
        channel: Any, message: Mapping[str, Any], exchange: str, routing_key: str, **options: Any
    ) -> Any:
        properties = message["properties"]
        messages.append(
            {
                "exchange": exchange,
                "routing_key": routing_key,
                **{name: message[name] for name in _NAMES},
                "properties": {name: properties.get(name) for name in _PROPERTIES},
                "body": json.loads(message["body"]),
            }
        )
        return publish(channel, message, exchange, routing_key, **options)

    with patch.object(virtual.Channel, "basic_publish", basic_publish):
        yield messages


_PROPERTIES_OF_QUEUES = ("type", "durable", "exclusive", "auto_delete", "arguments")


@contextmanager
def record_declarations() -> Iterator[dict[str, Any]]:
    """Yield a mapping to which each queue and exchange that this process declares is added.

    A broker refuses a declaration with other properties than those of its queue or exchange.
    """
    declarations: dict[str, Any] = {}

    def recorder(kind: str, declare: Callable[..., Any]) -> Callable[..., Any]:
        def note(channel: Any, *names: str, **options: Any) -> Any:
            name = _UUID.sub("<uuid>", str(options.get(kind) or names[0]))
            declarations[f"{kind} {name}"] = {
                fact: options.get(fact) for fact in _PROPERTIES_OF_QUEUES
            }
            return declare(channel, *names, **options)

        return note

    exchanges = recorder("exchange", virtual.Channel.exchange_declare)
    queues = recorder("queue", virtual.Channel.queue_declare)
    with (
        patch.object(virtual.Channel, "exchange_declare", exchanges),
        patch.object(virtual.Channel, "queue_declare", queues),
    ):
        yield declarations


def publish(message: Mapping[str, Any], app: Any) -> None:
    """Publish a recorded message."""
    with app.connection_for_write() as connection:
        raw = {name: message[name] for name in _NAMES}
        raw["properties"] = {**message["properties"], "delivery_info": {}}
        raw["body"] = json.dumps(message["body"])
        channel = connection.default_channel
        channel.basic_publish(raw, message["exchange"], message["routing_key"])


def gateway_messages() -> dict[str, Message]:
    """Return the messages of the present gateway: offers, and orders to stop the long job."""
    sender = program.broker_sender(BROKER)
    job, identifier = JOBS["offer of a long job"]
    with record_messages() as messages:
        for key, message in JOBS.values():
            sender.offer(message, key_of(key), QUEUE)
        sender.cancel(key_of(job), identifier)
        sender.cancel(key_of(job))
    sender.close()
    names = (*JOBS, "cancel", "cancel every job of a record")
    return dict(zip(names, messages, strict=True))


def machine_messages(messages: Path, directory: Path) -> tuple[list[Message], dict[str, Any]]:
    """Run a present worker machine that receives the gateway's `messages`.

    Return its messages and its declarations.
    """
    output = directory / "output.json"
    arguments = [str(path) for path in (messages, directory, output)]
    command = [sys.executable, "-m", "tests.golden.machine", *arguments]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=patient(60), check=False, cwd=_ROOT
    )
    assert run.returncode == 0, run.stderr
    document = json.loads(output.read_text(encoding="utf-8"))
    return document["messages"], document["declarations"]


_ROOT = Path(__file__).parents[2]
