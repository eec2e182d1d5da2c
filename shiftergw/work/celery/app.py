"""What the gateway and the worker machines agree on: the messages, and how Celery is set up."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from celery import Celery
from kombu.entity import Exchange

from shiftergw.config.broker import BROKER_FILES
from shiftergw.work.celery import tls as celery_tls  # noqa: F401 - has amqps: brokers verified
from shiftergw.work.celery.worker_registry import STATUS_SECONDS

TASK = "shiftergw.convert"
"""The name of the one task; its one argument is a record's key."""

STATUS = "worker-shiftergw"
"""The event by which a worker machine says who it is and what it does."""

CANCEL = Exchange("shiftergw.cancel", type="fanout", durable=True)
"""Where every worker machine hears that the job on a record, `{"key": KEY}`, is to stop."""

CONNECT_SECONDS = 5.0
"""Limit on connecting to the broker, log-in and all."""

SOCKET_SECONDS = 20.0
"""Limit on one answer, or one write, once connected."""

HEARTBEAT_SECONDS = 10.0
"""A broker that says nothing for twice as long is away."""


def unread(message: Any, error: Exception) -> None:
    """Pass over a message, on a line of all, that cannot be read: anybody may have written it."""


_KEY = re.compile(r"[0-9a-f]{24}")


def is_key(value: object) -> bool:
    """Say whether a value has the form of a record's key; nothing else gets into a message."""
    return isinstance(value, str) and _KEY.fullmatch(value) is not None


def make_app(broker_url: str, slots: int | None = None) -> Celery:
    """Return Celery, set up; nothing is opened. `slots` are those of a worker machine.

    Messages are JSON, results are kept nowhere. With `amqps:` the broker's certificate is checked
    against its name and the authorities in `cacertfile`, `SSL_CERT_FILE`, or the machine's.
    """
    app = Celery("shiftergw", set_as_current=False)
    url, _, options = broker_url.partition("?")
    if url.startswith("amqps:"):
        app.conf.update(broker_use_ssl=_tls_options(url, options))
    app.conf.update(
        broker_url=url,
        broker_connection_timeout=CONNECT_SECONDS,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        broker_heartbeat=HEARTBEAT_SECONDS,
        broker_transport_options={
            "read_timeout": SOCKET_SECONDS,
            "write_timeout": SOCKET_SECONDS,
        },
        accept_content=["json"],
        task_serializer="json",
        event_serializer="json",
        task_ignore_result=True,
        task_send_sent_event=False,
        event_queue_ttl=STATUS_SECONDS * 3,
        # Acknowledged when begun: the store recovers what is lost, and a conversion of hours would
        # outlast the time that a broker waits for an acknowledgement.
        task_acks_late=False,
        worker_consumer="shiftergw.work.celery.consumer:MachineConsumer",
        # By its commands, whoever can write to the broker could stop machines.
        worker_enable_remote_control=False,
        worker_prefetch_multiplier=1,
        worker_enable_prefetch_count_reduction=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_detect_quorum_queues=False,
        worker_disable_rate_limits=True,
        worker_concurrency=slots,
        worker_proc_alive_timeout=60.0,
    )
    return app


def called(name: str) -> dict[str, Any]:
    """Return the option by which an admin of the broker sees whose connection it is."""
    return {"client_properties": {"connection_name": f"shiftergw {name}"}}


def reach(connection: Any) -> None:
    """Open a connection, by one attempt; raise what the driver raises."""
    connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)


def _tls_options(url: str, options: str) -> dict[str, Any]:
    """Return the host that the broker's certificate must name, and the files of the URL.

    The host is given here because kombu would verify `127.0.0.1` where the URL has `localhost`.
    """
    files = {BROKER_FILES[name]: path for name, path in parse_qsl(options) if name in BROKER_FILES}
    return {"server_hostname": urlsplit(url).hostname or "localhost", **files}
